"""Arrays as pictures and back: the model's range, grids and PNGs. An image is uint8 (H, W, C), as in `_images`."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adm.runtime import files
from adm.runtime.errors import UsageError

__all__ = ["grid", "png_bytes", "save_png", "to_model_range", "to_uint8"]

Pixels = NDArray[np.uint8]


def to_model_range(images: Tensor | Pixels) -> Tensor:
    """float32 (N, C, H, W) in [-1, 1] of uint8 (N, H, W, C): v / 127.5 - 1. Source: ADM as released."""
    if isinstance(images, np.ndarray) and not images.flags.writeable:
        images = images.copy()  # torch warns of arrays that it could not write to
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous().to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """uint8 (N, H, W, C) of x (N, C, H, W): (x + 1) * 127.5, clamped to 0..255 and truncated, not rounded.

    Truncation is the released rule, as the published numbers were measured: -1 -> 0, 0 -> 127, 1 -> 255.
    In float32 it takes the model range of the values 1..63 back to one less.
    """
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def grid(images: Tensor | Pixels, columns: int | None = None, pad: int = 2, scale: int = 1) -> Pixels:
    """One uint8 (H, W, C) picture of uint8 images (N, H, W, C), row by row on white.

    columns: images in a row (None: the nearest to a square); pad: pixels around each image; scale: each pixel
    becomes scale x scale. `overview` is for people: large enough to see, and with a caption below each image.
    """
    array = enlarged(images, scale)
    n, height, width, channels = array.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    cells = np.full((rows * columns, height + pad, width + pad, channels), 255, np.uint8)
    cells[:n, pad:, pad:] = array
    picture = cells.reshape(rows, columns, height + pad, width + pad, channels).swapaxes(1, 2)
    picture = picture.reshape(rows * (height + pad), columns * (width + pad), channels)
    return np.pad(picture, ((0, pad), (0, pad), (0, 0)), constant_values=255)


def enlarged(images: Tensor | Pixels, scale: int) -> Pixels:
    """uint8 images (N, H, W, C) with each pixel scale x scale. Raises UsageError for what is no images."""
    array = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
    if array.dtype != np.uint8 or array.ndim != 4 or not len(array):
        raise UsageError(f"a grid of {array.dtype} {array.shape}: give one or more uint8 images (N, H, W, C)")
    return array.repeat(scale, axis=1).repeat(scale, axis=2)


def png_bytes(image: Tensor | Pixels) -> bytes:
    """The PNG of a uint8 (H, W, 1 or 3) image: with one Pillow and zlib, equal pixels give equal bytes."""
    array = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UsageError(f"a PNG of {array.dtype} {array.shape}: give uint8 (H, W, 1) or (H, W, 3)")
    stream = io.BytesIO()
    pixels = array[:, :, 0] if array.shape[2] == 1 else array
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG")
    return stream.getvalue()


def save_png(path: str | os.PathLike[str], image: Tensor | Pixels) -> None:
    """Write a uint8 (H, W, 1 or 3) image as a PNG, whole or not at all."""
    files.write_bytes(Path(path), png_bytes(image))
