"""Images and statistics in OpenAI's layout: an .npz with `arr_0`, `arr_1` and `mu`, `sigma`, `mu_s`, `sigma_s`.

Images are read by position, never mapped: the memory used is that of one batch, and a file that shrinks is an error
and not the end of the process.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data._archive import Member, contents_offset, first_name, is_archive, members
from adm.data._image_file import MAX_ASPECT
from adm.data._member import MemberReader
from adm.data._npy import MAGIC, raw_bytes, read_header, read_values
from adm.data._open_file import Bytes, OpenFile, fill
from adm.data._sample_documents import MAX_LABEL
from adm.runtime import files
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import one_line, shown_path

__all__ = [
    "MAX_IMAGE_BYTES",
    "NUM_LOOKED_AT",
    "STATISTICS",
    "ArrayImages",
    "NoImagesError",
    "arrays_in",
    "is_array_file",
    "looks_like_float",
]

Pixels = NDArray[np.uint8]

MAX_NPZ_MEMBERS = 256
MAX_IMAGE_BYTES = 2**26
"""Of one image: more than 4096 x 4096 RGB."""
BLOCK_BYTES = 2**26
NUM_LOOKED_AT = 64
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


class NoImagesError(DataError):
    """A file of statistics, without images."""


class ArrayImages:
    """The images in `arr_0` of an .npz, or in a bare .npy: (N, H, W, C), C being 1 or 3.

    uint8 is taken as it is; other integers if all values are 0..255 and not all 0 or 1, which costs one pass when the
    file is opened. Labels are `arr_1`: integers (N,), -1 for none. `sha256` is that of the file's bytes.

    What is stored is read from where it lies, so that a batch in the middle costs nothing extra; what is compressed
    is inflated from its beginning, also for a start in the middle; a compressed array in Fortran order is spooled to
    a temporary file. Each byte is compared with the archive's checksum before the last batch of a full pass is given
    out, and before the first one of a part. Raises DataError or DamagedError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._verified = False
        with OpenFile(path) as file:
            self._identity = file.identity
            listed = arrays_in(file)
            self._member = listed["arr_0"] if "arr_0" in listed else _no_images(path, list(listed))
            reader = MemberReader(file, self._member)
            self._header = read_header(reader)
            self._check_shape()
            self.num: int = self._header.shape[0]
            self.shape: tuple[int, int, int] = self._header.shape[1:]  # type: ignore[assignment]
            self._check_type(file)
            self.labels = self._read_labels(file, listed)
        kind = "npz" if self._member.crc is not None else "npy"
        self.conditions: dict[str, object] = {
            "kind": kind,
            "files": 1,
            "formats": {kind: 1},
            "dtype": str(self._header.dtype),
            "order": "Fortran" if self._header.fortran else "C",
            "compressed": self._member.method != 0,
            "labels": None if self.labels is None else "arr_1",
            "statistics": [name for name in STATISTICS if name in listed],
        }
        if self._header.dtype != np.uint8:
            self._check_values()
        self.conditions["looks_like_float"] = self._looks_like_float()

    @cached_property
    def sha256(self) -> str:
        with OpenFile(self.path, self._identity):
            return files.sha256_file(self.path)

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        """uint8 (n, H, W, C) of the images start .. stop - 1 in order, `size` at once, the last batch short."""
        for batch in self._stored_batches(size, start, self.num if stop is None else min(stop, self.num)):
            yield batch if batch.dtype == np.uint8 else batch.astype(np.uint8)

    def place(self) -> tuple[int, tuple[int, ...]] | None:
        """Where image 0 begins in the file, and what the file is known by, if images lie there one after the other as
        they are; None if they have to be unpacked."""
        if self._member.method or self._header.fortran or self._header.dtype != np.uint8:
            return None
        with OpenFile(self.path, self._identity) as file:
            return MemberReader(file, self._member).start + self._header.offset, self._identity

    def _stored_batches(self, size: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
        if size < 1 or not 0 <= start <= stop:
            raise ValueError(f"batches of {size} from {start} to {stop}: use a size of 1 or more and a range from 0 up")
        whole = (start, stop) == (0, self.num)
        if not whole or self._header.fortran:
            self._verify()
        if self._header.fortran:
            yield from self._fortran_batches(size, start, stop)
            return
        with OpenFile(self.path, self._identity) as file:
            reader = MemberReader(file, self._member)
            reader.skip(self._header.offset + start * self._row_bytes) if start else reader.read(self._header.offset)
            for first in range(start, stop, size):
                batch = np.empty((min(size, stop - first), *self.shape), self._header.dtype)
                reader.readinto(raw_bytes(batch))
                if whole and first + size >= stop:
                    reader.finish()
                    self._verified = True
                yield batch

    @property
    def _row_bytes(self) -> int:
        return math.prod(self._header.shape[1:]) * self._header.dtype.itemsize

    def _verify(self) -> None:
        """Compares the contents with their checksum, once."""
        if not self._verified and self._member.crc is not None:
            with OpenFile(self.path, self._identity) as file:
                MemberReader(file, self._member).finish()
        self._verified = True

    def _fortran_batches(self, size: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """In Fortran order one pixel of all images lies together: blocks of images are gathered pixel by pixel."""
        height, width, channels = self.shape
        block = max(size, min(self.num, BLOCK_BYTES // self._row_bytes) // size * size)
        with self._contents() as (contents, offset):
            for first in range(start, stop, block):
                count = min(block, stop - first)
                pixels = np.empty((channels * width * height, count), self._header.dtype)
                self._gather(contents, offset, first, pixels)
                images = pixels.reshape(channels, width, height, count).transpose(3, 2, 1, 0)
                for k in range(0, count, size):
                    yield np.ascontiguousarray(images[k : k + size])

    def _gather(self, contents: Bytes, offset: int, first: int, pixels: NDArray[Any]) -> None:
        itemsize = self._header.dtype.itemsize
        if pixels.shape[1] == self.num:
            fill(contents, offset, raw_bytes(pixels), self.path)
            return
        for k in range(len(pixels)):
            fill(contents, offset + (k * self.num + first) * itemsize, raw_bytes(pixels[k]), self.path)

    @contextmanager
    def _contents(self) -> Iterator[tuple[Bytes, int]]:
        """The array's elements by position: in the file, or inflated into a temporary one."""
        with OpenFile(self.path, self._identity) as file:
            reader = MemberReader(file, self._member)
            if self._member.method == 0:
                yield file, reader.start + self._header.offset
                return
            files.require_space(tempfile.gettempdir(), self._member.size)
            with tempfile.TemporaryFile() as spool:
                while count := min(2**20, self._member.size - reader.position):
                    spool.write(reader.read(count))
                spool.flush()
                yield _Spooled(spool), self._header.offset

    def _check_shape(self) -> None:
        shape, path = self._header.shape, shown_path(self.path)
        shown = one_line(shape, 60)
        if len(shape) == 3 and shape[2] not in (1, 3):
            raise DataError(f"{path}: images are {shown}, expected (N, H, W, C): save arr[..., None] for grey images")
        if len(shape) != 4:
            raise DataError(f"{path}: images are {shown}, expected (N, H, W, C): save them in that shape")
        if shape[3] not in (1, 3):
            hint = "that looks like (N, C, H, W): save arr.transpose(0, 2, 3, 1)"
            other = "save 1 (grey) or 3 (RGB) channels"
            raise DataError(
                f"{path}: images are {shown}, expected (N, H, W, C); {hint if shape[1] in (1, 3) else other}"
            )
        if shape[0] == 0:
            raise DataError(f"{path} holds no images: its arr_0 is {shown}. Give a file with images")
        height, width = shape[1:3]
        if not min(height, width) or self._row_bytes > MAX_IMAGE_BYTES:
            raise DataError(
                f"{path}: images are {shown}: sides must be at least 1 and an image at most 64 MiB. Scale them"
            )
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise DataError(f"{path}: images are {shown}, longer than {MAX_ASPECT}:1. Crop them")

    def _check_type(self, file: OpenFile) -> None:
        dtype = self._header.dtype
        if dtype.kind in "iu":
            return
        where = f"{shown_path(self.path)}: images are {dtype}"
        if dtype.kind != "f":
            raise DataError(f"{where}, expected uint8: save grey levels of 0..255 as uint8")
        reader = MemberReader(file, self._member)
        reader.read(self._header.offset)
        count = min(4096, self._header.num_bytes // dtype.itemsize)
        with np.errstate(all="ignore"):
            values = np.frombuffer(reader.read(count * dtype.itemsize), dtype).astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            raise DataError(f"{where} without a finite number, expected uint8 (N, H, W, C): make them again")
        low, high = float(values.min()), float(values.max())
        remedy = "x.round().clip(0, 255)"
        if high <= 1:
            remedy = "(x * 255).round().clip(0, 255)" if low >= 0 else "((x + 1) * 127.5).clip(0, 255)"
        raise DataError(
            f"{where} in [{low:.3g}, {high:.3g}], expected uint8 (N, H, W, C) in 0..255: save {remedy}.astype('uint8')"
        )

    def _check_values(self) -> None:
        """That integers of another type are grey levels: all in 0..255, and not a mask or images in 0..1."""
        low, high = 255, 0
        rows = max(1, BLOCK_BYTES // 8 // self._row_bytes)
        for batch in self._stored_batches(rows, 0, self.num):
            low, high = min(low, int(batch.min())), max(high, int(batch.max()))
        if low < 0 or high > 255 or high <= 1:
            raise DataError(
                f"{shown_path(self.path)}: images are {self._header.dtype} in {low}..{high}, expected uint8 in 0..255: "
                "scale them and save uint8"
            )

    def _looks_like_float(self) -> bool:
        """Whether the first images hold nothing but 0 and 1, as float images become when they are cast."""
        count = max(1, min(NUM_LOOKED_AT, self.num, BLOCK_BYTES // 8 // self._row_bytes))
        if self._header.fortran:
            first = next(self.batches(count))
        else:
            with OpenFile(self.path, self._identity) as file:
                reader = MemberReader(file, self._member)
                reader.read(self._header.offset)
                first = np.empty((count, *self.shape), self._header.dtype)
                reader.readinto(raw_bytes(first))
        return looks_like_float(first)

    def _read_labels(self, file: OpenFile, listed: dict[str, Member]) -> NDArray[np.int64] | None:
        if "arr_1" not in listed:
            return None
        reader = MemberReader(file, listed["arr_1"])
        header = read_header(reader)
        where = f"{shown_path(self.path)}: labels (arr_1) are"
        if header.dtype.kind not in "iu":
            raise DataError(f"{where} {header.dtype}, expected integers: save them as int64, or leave them out")
        if header.shape != (self.num,):
            shown = one_line(header.shape, 60)
            raise DataError(f"{where} {shown}, expected ({self.num},) as there are images: correct or leave them out")
        labels = read_values(reader, header)
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high > MAX_LABEL:
            raise DataError(
                f"{where} {low}..{high}, expected 0..{MAX_LABEL}, or -1 for none: correct or leave them out"
            )
        return None if high == -1 else labels.astype(np.int64)


class _Spooled:
    def __init__(self, file: Any) -> None:
        self.file = file

    def readinto_at(self, offset: int, view: memoryview) -> int:
        self.file.seek(offset)
        return int(self.file.readinto(view))


def looks_like_float(images: NDArray[Any]) -> bool:
    """Whether images hold nothing but the values 0 and 1."""
    return bool(images.max() <= 1)


def is_array_file(file: OpenFile) -> bool:
    """Whether a file is to be read as arrays rather than as an archive of pictures."""
    if file.path.suffix.lower() in (".npz", ".npy") or (file.size >= 6 and file.read_at(0, 6) == MAGIC):
        return True
    return first_name(file).endswith(b".npy")


def arrays_in(file: OpenFile) -> dict[str, Member]:
    """The arrays of the file by name, as numpy calls them; a bare .npy is `arr_0`."""
    if file.size >= 6 and file.read_at(0, 6) == MAGIC:
        return {"arr_0": Member("arr_0", 0, file.size, file.size, None, 0)}
    if not is_archive(file):
        what = "is empty" if not file.size else "is no .npz or .npy file, or a truncated one"
        raise DamagedError(
            f"{shown_path(file.path)} is refused: it {what}. Get another copy, or save it with numpy.savez."
        )
    found = members(file, MAX_NPZ_MEMBERS)
    for member in found.values():
        contents_offset(file, member)  # also of what is not read: an array renamed by a flipped bit is missed
    return {name.removesuffix(".npy"): member for name, member in found.items() if name.endswith(".npy")}


def _no_images(path: Path, names: list[str]) -> Member:
    if any(name in STATISTICS for name in names):
        raise NoImagesError(
            f"{shown_path(path)} holds statistics, no images (arr_0): give a file or folder with images"
        )
    held = one_line(", ".join(map(repr, names)), 100)
    remedy = "save the images with numpy.savez(path, images), or with the labels as second array"
    raise DataError(f"{shown_path(path)} holds {held or 'no arrays'}, and no arr_0: {remedy}")
