"""Many images in one picture, with their classes below them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from adm.data._pictures import enlarged, grid
from adm.runtime.errors import UsageError

__all__ = ["overview"]

MIN_WIDTH = 64
FONT_SIZE = 10
STRIP = 13
"""Pixels below an image for a line of text of that size."""


def overview(
    images: Tensor | NDArray[np.uint8], captions: Sequence[str] = (), columns: int | None = None
) -> NDArray[np.uint8]:
    """One uint8 (H, W, C) picture of uint8 images (N, H, W, C), each at least 64 pixels wide; whole pixels, repeated.

    captions: one for each image, shortened to its width; none leaves no room for them. columns: images in a row (None:
    the nearest to a square). Equal arguments give equal pixels. Raises UsageError.
    """
    width = images.shape[2] if images.ndim == 4 else MIN_WIDTH
    large = enlarged(images, -(-MIN_WIDTH // max(1, width)))
    if captions and len(captions) != len(large):
        raise UsageError(f"{len(captions)} captions for {len(large)} images: give one for each, or none")
    if any(captions):
        strips = [_strip(caption, large.shape[2], large.shape[3]) for caption in captions]
        large = np.concatenate([large, np.stack(strips)], axis=1)
    return grid(large, columns)


def _strip(text: str, width: int, channels: int) -> NDArray[np.uint8]:
    """Black on white, (STRIP, width, channels), centred."""
    font = _font(text)
    line = "".join(c if c.isprintable() else "?" for c in text)
    while len(line) > 1 and font.getlength(line) > width:
        line = f"{line.removesuffix('…')[:-1]}…"
    picture = Image.new("L", (width, STRIP), 255)
    start = max(0, (width - font.getlength(line)) / 2)
    ImageDraw.Draw(picture).text((start, 0), line, fill=0, font=font)
    return np.asarray(picture)[:, :, None].repeat(channels, axis=2)


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which knows little beyond ASCII, else the one that comes with matplotlib."""
    if text.isascii():
        return ImageFont.load_default(FONT_SIZE)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)
