"""All that can be said of one image file: how it is stored, how large it is, and which pixels it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adm.data import _images, _png_chunks
from adm.data._archive import DamagedArchiveError
from adm.data._image_file import NotAnImage, Unreadable
from adm.data._listing import IMAGE_SUFFIXES
from adm.data._scan_threads import by_threads
from adm.runtime.errors import DamagedError

__all__ = ["Look", "look", "looks", "pixel_hash"]

STORED = {"1": "1 bit", "P": "palette", "PA": "palette", "CMYK": "CMYK", "L": "grey", "LA": "grey", "La": "grey"}


@dataclass(frozen=True, slots=True)
class Look:
    """One image.

    stored: "grey", "colour", "palette", "CMYK", "1 bit", "16-bit grey" or "16-bit colour". alpha: it has a mask or a
    transparent colour; transparent: that hides something. turned: by what EXIF says. size: (H, W), upright. pixels: a
    hash of what `_images.to_array` gives, equal for the same picture in two formats.
    """

    format: str
    stored: str
    grey: bool
    wide: bool
    alpha: bool
    transparent: bool
    turned: bool
    size: tuple[int, int]
    num_bytes: int
    sha256: bytes
    pixels: bytes


def look(data: bytes) -> Look:
    """The image in these bytes, decoded. Raises Unreadable or NotAnImage."""
    with _images.opened(data) as header, _images.one_large(header):
        image = _images.load_upright(header)
        pixels = _images.to_array(image)
        alpha = bool(image.has_transparency_data)
        return Look(
            format=str(header.format),
            stored=_stored(image, data),
            grey=_images.is_grey(image),
            wide=_images.is_wide(image),
            alpha=alpha,
            transparent=alpha and _hides(image),
            turned=image is not header,
            size=(pixels.shape[0], pixels.shape[1]),
            num_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            pixels=pixel_hash(pixels),
        )


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """16 bytes that are equal for equal pictures."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def looks(
    read: Callable[[str], bytes], names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, Look | str | None]]:
    """Each file and what it is: an image, the reason why it is a bad one, or None if it is something else."""
    return by_threads(lambda name: _verdict(read, name), names, progress)


def _verdict(read: Callable[[str], bytes], name: str) -> Look | str | None:
    try:
        return look(read(name))
    except NotAnImage as error:
        return str(error) if Path(name).suffix.lower() in IMAGE_SUFFIXES else None
    except DamagedArchiveError as error:
        return error.why
    except (Unreadable, DamagedError) as error:
        return str(error)


def _stored(image: Image.Image, data: bytes) -> str:
    if _images.is_wide(image):
        return "16-bit grey"
    if data.startswith(_png_chunks.SIGNATURE) and data[24] == 16:  # IHDR: bit depth
        return "16-bit grey" if _images.is_grey(image) else "16-bit colour"
    return STORED.get(image.mode, "colour")


def _hides(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode in ("RGBA", "LA"):
        return image.getchannel("A").histogram()[255] < image.width * image.height
    return True
