"""Figures are PNGs that depend on their content alone; every image in them is there, pixel for pixel."""

import io
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from adm.studies._mosaics import NeighbourBlock, SampleBlock, nearest_images, sample_picture
from adm.studies._plots import Curve, Panel, TradeOff, loss_curves, scale_curves, trade_off

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

FIGURES = {
    "trade_off": lambda: trade_off([GUIDED], {"real": (0.9, 0.9)}),
    "one_point": lambda: trade_off([TradeOff("DDPM", (0,), (0.7,), (0.9,))]),
    "scale": lambda: scale_curves([ACCURACY]),
    "losses": lambda: loss_curves(LOSSES),
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
