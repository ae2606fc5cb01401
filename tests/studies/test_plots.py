"""Figures are PNGs that depend on their content alone; every image in them is there, pixel for pixel."""

import io
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from adm.studies._mosaics import NeighbourBlock, SampleBlock, nearest_images, sample_picture
from adm.studies._plots import Curve, Panel, TradeOff, loss_curves, scale_curves, trade_off
from adm.studies._quality_plots import ErrorCurve, ErrorPanel, drawn, error_curves, stroke
from adm.studies._ticks import log_ticks, thinned

SCALES = (0, 1, 3, 10)
FACTOR = 18  # an image of 8 pixels has more room than it needs
INK, VERMILION = (0x1F, 0x29, 0x33), (0xD5, 0x5E, 0x00)
CURVE = Curve("mse", range(100), np.linspace(1, 0.1, 100))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def sample_block(sampler: str, scale: float, channels: int = 1, right: np.ndarray | None = None) -> SampleBlock:
    seed = int(scale) + len(sampler)
    images = np.random.RandomState(seed).randint(0, 256, (3, 2, 8, 8, channels), dtype=np.uint8)
    return SampleBlock(sampler, scale, images, right)


def neighbour_block(channels: int = 1) -> NeighbourBlock:
    images = np.random.RandomState(0).randint(0, 256, (4, 8, 8, channels), dtype=np.uint8)
    return NeighbourBlock("DDPM, s = 1", images, images[::-1], [3.0, 4.0, 5.0, 6.0])


GUIDED = TradeOff("DDPM", SCALES, (0.7, 0.8, 0.9, 1.0), (0.9, 0.8, 0.6, 0.2))
ACCURACY = Panel("Accuracy", [Curve("DDPM", SCALES, (0.1, 0.8, 1, 1))], percent=True, levels={"chance": 0.1})
LOSSES = [Panel("Diffusion", [CURVE, Curve("vb", [5], [0.01])], log=True), Panel("Accuracy", [CURVE])]


def panel(*values: float, names: str = "ab", level: float | None = None) -> ErrorPanel:
    """Each value is that of a curve at 5 and at 8; the names come again."""
    curves = [ErrorCurve(names[k % len(names)], (5, 8), (y, y)) for k, y in enumerate(values)]
    levels = None if level is None else {"ddpm,\n250": level}
    return ErrorPanel("Panel", "evaluations", "FD", curves, (5, 8), log=True, levels=levels)


TWO_PANELS = panel(1.0, 30.0, names="ab"), panel(2.0, 2.5, names="cd")
FIGURES = {
    "trade_off": lambda: trade_off([GUIDED], {"real": (0.9, 0.9)}),
    "one_point": lambda: trade_off([TradeOff("DDPM", (0,), (0.7,), (0.9,))]),
    "scale": lambda: scale_curves([ACCURACY]),
    "losses": lambda: loss_curves(LOSSES),
    "errors": lambda: error_curves([TWO_PANELS[0], TWO_PANELS[1]]),
    "samples": lambda: sample_picture([sample_block(s, x) for s in ("DDPM", "DDIM") for x in SCALES], "abc"),
    "one_block": lambda: sample_picture([sample_block("DDPM", 0, channels=3)], "abc"),
    "nearest": lambda: nearest_images([neighbour_block(), neighbour_block()]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_equal_content_gives_equal_bytes_and_the_settings_stay(name):
    matplotlib.rcParams["font.size"] = 17.0
    try:
        first = FIGURES[name]()
        assert matplotlib.rcParams["font.size"] == 17.0
    finally:
        matplotlib.rcParams["font.size"] = matplotlib.rcParamsDefault["font.size"]
    assert first == FIGURES[name]()
    assert 600 <= pixels(first).shape[1] // 2 <= 1000 or name in (
        "trade_off",
        "one_point",
        "scale",
        "one_block",
    )
    assert b"matplotlib" not in first and pixels(first).std() > 1


def test_drawing_leaves_pyplot_alone():
    FIGURES["losses"]()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def find(picture: np.ndarray, image: np.ndarray) -> int:
    """How often the image, each pixel 18 x 18, occurs in the picture: at any place, exactly."""
    tile = image.repeat(FACTOR, axis=0).repeat(FACTOR, axis=1)
    height, width = tile.shape[:2]
    corners = np.argwhere((picture[: 1 - height, : 1 - width] == tile[0, 0]).all(-1))
    return sum(np.array_equal(picture[y : y + height, x : x + width], tile) for y, x in corners)


def test_every_sample_is_there_enlarged_by_a_whole_factor():
    block = sample_block("DDPM", 1, channels=3)
    picture = pixels(sample_picture([block], "abc"))
    assert all(find(picture, image) == 1 for row in block.images for image in row)


def test_a_misread_colour_sample_is_framed():
    block = sample_block("DDPM", 1, channels=3, right=np.array([[True, True], [True, False], [True, True]]))
    picture = pixels(sample_picture([block], "abc"))
    framed = np.full((8, 8, 3), VERMILION, dtype=np.uint8)
    framed[1:-1, 1:-1] = block.images[1, 1, 1:-1, 1:-1]
    assert find(picture, framed) == 1 and find(picture, block.images[1, 1]) == 0


def test_grey_samples_are_ink_on_paper_and_misread_ones_are_vermilion():
    images = np.zeros((1, 2, 8, 8, 1), dtype=np.uint8)
    images[..., :3, :5, :] = 255
    picture = pixels(sample_picture([SampleBlock("DDPM", 0, images, np.array([[True, False]]))], "0"))
    for ink in (INK, VERMILION):
        drawn = np.full((8, 8, 3), 255, dtype=np.uint8)
        drawn[:3, :5] = ink
        assert find(picture, drawn) == 1


def test_each_image_stands_above_its_neighbour():
    block = neighbour_block(channels=3)
    picture = pixels(nearest_images([block]))
    assert all(find(picture, image) == 2 for image in block.images)


LOWS = [m * 10.0**k for m in (1.0, 1.01, 1.99, 2.0, 3.7, 4.99, 9.99) for k in (-7, -1, 0, 1, 5)]
RATIOS = (1.0001, 1.03, 1.5, 2.1, 4.9, 9.9, 10.0, 75.0, 600.0, 1e4, 1e7, 1e31)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_logarithmic_axis_has_three_to_ten_labels_and_each_says_where_it_is(ratio):
    for low in LOWS:
        ticks = log_ticks(low, low * ratio)
        assert 3 <= len(ticks) <= 10 and low <= min(ticks) and max(ticks) <= low * ratio, low
        assert [float(format(tick, ".12g")) for tick in ticks] == ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.7, 30, [1, 2, 5, 10, 20]),
        (0.17, 1.2, [0.2, 0.5, 1]),
        (0.9, 4.9, [1, 2, 3, 4]),  # of 1, 2, 5 two are in it
        (4.3, 9.6, [5, 6, 7, 8, 9]),  # and here one
        (18.5, 31.0, [20, 25, 30]),
        (0.289, 0.312, [0.29, 0.3, 0.31]),
        (0.5, 2e4, [1, 10, 100, 1000, 10000]),
    ],
)
def test_its_labels_are_at_tidy_numbers(low, high, ticks):
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize("values", [(1.2, 1.9, 4.0), (20.9, 21.0), (0.3, 21.0), (3.0, 3.0), (1e-3, 1e4)])
def test_in_every_panel_three_numbers_can_be_read(values):
    figure = drawn([panel(*values), panel(1.0, 2.0), panel(*values)])
    figure.canvas.draw()
    for axes in figure.axes[:3]:
        low, high = axes.get_ylim()
        shown = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        assert len(shown) >= 3 and [float(label.get_text()) for label in shown] == [y.get_position()[1] for y in shown]


def test_labels_that_have_no_room_give_way_to_those_before_them():
    assert thinned((5, 8, 10, 15, 25, 7, 9, 9, 8.1)) == [5, 8, 10, 15, 25, 7, 9]
    assert thinned((25, 50, 100, 25, 49, 99)) == [25, 50, 100]
    assert thinned((5, 5)) == [5]


def test_nothing_is_drawn_over_the_name_of_a_level_in_any_panel():
    figure = drawn([panel(1.0, 3.0, level=1.0), panel(2.9, 3.1, level=3.0)] * 2)
    figure.canvas.draw()
    names = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    others = [axes.get_window_extent() for axes in figure.axes]
    others += [axes.yaxis.get_tightbbox() for axes in figure.axes if axes.axison]
    assert len(names) == 4 and not any(name.overlaps(other) for name in names for other in others)


def test_a_key_of_the_legend_shows_a_whole_dash_on_either_side_of_its_marker():
    names = "abcdefghijklmn"
    figure = drawn([panel(*range(1, 15), names=names), panel(*range(1, 15), names=names)])
    figure.canvas.draw()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    for key, k in zip(legend.get_lines(), range(14), strict=True):
        ends = key.get_transform().transform(np.column_stack(key.get_data(orig=False)))
        width = np.ptp(ends[:, 0]) * 72 / figure.dpi
        line = stroke(k)["linestyle"]
        period = 0 if line == "-" else sum(line[1]) * key.get_linewidth()
        assert (width - key.get_markersize()) / 2 > period and key.get_marker() == stroke(k)["marker"]


def test_columns_of_other_curves_have_a_legend_each_and_columns_of_the_same_one():
    def legends(*panels: ErrorPanel) -> list[list[str]]:
        found = [axes.get_legend() for axes in drawn(panels).axes]
        return [[text.get_text() for text in legend.get_texts()] for legend in found if legend]

    assert legends(panel(1, 2, names="ab"), panel(3, 4, names="cd")) == [["a", "b"], ["c", "d"]]
    assert legends(panel(1, 2, names="ab"), panel(3, 4, names="bc")) == [["a", "b", "c"]]
    assert legends(panel(1, 2, names="ab")) == [["a", "b"]]


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, D65, as someone sees it."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(np.asarray(seen) @ linear, 0, 1) / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", SEEN)
def test_fourteen_curves_are_told_apart_by_every_eye(eye):
    """Markers differ anyway; those of one dash differ in colour, by more than six just noticeable differences."""
    strokes = [stroke(k) for k in range(14)]
    assert len({s["marker"] for s in strokes}) == 14
    for one in strokes:
        for other in strokes:
            if one is not other and one["linestyle"] == other["linestyle"]:
                distance = np.linalg.norm(lab(one["color"], SEEN[eye]) - lab(other["color"], SEEN[eye]))
                assert distance > 6 * 2.3, (one["color"], other["color"], distance)


def test_curves_that_coincide_stand_side_by_side_about_where_they_are():
    (axes, _) = drawn([panel(1.0, 1.0, 1.0, names="abc")]).axes
    x = np.log([bars.lines[0].get_xdata(orig=False) for bars in axes.containers])
    assert (np.diff(x, axis=0) > 0).all() and np.allclose(np.exp(x.mean(axis=0)), (5, 8), rtol=1e-12)
    assert np.ptp(x) < 1.1 * np.log(8 / 5)
