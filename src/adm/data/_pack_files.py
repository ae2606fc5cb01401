"""What lies in a pack: `pack.json`, `labels.npy`, and shards `images-00000.npy` of images one after the other.

Of central crops a shard is uint8 (n, H, W, C). Of images that random crops are to be taken of, which keep their
aspect, it is uint8 (bytes,), and `sizes-00000.npy` is int64 (n, 2), the (H, W) of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data._images import image_size_pair
from adm.data._member import MemberReader
from adm.data._npy import raw_bytes, read_header, read_values
from adm.data._npz import arrays_in
from adm.data._open_file import OpenFile, fill
from adm.runtime import files
from adm.runtime.config import from_dict
from adm.runtime.errors import UsageError

__all__ = ["DOCUMENT", "LABELS", "FileRecords", "PackDocument", "Shard", "images_name", "read_array", "sizes_name"]

DOCUMENT = "pack.json"
LABELS = "labels.npy"
FORMAT = 1
FileRecords = Mapping[str, files.FileRecord]


@dataclass(frozen=True)
class PackDocument:
    """What `pack.json` says.

    image_size: (H, W) at which the images are to be used; for_random_crop: they are larger than that, with their own
    aspect. shards: how many images each holds. source: as the command line named it, and `source_fingerprint` its
    own; source_notes: what was remarked of it; source_stored_channels: those that it has when it is not asked for any,
    None where it does not say. adm: the version that packed.
    """

    format: int
    name: str
    channels: int
    image_size: tuple[int, int]
    for_random_crop: bool
    class_names: tuple[str, ...]
    default_flip: bool
    shards: tuple[int, ...]
    source: str
    source_fingerprint: str
    source_notes: tuple[str, ...]
    adm: str
    source_stored_channels: int | None = None

    def __post_init__(self) -> None:
        image_size_pair(self.image_size)
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}: this version reads format {FORMAT}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}: must be 1 or 3")
        if not self.shards or min(self.shards) < 1:
            raise ValueError("shards must hold images")

    @property
    def num(self) -> int:
        return sum(self.shards)

    @classmethod
    def read(cls, root: Path, records: FileRecords) -> PackDocument:
        """Raises DamagedError when it is not the one of the manifest, or of another version."""
        data = files.read_recorded(root, DOCUMENT, _record(root, DOCUMENT, records))
        try:
            return from_dict(cls, files.parse_json(data, root / DOCUMENT), DOCUMENT)
        except UsageError as error:
            raise files.DamagedDirectoryError(root, DOCUMENT, str(error).rstrip(".")) from None


def images_name(k: int) -> str:
    return f"images-{k:05d}.npy"


def sizes_name(k: int) -> str:
    return f"sizes-{k:05d}.npy"


class Shard:
    """One file of images. Raises DamagedError, and DataError when the file has changed since."""

    def __init__(self, root: Path, k: int, document: PackDocument, records: FileRecords) -> None:
        self.path = root / images_name(k)
        self._channels = document.channels
        num = document.shards[k]
        if document.for_random_crop:
            self._sizes = read_array(root, sizes_name(k), records)
            if self._sizes.shape != (num, 2) or self._sizes.min() < 1:
                raise files.DamagedDirectoryError(root, sizes_name(k), f"no sizes of {num} images")
        else:
            self._sizes = np.broadcast_to(np.array(document.image_size, np.int64), (num, 2))
        num_bytes = self._sizes.prod(axis=1) * self._channels
        self._ends = np.cumsum(num_bytes)
        record = _record(root, self.path.name, records)
        if not self.path.is_file():
            raise files.DamagedDirectoryError(root, self.path.name, "missing")
        with OpenFile(self.path) as file:
            size, self._identity = file.size, file.identity
        if size != record.num_bytes or size <= self._ends[-1]:
            raise files.DamagedDirectoryError(root, self.path.name, f"{size:,} of {record.num_bytes:,} bytes")
        self._first = size - int(self._ends[-1])  # behind the header

    def image(self, j: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C), the caller's own, of the j-th image in the file."""
        height, width = self._sizes[j]
        image = np.empty((height, width, self._channels), np.uint8)
        with OpenFile(self.path, self._identity) as file:
            fill(file, self._first + int(self._ends[j]) - image.nbytes, raw_bytes(image), self.path)
        return image


def read_array(root: Path, name: str, records: FileRecords) -> NDArray[Any]:
    """A small array of the pack, checked against the manifest. Raises DamagedError."""
    files.check_recorded(root, name, _record(root, name, records))
    with OpenFile(root / name) as file:
        reader = MemberReader(file, arrays_in(file)["arr_0"])
        return read_values(reader, read_header(reader))


def _record(root: Path, name: str, records: FileRecords) -> files.FileRecord:
    if name not in records:
        raise files.DamagedDirectoryError(root, name, "not in the manifest")
    return records[name]
