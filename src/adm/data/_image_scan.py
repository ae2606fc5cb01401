"""A first look at every file: which are images, of what size, and whether they are whole; nothing is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adm.data import _images
from adm.data._file_tree import FileTree, Read
from adm.data._image_file import NotAnImage, Unreadable, reason
from adm.data._listing import IMAGE_SUFFIXES, no_images, unreadable
from adm.data._scan_threads import by_threads
from adm.runtime.errors import DamagedError, DataError

__all__ = ["Found", "scan"]


@dataclass(frozen=True, slots=True)
class Found:
    """What the bytes and the header of an image file say; `size` is (H, W), upright."""

    format: str
    size: tuple[int, int]
    grey: bool
    wide: bool
    sha256: bytes


def scan(tree: FileTree, read: Read, progress: Callable[[int, int], None] | None) -> dict[str, Found]:
    """The images among the files, by name. Raises DataError when one of them is bad, or when there are none."""
    names = tree.listing.top + tree.listing.below
    found: dict[str, Found] = {}
    bad: dict[str, str] = {}
    for name, verdict in by_threads(lambda name: _look_at(read, name), names, progress):
        if isinstance(verdict, Found):
            found[name] = verdict
        elif verdict is not None:
            bad[name] = verdict
    if bad:
        raise DataError(unreadable(tree.path, bad, len(found)))
    if not found:
        raise DataError(no_images(tree.path, len(names)))
    return found


def _look_at(read: Read, name: str) -> Found | str | None:
    """What the file is: an image, the reason why it is a bad one, or None if it is something else."""
    try:
        data = read(name)
        with _images.opened(data) as image:
            grey, wide = _images.is_grey(image), _images.is_wide(image)
            return Found(str(image.format), _upright_size(image), grey, wide, hashlib.sha256(data).digest())
    except NotAnImage as error:
        return str(error) if Path(name).suffix.lower() in IMAGE_SUFFIXES else None
    except Unreadable as error:
        return str(error)
    except DamagedError:  # of the archive, not of the image alone
        raise
    except Exception as error:  # a palette is decoded to see whether it is grey
        return reason(error)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) after turning, as far as the header says."""
    width, height = image.size
    # Of a PNG without EXIF in front Pillow would decode the image to look behind it.
    turned = _images.orientation(image) if image.format != "PNG" or "exif" in image.info else 1
    return (width, height) if turned in (5, 6, 7, 8) else (height, width)
