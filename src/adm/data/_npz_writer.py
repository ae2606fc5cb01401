"""An .npz written batch by batch: the memory used is that of a batch, and equal arrays give equal bytes."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from adm.data._image_source import ImageSource
from adm.data._npy import raw_bytes
from adm.runtime import files

__all__ = ["NpzWriter", "write_reference"]

BATCH_BYTES = 2**26
EPOCH = (1980, 1, 1, 0, 0, 0)


class NpzWriter:
    """Arrays in the order in which they are added: .npy version 1.0 in C order, stored, as numpy.savez writes them."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    @classmethod
    @contextmanager
    def open(cls, path: str | os.PathLike[str], needed: int | None = None) -> Iterator[NpzWriter]:
        """The file takes its name at the end of the block, never if it raises. needed: bytes to come, if known."""
        with files.write_stream(path, needed=needed) as stream, zipfile.ZipFile(stream, "w") as archive:
            yield cls(archive)

    def add(self, name: str, array: NDArray[Any]) -> None:
        self.add_rows(name, [array], array.shape, array.dtype)

    def add_rows(
        self, name: str, batches: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any] | type
    ) -> None:
        """An array of that shape from its parts along the first axis. Raises ValueError when they do not make it up."""
        dtype = np.dtype(dtype)
        entry = zipfile.ZipInfo(f"{name}.npy", EPOCH)
        entry.create_system = 3  # else the bytes depend on the system
        entry.external_attr = 0o600 << 16
        left = math.prod(shape) * dtype.itemsize
        # The size is known, but the archive's writer has to be told before it has seen it.
        with self._archive.open(entry, "w", force_zip64=left >= 2**31 - 2**16) as member:
            header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(member, header)
            for batch in batches:
                if batch.dtype != dtype or batch.shape[1:] != shape[1:] or batch.nbytes > left:
                    raise ValueError(f"{name}: a part is {batch.dtype} {batch.shape}, of an array {dtype} {shape}")
                left -= batch.nbytes
                member.write(raw_bytes(np.ascontiguousarray(batch)))
        if left:
            raise ValueError(f"{name}: {left} bytes are missing of an array {dtype} {shape}")


def write_reference(
    path: str | Path,
    images: ImageSource,
    statistics: Mapping[str, NDArray[np.floating]] | None = None,
) -> None:
    """A reference in OpenAI's layout: `arr_0` the images, `arr_1` their labels if they have any, and `mu`, `sigma`,
    `mu_s`, `sigma_s` if statistics are given. Streamed; equal contents give equal bytes."""
    row_bytes = math.prod(images.shape)
    total = images.num * row_bytes + sum(array.nbytes for array in (statistics or {}).values())
    with NpzWriter.open(path, needed=total) as writer:
        batches = images.batches(max(1, min(1024, BATCH_BYTES // row_bytes)))
        writer.add_rows("arr_0", batches, (images.num, *images.shape), np.uint8)
        if images.labels is not None:
            writer.add("arr_1", images.labels.astype(np.int64))
        for name, array in (statistics or {}).items():
            writer.add(name, np.ascontiguousarray(array))
