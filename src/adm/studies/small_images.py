"""Small images to be enlarged: of a picture, a folder, an archive or an array, in the channels of a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adm.data import decode, open_images, to_model_range
from adm.runtime import files
from adm.runtime.errors import DataError
from adm.runtime.text import shown_path

__all__ = ["SmallImages", "check_there", "of_array", "open_small"]

Pixels = NDArray[np.uint8]

PICTURES = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM")
"""How PNG, JPEG, WEBP and BMP files begin."""


class Source(Protocol):
    """As much of `adm.data.ImageSource` as is needed here."""

    @property
    def num(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]: ...


@dataclass(frozen=True, eq=False)
class SmallImages:
    """Images to be enlarged, in a fixed order and in the channels of the model.

    labels: (num,), -1 for none, or None; class_names: what these labels are called, as far as the images say.
    sha256: of the file's bytes, or over the names and hashes of the pictures. notes: lines worth showing.
    """

    name: str
    num: int
    size: tuple[int, int]
    labels: NDArray[np.int64] | None
    class_names: Mapping[int, str]
    sha256: str
    notes: tuple[str, ...]
    source: Source
    channels: int

    def low_res(self, rows: range) -> Tensor:
        """(len(rows), C, h, w) in [-1, 1]; after the last image the first one follows."""
        read: list[Pixels] = []
        start, left = rows.start, len(rows)
        while left > 0:
            first = start % self.num
            count = min(left, self.num - first)
            read += self.source.batches(count, first, first + count)
            start, left = start + count, left - count
        return to_model_range(in_channels(np.concatenate(read), self.channels))


def open_small(path: str | Path, channels: int, progress: Callable[[int, int], None] | None = None) -> SmallImages:
    """The images of a picture, a folder, a sample set, a zip, or an .npz in OpenAI's layout, to be enlarged by a model
    of so many channels.

    Grey images are repeated for a model of three channels; of colour ones a grey model is given the luma, which is
    noted. Folders and zips are in the order of their classes and names, sample sets in that of their indices; all
    images are of one size. Raises DataError or DamagedError.
    """
    source: Any = OnePicture(Path(path)) if is_picture(path) else open_images(path, progress)
    return of_source(source, shown_path(path), channels)


def check_there(path: str | Path) -> None:
    """What `open_small` raises when there is nothing of that name: to be asked before a large model is loaded."""
    if not os.path.lexists(path):
        open_images(path)


def of_array(images: Pixels, channels: int) -> SmallImages:
    """The images of an array, uint8 (n, h, w, C)."""
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or images.shape[3] not in (1, 3, channels):
        raise DataError(f"images are {images.dtype} {images.shape}: give uint8 (n, h, w, {channels}), one at least.")
    return of_source(_Array(images), "the images", channels)


def of_source(source: Any, name: str, channels: int) -> SmallImages:
    stored = source.shape[2]
    notes = []
    if stored != channels and (channels not in (1, 3) or stored not in (1, 3)):
        raise DataError(f"{name}: images have {stored} channel(s), the model takes {channels}: give such images")
    if stored > channels:
        notes.append(f"{name} is in colour and the model is grey: it is shown the luma")
    return SmallImages(
        name=source.name,
        num=source.num,
        size=source.shape[:2],
        labels=source.labels,
        class_names=getattr(source, "class_names", {}),
        sha256=source.sha256,
        notes=tuple(notes),
        source=source,
        channels=channels,
    )


def in_channels(images: Pixels, channels: int) -> Pixels:
    """Grey images repeated, or the luma (ITU-R 601) of colour ones, as training reads files."""
    if images.shape[3] == channels:
        return images
    if images.shape[3] == 1:
        return images.repeat(channels, axis=3)
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]


class _Array:
    """Images of an array, without labels."""

    name = "array"
    labels = None

    def __init__(self, images: Pixels) -> None:
        self.images = images
        self.num: int = len(images)
        self.shape: tuple[int, int, int] = images.shape[1:]
        self.sha256 = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        stop = self.num if stop is None else stop
        for first in range(start, stop, size):
            yield self.images[first : min(first + size, stop)]


class OnePicture(_Array):
    """The picture in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(decode(path)[None])
        self.name = path.name
        self.sha256 = files.sha256_file(path)


def is_picture(path: str | Path) -> bool:
    """Whether it is a file that begins as PNG, JPEG, WEBP and BMP do; of other things nothing is opened."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(4).startswith(PICTURES)
    except OSError as error:
        raise files.explanation(error, "read", Path(path)) from error
