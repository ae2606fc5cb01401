"""What is evaluated, or compared with: images in a fixed order, read in batches, and never all at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adm.data._archive import is_archive
from adm.data._dataset import Dataset, open_dataset
from adm.data._file_tree import FolderTree, ZipTree
from adm.data._image_files import CROPPED, ImageFiles
from adm.data._images import center_crop, image_size_pair
from adm.data._listing import leaving_out_by
from adm.data._npz import ArrayImages, is_array_file, looks_like_float
from adm.data._open_file import OpenFile
from adm.data.pack import is_pack
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.randomness import permutation
from adm.runtime.text import shown_path

__all__ = ["ImageSource", "open_images", "subset"]

Pixels = NDArray[np.uint8]


class ImageSource(Protocol):
    """Images of one size in a fixed order."""

    @property
    def name(self) -> str: ...

    @property
    def num(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image; C is 1 (grey) or 3 (RGB), as stored."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(num,), -1 for an image without one; None if none has one."""

    @property
    def conditions(self) -> Mapping[str, object]:
        """JSON-able: `kind`, `files`, `formats` (how many of each), `labels` (where from), `looks_like_float`
        (whether the first images hold nothing but 0 and 1), and the `request` of a sample set."""

    @property
    def sha256(self) -> str:
        """Of a file its bytes'; of pictures over their names and hashes."""

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        """uint8 (n, H, W, C) of the images start .. stop - 1 in order, `size` at once, the last batch short."""


def open_images(
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    size: int | tuple[int, int] | None = None,
) -> ImageSource:
    """The images of an .npz in OpenAI's layout, an .npy, a folder, a zip archive, a sample set or a pack, or of data
    by name, such as "digits:test" or "hf:NAME".

    progress: called with (files looked at, files in all) while pictures are opened. size: scale and crop every image
    to it as ADM does; None takes images as they are and refuses different sizes. Raises DataError or DamagedError.
    """
    text, path = str(path), Path(path)
    if text and os.path.isdir(path):
        if is_pack(path):
            return _DatasetImages(open_dataset(text), "pack", size)
        return ImageFiles(FolderTree(path), size, progress)
    if not text or not os.path.lexists(path):
        return _DatasetImages(_by_name(text, progress), "built-in data", size)
    with OpenFile(path) as file:
        is_array, is_zip, begin = is_array_file(file), is_archive(file), file.read_at(0, min(file.size, 4))
    if is_array:
        source: ImageSource = ArrayImages(path)
        return source if size is None else _Cropped(source, image_size_pair(size))
    if is_zip or begin[:2] == b"PK" or path.suffix.lower() == ".zip":
        return ImageFiles(ZipTree(path), size, progress)
    if begin[:2] in (b"\x89P", b"\xff\xd8", b"RI", b"BM"):
        raise DataError(f"{shown_path(path)} is a single image: give the folder that holds the images")
    raise DamagedError(
        f"{shown_path(path)} is refused: it is no .npz, .npy or zip archive. Give one of these, or a folder of images."
    )


def subset(source: ImageSource, num: int, seed: int = 0) -> ImageSource:
    """`num` of the images, drawn without replacement as a function of (source.num, seed), in their order.

    All of them when there are not more. Reading a subset of an array file passes over the whole file.
    """
    if num >= source.num:
        return source
    indices = np.sort(permutation(source.num, seed=seed, stream="reference subset").numpy()[:num])
    return source.chosen(indices.tolist()) if isinstance(source, ImageFiles) else _Chosen(source, indices)


class _View:
    """Another source, changed."""

    def __init__(self, source: ImageSource, change: str) -> None:
        self.name = source.name
        self.num = source.num
        self.shape = source.shape
        self.labels = source.labels
        self.conditions: Mapping[str, object] = source.conditions
        self._source = source
        self._change = change

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self._source.sha256}/{self._change}".encode()).hexdigest()


class _Chosen(_View):
    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        super().__init__(source, "indices " + hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest())
        self.num = len(indices)
        self.labels = None if source.labels is None else source.labels[indices]
        self.conditions = {**source.conditions, "files_in_all": source.num}
        self._indices = indices

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        indices = self._indices[start:stop]
        waiting: list[Pixels] = []
        first = 0
        for batch in self._source.batches(size):
            inside = indices[(indices >= first) & (indices < first + len(batch))] - first
            first += len(batch)
            waiting.extend(batch[inside])
            while len(waiting) >= size:
                yield np.stack(waiting[:size])
                del waiting[:size]
        if waiting:
            yield np.stack(waiting)


class _Cropped(_View):
    def __init__(self, source: ImageSource, size: tuple[int, int]) -> None:
        super().__init__(source, f"size {size}")
        self.shape = (*size, source.shape[2])
        self.conditions = {**source.conditions, "preprocessing": CROPPED.format(*size)}
        self._size = size

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        for batch in self._source.batches(size, start, stop):
            yield np.stack([center_crop(image, self._size) for image in batch])


class _DatasetImages:
    """A data set to train on, as images to be evaluated; `size` as in `open_images`."""

    def __init__(self, dataset: Dataset, kind: str, size: int | tuple[int, int] | None = None) -> None:
        self._dataset, self._size = dataset, None if size is None else image_size_pair(size)
        self.name = dataset.name
        self.num = len(dataset)
        self.shape: tuple[int, int, int] = (*(self._size or dataset.image(0).shape[:2]), dataset.channels)
        labels = np.array([dataset.label(i) for i in range(self.num)], np.int64)
        self.labels = None if (labels < 0).all() else labels
        self.class_names = dict(enumerate(dataset.class_names))
        self.sha256 = dataset.fingerprint
        if self._size is not None:
            self.sha256 = hashlib.sha256(f"{dataset.fingerprint}/size {self._size}".encode()).hexdigest()
        first = next(self.batches(min(16, self.num)))
        self.conditions: dict[str, object] = {
            "kind": kind,
            "files": 0,
            "formats": {},
            "labels": None if self.labels is None else dataset.name,
            "looks_like_float": looks_like_float(first),
        }
        if self._size is not None:
            self.conditions["preprocessing"] = CROPPED.format(*self._size)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        stop = self.num if stop is None else min(stop, self.num)
        for first in range(start, stop, size):
            yield np.stack([self._image(i) for i in range(first, min(first + size, stop))])

    def _image(self, i: int) -> Pixels:
        image = self._dataset.image(i)
        if self._size is not None:
            return center_crop(image, self._size)
        if image.shape != self.shape:
            sizes = f"image {i} is {image.shape[0]}x{image.shape[1]}, the first {self.shape[0]}x{self.shape[1]}"
            raise DataError(
                f"images in {self.name} have different sizes ({sizes}): make them equal first, such as by "
                "adm reference --size"
            )
        return image


def _by_name(text: str, progress: Callable[[int, int], None] | None) -> Dataset:
    try:
        with leaving_out_by(None):
            dataset = open_dataset(text, progress=progress)
    except DataError:
        if ":" in text:
            raise
        raise DataError(
            f"{shown_path(text) if text else repr(text)}: no such file or folder. "
            "Give an .npz, a folder or zip of images, or a sample set."
        ) from None
    if not len(dataset):
        raise DataError(f"{dataset.name} holds no images: give data with images")
    return dataset
