"""Image files as arrays, and ADM's crops of them.

An image here is uint8 with shape (H, W, C), C being 1 (grey) or 3 (RGB). What files hold and what it becomes:

  1 bit, grey, grey palette        1 channel; as 3 channels each repeats it
  16-bit grey                      round(v / 257): 65535 becomes 255
  16-bit colour, or with alpha     the high byte of each, as Pillow reads it
  colour, colour palette           3 channels; as 1 channel its luma (ITU-R 601)
  CMYK, YCCK                       R = (255 - C) (255 - K) / 255, and so on; colour profiles are not applied
  alpha, transparent colour        composited on white, the declared background; of 16-bit colour by its high bytes
  EXIF orientation                 applied
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adm.data._image_file import STORED_GREY, NotAnImage, Source, Unreadable, opened, reason
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import shown_path

__all__ = [
    "NotAnImage",
    "Unreadable",
    "center_crop",
    "decode",
    "image_size_pair",
    "is_grey",
    "is_wide",
    "load_upright",
    "one_large",
    "open_image",
    "opened",
    "orientation",
    "random_crop",
    "scaled_for_random_crop",
    "to_array",
]

Pixels = NDArray[np.uint8]

MIN_CROP_FRACTION = 0.8
LARGE_PIXELS = 2**23
LARGE = RLock()
BAND_PIXELS = 2**20  # converted at once, so that the memory is that of the image and not of its intermediate values

_UPRIGHT = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: Source, channels: int | None = None) -> Pixels:
    """The image of a file (or of its bytes): uint8 (H, W, C), upright, at its own size.

    channels: 1, 3, or None for 1 when the file is stored as grey and 3 otherwise. Raises DataError.
    """
    try:
        return to_array(open_image(source), channels)
    except Unreadable as error:
        name = "image data" if isinstance(source, bytes) else f"image {shown_path(source)!r}"
        raise DataError(f"{name} cannot be read ({error}): replace or remove it") from None


def open_image(source: Source) -> Image.Image:
    """The upright image in the mode in which it is stored, fully decoded. Raises Unreadable or NotAnImage."""
    with opened(source) as image, one_large(image):
        return load_upright(image)


def load_upright(image: Image.Image) -> Image.Image:
    """What was opened, decoded and turned. Raises Unreadable."""
    try:
        image.load()
        if image.mode in ("P", "PA") and image.palette is None:
            raise ValueError("without its palette")
        method = _UPRIGHT.get(orientation(image))
        if method is None:
            return image
        upright = image.transpose(method)
        image.close()  # so that one of the two is held while the other is converted
        return upright
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise Unreadable(reason(error)) from None


def one_large(image: Image.Image) -> AbstractContextManager[object]:
    """Within it no other thread decodes a large image, which takes up to 256 MB; a small one never waits."""
    return LARGE if image.width * image.height > LARGE_PIXELS else nullcontext()


def is_grey(image: Image.Image) -> bool:
    """Whether the image is stored as grey, with or without alpha; a palette of greys counts."""
    if image.mode in ("P", "PA"):
        colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA") or is_wide(image) or STORED_GREY in image.info


def is_wide(image: Image.Image) -> bool:
    """Whether the image is 16-bit grey."""
    return image.mode.startswith("I")


def to_array(image: Image.Image, channels: int | None = None) -> Pixels:
    """uint8 (H, W, channels) by the table above."""
    if channels not in (None, 1, 3):
        raise UsageError(f"channels {channels}: image files give 1 (grey) or 3 (RGB)")
    grey = is_grey(image)
    if is_wide(image):
        pixels = _narrow(image)
    elif image.has_transparency_data:
        pixels = _on_white(image)[:, :, : 1 if grey else 3]
    elif grey:
        pixels = _as_array(image, "L" if image.mode in ("1", "L") else "RGB")[:, :, :1]
    else:
        pixels = _as_array(image, "RGB")
    wanted = channels or (1 if grey else 3)
    if pixels.shape[2] == wanted:
        return np.ascontiguousarray(pixels)
    return pixels.repeat(3, axis=2) if wanted == 3 else _as_array(Image.fromarray(pixels), "L")


def center_crop(image: Pixels, size: int | tuple[int, int]) -> Pixels:
    """The central (H, W) of the image scaled to just cover it; an image of that size comes back unchanged.

    Scaling: BOX halvings while both sides are at least twice the target, then BICUBIC. Source: ADM's code.
    """
    size = image_size_pair(size)
    if image.shape[:2] == size:
        return image
    image = _cover(image, size)
    return _window(image, size, (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2)


def random_crop(image: Pixels, size: int | tuple[int, int], u: Sequence[float]) -> Pixels:
    """A random (H, W) of the image scaled so that its shorter side is one of size .. ceil(size / 0.8).

    u: three fractions in [0, 1) that draw that side, the row and the column. For H != W that side is drawn
    for the shorter one of the target, and the other follows. Source: ADM's code.
    """
    height, width = size = image_size_pair(size)
    low, high = min(size), _longest_drawn(size)
    drawn = low + int(u[0] * (high - low + 1))
    image = _cover(image, _in_proportion(size, drawn))
    top = int(u[1] * (image.shape[0] - height + 1))
    left = int(u[2] * (image.shape[1] - width + 1))
    return _window(image, size, top, left)


def scaled_for_random_crop(image: Pixels, size: int | tuple[int, int]) -> Pixels:
    """The image scaled, with its aspect, to the largest that `random_crop` to this size scales it to; never enlarged.

    Crops of the result have the same places and scales as those of the image. Where that was scaled here and is
    scaled again, pixels differ a little, having been resampled twice.
    """
    size = image_size_pair(size)
    largest = _in_proportion(size, _longest_drawn(size))
    is_small = image.shape[0] <= largest[0] or image.shape[1] <= largest[1]
    return image if is_small else _cover(image, largest)


def _longest_drawn(size: tuple[int, int]) -> int:
    return math.ceil(min(size) / MIN_CROP_FRACTION)


def _in_proportion(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """A size like this one with another shorter side, the other side rounded up."""
    return -(-size[0] * shorter // min(size)), -(-size[1] * shorter // min(size))


def image_size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image size; one number means a square."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise UsageError(f"image size {height}x{width}: both sides must be at least 1 pixel")
    return height, width


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 when there is none that can be read."""
    try:
        turned = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF: the pixels are still good
        return 1
    return turned if turned in _UPRIGHT else 1


def _narrow(image: Image.Image) -> Pixels:
    """uint8 (H, W, 1) of 16-bit grey; a transparent value becomes white."""
    narrow = np.empty((image.height, image.width, 1), np.uint8)
    transparent = image.info.get("transparency")
    for rows, part in _bands(image):
        values = np.asarray(part).astype(np.int64).clip(0, 65535)
        narrow[rows, :, 0] = (values + 128) // 257
        if isinstance(transparent, int):
            narrow[rows][values == transparent] = 255
    return narrow


def _on_white(image: Image.Image) -> Pixels:
    """uint8 (H, W, 3): each colour c with alpha a becomes c a / 255 + 255 - a, rounded."""
    laid = np.empty((image.height, image.width, 3), np.uint8)
    for rows, part in _bands(image):
        rgba = np.asarray(part.convert("RGBA")).astype(np.uint16)
        colour, alpha = rgba[:, :, :3], rgba[:, :, 3:]
        # colour * alpha + 255 * (255 - alpha) is at most 255**2, so the rounded division stays within 16 bits.
        laid[rows] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return laid


def _as_array(image: Image.Image, mode: str) -> Pixels:
    """uint8 (H, W, C) in a mode of 8-bit channels."""
    array = np.empty((image.height, image.width, Image.getmodebands(mode)), np.uint8)
    for rows, part in _bands(image):
        values = np.asarray(part if part.mode == mode else part.convert(mode))
        array[rows] = values.reshape(*values.shape[:2], -1)
    return array


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Rows, a few at a time, and the part of the image that they are."""
    step = max(1, BAND_PIXELS // image.width)
    if step >= image.height:
        yield slice(None), image
        return
    for start in range(0, image.height, step):
        stop = min(start + step, image.height)
        yield slice(start, stop), image.crop((0, start, image.width, stop))


def _cover(image: Pixels, size: tuple[int, int]) -> Pixels:
    """The image scaled so that it just covers size: one side equal, the other at least as long."""
    planes = _planes(image)
    width, height = planes[0].size
    while height >= 2 * size[0] and width >= 2 * size[1]:
        width, height = width // 2, height // 2
        planes = [plane.resize((width, height), Image.Resampling.BOX) for plane in planes]
    scale = max(size[0] / height, size[1] / width)
    target = (round(width * scale), round(height * scale))
    if target != (width, height):
        planes = [plane.resize(target, Image.Resampling.BICUBIC) for plane in planes]
    return np.asarray(planes[0]) if image.shape[2] == 3 else np.stack([np.asarray(p) for p in planes], axis=2)


def _planes(image: Pixels) -> list[Image.Image]:
    # Pillow scales the channels of RGB separately, but weighs those of two or four channels by alpha.
    if image.shape[2] == 3:
        return [Image.fromarray(np.ascontiguousarray(image))]
    return [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(image.shape[2])]


def _window(image: Pixels, size: tuple[int, int], top: int, left: int) -> Pixels:
    return image[top : top + size[0], left : left + size[1]]
