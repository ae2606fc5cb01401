"""Figures made of images: every pixel enlarged by a whole factor, so that small images stay sharp.

Grey images are drawn as ink on paper, background white and strokes dark; colour images as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from adm.studies._plots import INK, MUTED, RULE, _figure, _png, _style

__all__ = ["NeighbourBlock", "SampleBlock", "nearest_images", "sample_picture"]

WIDTH = 1800  # stored pixels; shown at half of that
WRONG = "#d55e00"
LEGEND = "This colour: an independent classifier reads another class than the one asked for."


@dataclass(frozen=True)
class SampleBlock:
    """Samples of one sampler at one scale: uint8 (num_classes, n, H, W, C), row by row the class asked for.

    ``right``: (num_classes, n) booleans, whether an independent classifier reads that class; None: unjudged.
    """

    sampler: str
    scale: float
    images: np.ndarray
    right: np.ndarray | None = None


@dataclass(frozen=True)
class NeighbourBlock:
    """Images, (n, H, W, C) uint8, the training image nearest to each, and their distances (n,)."""

    title: str
    images: np.ndarray
    nearest: np.ndarray
    distance: Sequence[float]


def sample_picture(blocks: Sequence[SampleBlock], class_names: Sequence[str]) -> bytes:
    """The samples: a band for each sampler, in it a block for each scale, in that a row for each class.

    What the classifier reads otherwise is drawn in vermilion (grey images) or framed in it (colour).
    """
    samplers = list(dict.fromkeys(block.sampler for block in blocks))
    scales = sorted({block.scale for block in blocks})
    by_place = {(block.sampler, block.scale): block for block in blocks}
    left, gutter, head, foot, band_gap = 90, 44, 152, 70, 40
    tiles = [_tiles(block.images, block.right) for block in blocks]
    rows, columns, height, width = blocks[0].images.shape[:4]
    gap = 10
    room = (WIDTH - left - 20 - gutter * (len(scales) - 1)) / len(scales)
    factor = _factor(room / columns - gap, width)
    cell_height, cell_width = factor * height + gap, factor * width + gap
    band = rows * cell_height
    used = left + len(scales) * columns * cell_width + gutter * (len(scales) - 1) + 20
    total_height = len(samplers) * (head + band) + band_gap * (len(samplers) - 1) + foot
    with matplotlib.rc_context(_style()):
        figure = _pixel_figure(used, total_height)
        for i, sampler in enumerate(samplers):
            top = i * (head + band + band_gap)
            _text(figure, left, top + 30, sampler, size=11, weight="bold")
            for r, name in enumerate(class_names[:rows]):
                _text(figure, left - 18, top + head + (r + 0.5) * cell_height, name, align="right", colour=MUTED)
            for j, scale in enumerate(scales):
                x = left + j * (columns * cell_width + gutter)
                block = by_place.get((sampler, scale))
                if block is None:
                    continue
                _heading(figure, x, top, block, columns * cell_width)
                picture = _mosaic(tiles[blocks.index(block)], factor, gap)
                _image(figure, x, top + head, picture)
        if any(block.right is not None for block in blocks):
            _text(figure, left, total_height - 28, LEGEND, size=8, colour=WRONG)
        return _png(figure)


def nearest_images(blocks: Sequence[NeighbourBlock], unit: str = "grey levels") -> bytes:
    """Each image above the training image nearest to it, the distance beneath; a band for each block."""
    left, head, between, foot, gap = 250, 84, 44, 0, 18
    count = max(len(block.images) for block in blocks)
    height, width = blocks[0].images.shape[1:3]
    factor = _factor((WIDTH - left - 20) / count - gap, width)
    cell_width, cell_height = factor * width + gap, factor * height
    band = head + 2 * cell_height + gap + between
    with matplotlib.rc_context(_style()):
        figure = _pixel_figure(max(left + count * cell_width + 20, 1200), len(blocks) * band + foot)
        for i, block in enumerate(blocks):
            top = i * band
            _text(figure, 20, top + 40, block.title, size=10, weight="bold")
            for row, (images, name) in enumerate([(block.images, "image"), (block.nearest, "nearest in training")]):
                y = top + head + row * (cell_height + gap)
                _text(figure, 20, y + cell_height / 2, name, colour=MUTED)
                for k, tile in enumerate(_tiles(images[None], None)[0]):
                    _image(figure, left + k * cell_width, y, _enlarge(tile, factor))
            for k, distance in enumerate(block.distance):
                x = left + k * cell_width + factor * width / 2
                _text(
                    figure,
                    x,
                    top + band - between + 20,
                    f"{distance:.3g}",
                    align="center",
                    colour=MUTED,
                    size=8,
                )
            _text(figure, 20, top + band - between + 20, f"distance, {unit}", colour=MUTED, size=8)
        return _png(figure)


def _heading(figure: Figure, x: float, top: float, block: SampleBlock, width: float) -> None:
    _text(figure, x, top + 82, f"s = {block.scale:g}", size=9.5, weight="bold")
    note = "no guidance" if block.scale == 0 else ""
    if block.right is not None:
        note = f"{100 * float(np.mean(block.right)):.0f}% of these as asked"
    _text(figure, x, top + 118, note, size=8, colour=MUTED)
    line = Line2D(
        [x / figure.bbox.width, (x + width - 4) / figure.bbox.width],
        [1 - (top + 138) / figure.bbox.height] * 2,
        color=RULE,
        linewidth=1.0,
    )
    figure.add_artist(line)


def _tiles(images: np.ndarray, right: np.ndarray | None) -> np.ndarray:
    """uint8 (rows, columns, H, W, 3): what is put on paper for each image."""
    if images.shape[-1] == 1:
        ink = np.array(_rgb(INK)) if right is None else np.where(right[..., None], _rgb(INK), _rgb(WRONG))
        strength = images.astype(np.float64) / 255
        colour = np.broadcast_to(ink, (*images.shape[:2], 3))[:, :, None, None, :]
        return np.round(255 + (colour - 255) * strength).astype(np.uint8)
    tiles = images[..., :3].copy()
    if right is not None:
        border = np.zeros(images.shape[2:4], dtype=bool)
        border[[0, -1]] = True
        border[:, [0, -1]] = True
        tiles[(~right)[:, :, None, None] & border] = _rgb(WRONG)
    return tiles


def _factor(room: float, width: int) -> int:
    """The whole factor that enlarges an image to the room, at most to 72 shown pixels."""
    return max(int(min(room, 144) // width), 1)


def _mosaic(tiles: np.ndarray, factor: int, gap: int) -> np.ndarray:
    rows, columns, height, width = tiles.shape[:4]
    picture = np.full((rows, factor * height + gap, columns, factor * width + gap, 3), 255, dtype=np.uint8)
    enlarged = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    picture[:, : factor * height, :, : factor * width] = enlarged.transpose(0, 2, 1, 3, 4)
    return picture.reshape(rows * (factor * height + gap), columns * (factor * width + gap), 3)


def _enlarge(tile: np.ndarray, factor: int) -> np.ndarray:
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _pixel_figure(width: int, height: int) -> Figure:
    figure = _figure(width / 200, height / 200)
    figure.set_layout_engine("none")
    return figure


def _image(figure: Figure, x: float, y: float, picture: np.ndarray) -> None:
    """Place the picture with its upper left corner at pixel (x, y), one pixel on one pixel."""
    figure.figimage(picture, round(x), round(figure.bbox.height - y - picture.shape[0]))


def _text(
    figure: Figure, x: float, y: float, text: str, *, size: float = 9, weight: str = "normal",
    align: str = "left", colour: str = INK,
) -> None:  # fmt: skip
    figure.text(
        x / figure.bbox.width, 1 - y / figure.bbox.height, text, fontsize=size, fontweight=weight,
        ha=align, va="center", color=colour,
    )  # fmt: skip
