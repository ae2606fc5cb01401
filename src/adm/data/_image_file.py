"""An image file opened and tested before anything of it is decoded: regular, of a known format, of a sane size."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from adm.data import _png_chunks
from adm.runtime.errors import ResourceError
from adm.runtime.text import num_bytes, one_line, shown_path

__all__ = [
    "MAX_ASPECT",
    "MAX_FILE_BYTES",
    "STORED_GREY",
    "THREADS",
    "NotAnImage",
    "Source",
    "Unreadable",
    "not_read",
    "opened",
    "reason",
]

Source = str | os.PathLike[str] | bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_FILE_BYTES = 2**27
MAX_PIXELS = 2**26  # 8192 x 8192
MAX_PIXELS_WEBP = 2**25  # its decoder takes 16 bytes for each
MAX_ASPECT = 64  # the crops first scale the shorter side, so memory grows with size**2 * aspect

THREADS = min(8, os.cpu_count() or 1)
"""Of those who read many images at once; Pillow decodes without Python's lock."""

STORED_GREY = "stored as grey"
"""In `info` of an image that Pillow decodes to colour."""

DISGUISES = {  # how a file begins, in lower case -> what it is
    b"gif8": "a GIF",
    b"ii*\0": "a TIFF",
    b"mm\0*": "a TIFF",
    b"%pdf": "a PDF",
    b"%!ps": "an EPS",
    b"\xc5\xd0\xd3\xc6": "an EPS",
    b"8bps": "a PSD",
    b"simple  =": "a FITS",
    b"<svg": "an SVG",
    b"<!doctype html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
    b"pk\3\4": "a zip",
    b"\x93numpy": "an .npy",
}

OWN = {b"\xff\xd8\xff": "JPEG", _png_chunks.SIGNATURE: "PNG"}  # how a file of these begins


class Unreadable(Exception):
    """An image that cannot be used; the message is the reason alone."""


class NotAnImage(Unreadable):
    """Nothing in the file itself says that it is an image."""


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """The image before it is decoded, its size, aspect and a PNG's checksums tested; only regular files are opened."""
    data = source if isinstance(source, bytes) else _contents(Path(source))
    if not data:
        raise NotAnImage("empty file")
    if data.startswith(_png_chunks.SIGNATURE):
        try:
            data = _png_chunks.checked(data)
        except ValueError as error:
            raise Unreadable(str(error)) from None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        if own := next((what for start, what in OWN.items() if data.startswith(start)), None):
            raise Unreadable(f"a {own} that is damaged, or of a kind that is not read") from None
        raise NotAnImage(_what_it_is(data)) from None
    except MemoryError:
        raise
    except Exception as error:  # a text that begins with "BM" gets this far
        raise NotAnImage(reason(error)) from None
    with image:
        _check_header(image)
        if image.format == "PNG":
            _complete_png(image, depth=data[24], colour=data[25])
        yield image


def _contents(path: Path) -> bytes:
    try:
        status = path.stat()
        # Opening a FIFO would wait for its writer for ever.
        if not stat.S_ISREG(status.st_mode):
            raise NotAnImage("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise Unreadable(f"{num_bytes(status.st_size)} are more than {num_bytes(MAX_FILE_BYTES)}")
        with path.open("rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        raise not_read(path, error) from None


def not_read(path: Path, error: OSError) -> Exception:
    """What to raise for a file that cannot be read: an image is not left out for what the machine lacks."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        why = f"cannot read {shown_path(path)}: {error.strerror}"
        return ResourceError(f"{why}. Allow more (ulimit -n), or set data.workers to fewer.")
    if error.errno == errno.ENOMEM:
        return MemoryError(str(error))
    return NotAnImage((error.strerror or str(error)).lower())


def _what_it_is(data: bytes) -> str:
    """The reason why it is no image, with the format that it is in disguise."""
    begin = data[:64].lstrip().lower()
    other = next((what for start, what in DISGUISES.items() if begin.startswith(start)), None)
    if data[4:8] == b"ftyp":
        other = "an AVIF, HEIC or video"
    return f"{other}, not a PNG, JPEG, WEBP or BMP" if other else "not a PNG, JPEG, WEBP or BMP"


def reason(error: Exception) -> str:
    """What Pillow says, as one short line."""
    return one_line(str(error) or type(error).__name__, 60)


def _complete_png(image: Image.Image, depth: int, colour: int) -> None:
    """What Pillow does not say, by the header's bit depth and colour type; transparent values as its pixels have them.

    A file says these at its own depth, in as many of the lower bits. Source: PNG specification, third edition, 11.3.1.
    """
    if (depth, colour) == (16, 4):
        image.info[STORED_GREY] = True
    transparent = image.info.get("transparency")
    if colour == 0 and isinstance(transparent, int) and depth in (2, 4, 8):
        last = 2**depth - 1
        image.info["transparency"] = (transparent & last) * 255 // last
    elif colour == 2 and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(v >> 8 if depth == 16 else v & 255 for v in transparent)


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    limit = MAX_PIXELS_WEBP if image.format == "WEBP" else MAX_PIXELS
    if width * height > limit:
        raise Unreadable(f"{width}x{height} is more than {limit} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Unreadable(f"{width}x{height} is longer than {MAX_ASPECT}:1")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise Unreadable(f"animated, {getattr(image, 'n_frames', 2)} frames")
