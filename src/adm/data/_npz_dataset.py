"""Arrays of images as a data set to train on: `arr_0` and `arr_1` of an .npz in OpenAI's layout, or an .npy."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adm.data import _images
from adm.data._label_table import check_text, number
from adm.data._labelled_files import content_fingerprint
from adm.data._labels import refuse_look_alikes
from adm.data._listing import nfc
from adm.data._member import MemberReader
from adm.data._npy import read_header, read_values
from adm.data._npz import ArrayImages, arrays_in
from adm.data._open_file import OpenFile, fill
from adm.runtime import files
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["ArrayDataset"]

NAMES = "class_names"
MAX_NAMES_BYTES = 1 << 24
IN_MEMORY_BYTES = 2**28
BATCH_BYTES = 2**24


class ArrayDataset:
    """The images of an array file, each read when it is asked for; labels as `ArrayImages` reads them.

    What is stored as uint8 in C order is read where it lies; anything else is unpacked once, into memory up to 256 MiB
    and into a temporary file beyond. The whole file is passed over once, so that damage is found before training.
    Classes are called "0", "1", ... up to the largest label, or what an array `class_names` of text says. `fingerprint`
    is over class names, labels and pixels. channels: 1, 3, or None for as stored. labels_from: "none" leaves labels
    out. Raises DataError, UsageError or DamagedError.
    """

    default_flip = True

    def __init__(
        self,
        path: Path,
        channels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        labels_from: str | None = None,
    ) -> None:
        if channels not in (None, 1, 3):
            raise UsageError(f"channels {channels}: array files give 1 (grey) or 3 (RGB)")
        if labels_from not in (None, "none"):
            raise DataError(
                f"--labels-from {one_line(labels_from, 40)!r}: {shown_path(path)} has its labels in arr_1. "
                "Leave the option out, or use none."
            )
        self._source = source = ArrayImages(path)
        self.path, self.name = path, path.resolve().name
        self.stored_channels = source.shape[2]
        self.channels = channels or self.stored_channels
        self.class_names, self.labels = _labelled(path, source, labels_from)
        self._place = source.place()
        self._unpacked = None if self._place is not None else _room(source)
        hashes = self._look_through(progress)
        self.fingerprint = content_fingerprint(self.class_names, self.labels, hashes)
        self.notes: tuple[str, ...] = ()
        if source.conditions["looks_like_float"]:
            self.notes = ("the first images hold nothing but 0 and 1: were they floats before?",)

    def __len__(self) -> int:
        return self._source.num

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (H, W, channels). Raises DataError if the file has changed since it was opened."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        image = self._stored(i)
        if image.shape[2] == self.channels:
            return image
        return _images.to_array(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image), self.channels)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def _stored(self, i: int) -> NDArray[np.uint8]:
        if self._unpacked is not None:
            return np.array(self._unpacked[i])
        assert self._place is not None
        image = np.empty(self._source.shape, np.uint8)
        offset, identity = self._place
        with OpenFile(self.path, identity) as file:
            fill(file, offset + i * image.nbytes, image.reshape(-1).data, self.path)
        return image

    def _look_through(self, progress: Callable[[int, int], None] | None) -> NDArray[np.uint8]:
        """The hash of each image's pixels, (N, 32); everything is read, checked and, where need be, unpacked."""
        size = max(1, BATCH_BYTES // int(np.prod(self._source.shape)))
        hashes = np.empty((len(self), 32), np.uint8)
        first = 0
        for batch in self._source.batches(size):
            for k, image in enumerate(batch):
                hashes[first + k] = np.frombuffer(hashlib.sha256(image.tobytes()).digest(), np.uint8)
            if self._unpacked is not None:
                self._unpacked[first : first + len(batch)] = batch
            first += len(batch)
            if progress is not None:
                progress(first, len(self))
        return hashes


def _room(source: ArrayImages) -> NDArray[np.uint8]:
    shape = (source.num, *source.shape)
    size = int(np.prod(shape, dtype=object))
    if size <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    files.require_space(tempfile.gettempdir(), size)
    with tempfile.TemporaryFile() as room:  # the mapping outlives the name, and nobody else can shorten the file
        return np.memmap(room, np.uint8, "w+", shape=shape)


def _labelled(path: Path, source: ArrayImages, labels_from: str | None) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if labels_from == "none" or source.labels is None:
        return (), np.full(source.num, -1, np.int64)
    order = _class_names(path)
    rows = {f"image {k}": int(label) for k, label in enumerate(source.labels)}
    names, labels = number(rows, f"arr_1 of {shown_path(path)}", order, NAMES)
    return names, np.array(list(labels.values()), np.int64)


def _class_names(path: Path) -> tuple[str, ...] | None:
    with OpenFile(path) as file:
        member = arrays_in(file).get(NAMES)
        if member is None:
            return None
        where = f"{shown_path(path)}: {NAMES}"
        reader = MemberReader(file, member)
        header = read_header(reader)
        if header.dtype.kind not in "SU" or len(header.shape) != 1 or header.num_bytes > MAX_NAMES_BYTES:
            raise DataError(
                f"{where} are {header.dtype} {one_line(header.shape, 40)}, expected text (K,): save them so"
            )
        stored = read_values(reader, header)
    try:
        names = tuple(nfc(value.decode() if isinstance(value, bytes) else value) for value in stored.tolist())
    except (ValueError, SystemError):  # numpy raises the latter for what is no code point
        raise DataError(f"{where} are not Unicode (UTF-8): save them as text") from None
    for name in names:
        check_text(name, where)
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"{where} are empty or there twice: give every class a name of its own")
    refuse_look_alikes(names, where)
    return names
