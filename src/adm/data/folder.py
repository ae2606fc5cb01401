"""A folder of images: one sub-folder for each class, or all images in the folder itself (unconditional)."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adm.data import _images
from adm.data._listing import (
    IMAGE_SUFFIXES,
    check_link,
    class_names,
    list_files,
    mixed_layout,
    nfc,
    no_images,
    unreadable,
)
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["Folder"]

Progress = Callable[[int, int], None]

SCAN_THREADS = min(8, os.cpu_count() or 1)


class Folder:
    """The images below a folder, each decoded once at construction so that training does not meet a bad one.

    Layout. Sub-folders are classes, ordered by the Unicode code points of their NFC names ("10" before "2");
    images at any depth below one belong to it; an empty one keeps its label, so that a part of the data has
    the labels of the whole. Without sub-folders the images are unconditional. What counts is the content
    (PNG, JPEG, WEBP, BMP), not the extension; but a file that is called .png, .jpg, ... has to be readable.
    Hidden files, Thumbs.db and files that are no images are skipped: ``skipped`` counts them, and ``notes``
    (one line each) says this and what else the user should know. Links may lead to files within the folder.

    path: the folder; channels: 1, 3, or None for 1 if all images are stored as grey and 3 otherwise;
    progress: called with (files looked at, files in all). Raises DataError.
    """

    default_flip = True

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None = None, progress: Progress | None = None
    ) -> None:
        if channels not in (None, 1, 3):
            raise UsageError(f"channels {channels}: image files give 1 (grey) or 3 (RGB)")
        self.root = Path(path)
        listing = list_files(self.root)
        self.class_names = class_names(self.root, listing.classes)
        top = _scan(self.root, listing.top, None if self.class_names else progress)
        if self.class_names and (top.images or top.bad):
            raise DataError(mixed_layout(self.root, [*top.images, *top.bad], self.class_names))
        scan = _scan(self.root, listing.below, progress) if self.class_names else top
        if scan.bad:
            raise DataError(unreadable(self.root, scan.bad, len(scan.images)))
        if not scan.images:
            raise DataError(no_images(self.root, len(scan.others)))

        label_of = {name: k for k, name in enumerate(self.class_names)}
        labelled = sorted((label_of.get(nfc(p.split("/", 1)[0]), -1), nfc(p), p) for p in scan.images)
        self.paths = tuple(path for _, _, path in labelled)
        self.labels = np.array([label for label, _, _ in labelled], np.int64)
        self.sizes = np.array([scan.images[path].num_bytes for path in self.paths], np.int64)
        self.channels = channels or (1 if all(found.grey for found in scan.images.values()) else 3)
        self.name = self.root.resolve().name
        others = scan.others if scan is top else [*top.others, *scan.others]
        self.skipped = listing.hidden + len(others)
        num_wide = sum(found.wide for found in scan.images.values())
        self.notes = tuple(self._notes(others, num_wide))
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (H, W, channels). Raises DataError if the file is no longer what was scanned."""
        path = self.root / self.paths[i]
        try:
            now = path.stat().st_size
        except OSError:
            now = None
        if now != self.sizes[i]:
            what = "is gone" if now is None else f"went from {self.sizes[i]} to {now} bytes"
            raise DataError(f"image {shown_path(path)!r} {what} since the scan: restore it, or start again")
        return _images.decode(path, self.channels)

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def _fingerprint(self) -> str:
        """Over class names, relative paths (NFC: the same on every file system) and sizes in bytes."""
        digest = hashlib.sha256(f"folder/{len(self.class_names)}/{len(self.paths)}\0".encode())
        for name in self.class_names:
            digest.update(f"{name}\0".encode())
        for path, size in zip(self.paths, self.sizes, strict=True):
            digest.update(f"{nfc(path)}\0{size}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _notes(self, others: list[str], num_wide: int) -> Iterator[str]:
        names = self.class_names
        present = set(self.labels.tolist())
        for k, name in enumerate(names):
            if k not in present:
                yield f"class {one_line(name)!r} has no images; it keeps its label {k}"
        if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
            yield f"class names are numbers but ordered as text: label 0 is {names[0]!r}, 1 is {names[1]!r}"
        if self.skipped:
            suffixes = sorted({Path(path).suffix.lower() for path in others} - {""})
            kinds = f" ({one_line(', '.join(suffixes))})" if suffixes else ""
            yield f"{self.skipped} files skipped that are hidden or no PNG, JPEG, WEBP or BMP{kinds}"
        if num_wide:
            yield f"{num_wide} images of 16-bit grey, scaled to 8 bits (v / 257)"


@dataclass(frozen=True, slots=True)
class _Found:
    num_bytes: int
    grey: bool
    wide: bool


@dataclass(frozen=True)
class _Scan:
    images: dict[str, _Found] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def _scan(root: Path, paths: list[str], progress: Progress | None) -> _Scan:
    """Every file opened and, if it is an image, decoded."""
    scan = _Scan()
    real_root = root.resolve()
    slice_length = 64 * SCAN_THREADS
    # What Pillow remarks on odd files is either in the verdict or of no account.
    with warnings.catch_warnings(), ThreadPoolExecutor(SCAN_THREADS, "adm-scan") as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), slice_length):
            part = paths[start : start + slice_length]
            verdicts = pool.map(lambda path: _look_at(root, real_root, path), part)
            for path, verdict in zip(part, verdicts, strict=True):
                if isinstance(verdict, _Found):
                    scan.images[path] = verdict
                elif verdict is None:
                    scan.others.append(path)
                else:
                    scan.bad[path] = verdict
            if progress is not None:
                progress(start + len(part), len(paths))
    return scan


def _look_at(root: Path, real_root: Path, relative: str) -> _Found | str | None:
    """What the file is: an image, the reason why it is a bad one, or None if it is something else."""
    path = root / relative
    try:
        if path.is_symlink():
            check_link(path, real_root)
        image = _images.open_image(path)
        return _Found(path.stat().st_size, _images.is_grey(image), _images.is_wide(image))
    except _images.NotAnImage as error:
        return str(error) if path.suffix.lower() in IMAGE_SUFFIXES else None
    except (_images.Unreadable, OSError) as error:
        return str(error)
