"""Pictures to be evaluated: a folder, a zip archive or a sample set, read in place and in a fixed order."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from adm.data import _images
from adm.data._file_tree import FileTree, Read
from adm.data._image_file import THREADS
from adm.data._image_scan import Found, scan
from adm.data._images import Unreadable, center_crop, image_size_pair
from adm.data._listing import class_names, mixed_layout, nfc
from adm.data._npz import MAX_IMAGE_BYTES, NUM_LOOKED_AT, looks_like_float
from adm.data._sample_documents import LABELS, REQUEST, check_listed, label_rows, named_classes, sample_request
from adm.runtime.errors import DataError
from adm.runtime.text import one_line, shown_path

__all__ = ["CROPPED", "ImageFiles"]

Pixels = NDArray[np.uint8]

AHEAD_BYTES = 2**26
CROPPED = "scaled to just cover {0}x{1} (BOX halvings, then BICUBIC) and cropped to its centre, as ADM does"


class ImageFiles:
    """The images of a folder, a zip archive or a sample set, all of one size unless `size` makes them so.

    Layout. As for training: sub-folders are classes, in the order of their names; without any, the images have no
    labels. A `labels.csv` with the columns `file` and `label`, as sample sets have it, gives order and labels
    instead, and must list exactly the images that are there. Otherwise images are in the order of their class and
    then of their names (by code point, NFC); in a sample set by their index. An archive whose files are all in one
    folder is read as that folder.

    Every file is opened once at the beginning: its bytes are hashed, its header and a PNG's checksums are tested,
    and sizes are compared. `sha256` is over the names and the hashes of the files, the same for a folder and its
    archive (and over `size`, if given). A file that changes afterwards is noticed when it is decoded, which threads
    do ahead. Images are RGB unless all are stored as grey; 16 bits, alpha and the rest as in `_images`. `class_names`
    has the name of a label, where folders or `labels.csv` say one.

    size: (H, W) or a number, to scale and crop to; None refuses images of different sizes. progress: called with
    (files looked at, files in all). Raises DataError or DamagedError.
    """

    def __init__(
        self,
        tree: FileTree,
        size: int | tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._tree, self._size = tree, None if size is None else image_size_pair(size)
        self.name = tree.path.resolve().name
        with tree.opened() as read:
            documents = {name: read(name) for name in (LABELS, REQUEST) if name in tree.listing.top}
            rows = label_rows(tree, documents.get(LABELS))
            request = sample_request(tree, documents.get(REQUEST))
            if request is not None and rows is None:
                raise DataError(
                    f"{shown_path(tree.path)} is a sample set without {LABELS}, so fewer images than were asked for: "
                    "let the same adm sample command finish it"
                )
            found = scan(tree, read, progress)
        classes = () if rows is not None else class_names(tree.path, tree.listing.classes)
        loose = [name for name in found if "/" not in name]
        if classes and loose:
            raise DataError(mixed_layout(tree.path, loose, classes))
        self._files, labels = _ordered(tree, found, rows, classes)
        self._hashes = [found[name].sha256 for name in self._files]
        self.labels = None if (labels < 0).all() else labels
        self.class_names = dict(enumerate(classes)) if rows is None else named_classes(documents[LABELS])
        self.num = len(self._files)
        grey = all(file.grey for file in found.values())
        height, width = self._size or _common_size(tree, self._files, found)
        self.shape = (height, width, 1 if grey else 3)
        self.conditions: dict[str, object] = {
            "kind": tree.kind if request is None else "sample set" + (" (zip)" if tree.kind == "zip" else ""),
            "files": self.num,
            "formats": dict(sorted(Counter(file.format for file in found.values()).items())),
            "labels": None if self.labels is None else "class folders" if classes else LABELS,
            "skipped": tree.listing.hidden + len(tree.listing.top) + len(tree.listing.below) - self.num,
            "16_bit_grey": sum(file.wide for file in found.values()),
        }
        if self._size is not None:
            self.conditions["preprocessing"] = CROPPED.format(*self._size)
        if request is not None:
            self.conditions["request"] = request
        self.sha256 = self._digest()
        self.conditions["looks_like_float"] = looks_like_float(self._first())

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        """uint8 (n, H, W, C) of the images start .. stop - 1 in order, `size` at once, the last batch short."""
        stop = self.num if stop is None else min(stop, self.num)
        if size < 1 or not 0 <= start <= stop:
            raise ValueError(f"batches of {size} from {start} to {stop}: use a size of 1 or more and a range from 0 up")
        with closing(self._decoded(start, stop)) as images:
            for first in range(start, stop, size):
                batch = np.empty((min(size, stop - first), *self.shape), np.uint8)
                for k in range(len(batch)):
                    batch[k] = next(images)
                yield batch

    def chosen(self, indices: Sequence[int]) -> ImageFiles:
        """These images alone; the others are not read again."""
        part = copy.copy(self)
        part._files = [self._files[i] for i in indices]
        part._hashes = [self._hashes[i] for i in indices]
        part.labels = None if self.labels is None else self.labels[np.asarray(indices)]
        part.num = len(part._files)
        part.conditions = self.conditions | {"files": part.num, "files_in_all": self.num}
        part.sha256 = part._digest()
        return part

    def _decoded(self, start: int, stop: int) -> Generator[Pixels, None, None]:
        ahead = max(1, min(4 * THREADS, AHEAD_BYTES // int(np.prod(self.shape))))
        with self._tree.opened() as read:
            pool = ThreadPoolExecutor(min(THREADS, ahead), "adm-decode")
            try:
                pending = deque(pool.submit(self._image, read, i) for i in range(start, min(start + ahead, stop)))
                for i in range(start + ahead, stop + ahead):
                    image = pending.popleft().result()
                    if i < stop:
                        pending.append(pool.submit(self._image, read, i))
                    yield image
            finally:
                pool.shutdown(cancel_futures=True)

    def _image(self, read: Read, i: int) -> Pixels:
        name = self._files[i]
        try:
            data = read(name)
            if hashlib.sha256(data).digest() != self._hashes[i]:
                raise Unreadable("changed since it was opened")
            image = _images.to_array(_images.open_image(data), self.shape[2])
            if self._size is not None:
                image = center_crop(image, self._size)
            if image.shape != self.shape:  # turned upright by what stands behind the pixels
                raise Unreadable(f"{image.shape[0]}x{image.shape[1]} beside others of {self.shape[0]}x{self.shape[1]}")
        except Unreadable as error:
            raise DataError(
                f"image {one_line(name, 60)!r} in {shown_path(self._tree.path)} cannot be used ({error}): "
                "replace or remove it, and start again"
            ) from None
        return image

    def _first(self) -> Pixels:
        count = max(1, min(NUM_LOOKED_AT // 4, self.num, AHEAD_BYTES // 8 // int(np.prod(self.shape))))
        return next(self.batches(count, 0, count))

    def _digest(self) -> str:
        digest = hashlib.sha256(f"images/{self.num}/{self._size}\0".encode())
        for name, file_hash in zip(self._files, self._hashes, strict=True):
            digest.update(nfc(name).encode(errors="surrogateescape") + b"\0" + file_hash)
        return digest.hexdigest()


def _ordered(
    tree: FileTree,
    found: dict[str, Found],
    rows: dict[str, int] | None,
    classes: tuple[str, ...],
) -> tuple[list[str], NDArray[np.int64]]:
    """Names and labels in the order of the images."""
    if rows is not None:
        check_listed(tree, found, rows)
        return list(rows), np.array(list(rows.values()), np.int64)
    label_of = {name: k for k, name in enumerate(classes)}
    labelled = sorted((label_of.get(nfc(name.split("/", 1)[0]), -1), nfc(name), name) for name in found)
    return [name for *_, name in labelled], np.array([label for label, *_ in labelled], np.int64)


def _common_size(tree: FileTree, names: list[str], found: dict[str, Found]) -> tuple[int, int]:
    first = found[names[0]].size
    for name in names:
        if found[name].size != first:
            sizes = [f"{one_line(n, 40)!r} is {found[n].size[0]}x{found[n].size[1]}" for n in (names[0], name)]
            raise DataError(
                f"images in {shown_path(tree.path)} have different sizes ({', '.join(sizes)}): make them equal first, "
                "such as by adm reference --size"
            )
    if first[0] * first[1] * 3 > MAX_IMAGE_BYTES:
        raise DataError(
            f"images in {shown_path(tree.path)} are {first[0]}x{first[1]}, too large here: scale them first"
        )
    return first
