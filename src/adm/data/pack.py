"""A pack: images decoded and scaled once, by `adm data pack`, and read by position ever after."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adm.data._images import image_size_pair
from adm.data._pack_files import DOCUMENT, LABELS, FileRecords, PackDocument, Shard, read_array
from adm.runtime import files
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import shown_path

__all__ = ["Pack"]


def is_pack(path: str | Path) -> bool:
    """Whether `path` is a directory that `adm data pack` has completed."""
    return all(os.path.isfile(os.path.join(path, name)) for name in (DOCUMENT, files.MANIFEST))


class Pack:
    """The images of another data set at one size, in its order and with its labels, with nothing left to decode.

    On opening, the manifest, the labels and the sizes of all files are checked (`verify` reads everything). Images
    are read by position, never mapped: a file that shrinks is an error and not the end of the process.

    path: the directory; channels: those of the pack, or 3 for a grey one. Raises DataError or DamagedError.
    """

    def __init__(self, path: str | Path, channels: int | None = None) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise DataError(f"pack {shown_path(path)!r} is no directory: give one that adm data pack has made")
        self._records = records = files.read_manifest(self.root)
        self.document = document = PackDocument.read(self.root, records)
        if channels not in (None, document.channels, 3):
            raise DataError(
                f"pack {shown_path(path)!r} has {document.channels} channels, not {channels}: "
                f"pack the images again with --channels {channels}"
            )
        self.stored_channels = document.channels
        self.channels = channels or document.channels
        self.class_names = document.class_names
        self.default_flip = document.default_flip
        self.name = document.name
        self._starts = [0, *accumulate(document.shards)]
        self.labels = self._checked_labels(records)
        self.fingerprint = _fingerprint(document, records)
        self._shards = [Shard(self.root, k, document, records) for k in range(len(document.shards))]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def notes(self) -> tuple[str, ...]:
        """One line each, of what the user should know."""
        height, width = self.document.image_size
        how = "for random crops of" if self.document.for_random_crop else "at"
        return (f"packed {how} {height}x{width} from {self.document.source}", *self.document.source_notes)

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (H, W, channels), the caller's own. Raises DataError when the file has changed."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        k = bisect_right(self._starts, i) - 1
        image = self._shards[k].image(i - self._starts[k])
        return image if image.shape[2] == self.channels else image.repeat(self.channels, axis=2)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(record.num_bytes for record in self._records.values())

    def verify(self) -> None:
        """Compares every byte with the manifest. Raises DamagedError, which names the file."""
        files.verify_directory(self.root)

    def fingerprint_at(self, image_size: int | tuple[int, int], random_crop: bool = False) -> str:
        """The fingerprint of the data that were packed where batches are the same bit for bit, else the pack's own."""
        document = self.document
        whole = not (random_crop or document.for_random_crop) and image_size_pair(image_size) == document.image_size
        # Grey that was made of colour is not what the source gives when it is asked for colour.
        same_channels = self.channels == document.channels or document.source_stored_channels == 1
        return document.source_fingerprint if whole and same_channels else self.fingerprint

    def check_use(self, image_size: int | tuple[int, int], random_crop: bool = False) -> None:
        """Raises UsageError where training would be given less than the images hold that were packed."""
        height, width = image_size_pair(image_size)
        packed = self.document.image_size
        name = f"pack {shown_path(self.root)!r}"
        if random_crop and not self.document.for_random_crop:
            raise UsageError(
                f"{name} holds central crops, and random ones are wanted: pack the images again with "
                "--for-random-crop, or --set data.random_crop=false"
            )
        if height > packed[0] or width > packed[1]:
            raise UsageError(
                f"{name} was made for {packed[0]}x{packed[1]}, and {height}x{width} is wanted: train at the size of "
                f"the pack, or pack the images again with --image-size {height}x{width}"
            )

    def _checked_labels(self, records: FileRecords) -> NDArray[np.int64]:
        labels = read_array(self.root, LABELS, records)
        num_classes = len(self.class_names)
        if labels.shape != (len(self),) or labels.min() < -1 or labels.max() >= max(num_classes, 0):
            raise files.DamagedDirectoryError(self.root, LABELS, f"no labels of {len(self)} images")
        return labels.astype(np.int64)


def _fingerprint(document: PackDocument, records: FileRecords) -> str:
    """Over images, labels and class names, not over where they came from."""
    digest = hashlib.sha256(f"pack/{document.image_size}/{document.channels}/{document.for_random_crop}".encode())
    for name in document.class_names:
        digest.update(f"\0{name}".encode())
    for name, record in sorted(records.items()):
        if name != DOCUMENT:
            digest.update(f"\0{name}\0{record.sha256}".encode())
    return digest.hexdigest()
