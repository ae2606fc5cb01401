"""What training would meet in data: every image decoded once, and everything reported at the same time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data import Dataset, open_dataset
from adm.data._archive import is_archive
from adm.data._dataset import built_in
from adm.data._decoding_scan import Found, ScanRecord
from adm.data._file_tree import FileTree, FolderTree, ZipTree
from adm.data._image_file import THREADS
from adm.data._image_look import Look, looks, pixel_hash
from adm.data._labelled_files import left_out_note
from adm.data._labels import DOCUMENTS
from adm.data._npz import is_array_file
from adm.data._open_file import OpenFile
from adm.data.pack import Pack, is_pack
from adm.runtime.errors import DataError
from adm.runtime.text import one_line
from adm.studies._data_advice import suggestions
from adm.studies._data_findings import (
    Seen,
    counts,
    mean,
    of_classes,
    of_copies,
    of_sizes,
    of_storage,
    of_training,
    wanted_size,
)

__all__ = ["DataReport", "check_data", "refused"]

Progress = Callable[[str, int, int, str], None]

DECODING = "decoding"


@dataclass(frozen=True)
class DataReport:
    """Findings by subject, JSON-able.

    unreadable: the reason by file; all other numbers are of the images that can be read. problems: a line for each
    fault of the data as a whole. Training begins when both are empty. notes: what the data set itself remarks.
    """

    data: dict[str, Any]
    classes: dict[str, Any]
    sizes: dict[str, Any]
    stored: dict[str, Any]
    copies: dict[str, Any]
    training: dict[str, Any]
    speed: dict[str, Any]
    skipped: dict[str, Any]
    unreadable: dict[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    suggestions: tuple[str, ...]


def check_data(
    spec: str,
    labels_from: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    on_progress: Progress = lambda what, done, total, note: None,
) -> DataReport:
    """Looks at all that `adm train --data SPEC` would read. Folders and archives are decoded once by threads, and what
    was found in them is remembered for training.

    image_size: at which training is to be; None for that of the images, if they agree. Raises DataError when there are
    no data to look at, and DamagedError for an archive or a pack that is not whole.
    """
    tree = _tree(spec)
    seen = None if tree is None else _look_at_tree(tree, on_progress)
    dataset: Dataset | None = None
    problems: list[str] = []
    try:
        dataset = open_dataset(
            spec,
            channels=channels,
            labels_from=labels_from,
            skip_bad=True,
            progress=lambda done, total: on_progress("labels", done, total, ""),
        )
    except DataError as error:
        if seen is None:
            raise
        problems.append(str(error))
    if isinstance(dataset, Pack):
        dataset.verify()
    if seen is None:
        assert dataset is not None
        seen = _look_at_dataset(dataset, on_progress)
    return _report(spec, seen, tree, dataset, image_size, labels_from, problems)


def _tree(spec: str) -> FileTree | None:
    """The files of a folder or an archive; None for data of another kind."""
    path = Path(spec)
    if not spec or spec.partition(":")[0] in built_in() or is_pack(path):
        return None
    if os.path.isdir(path):
        return FolderTree(path)
    if not os.path.isfile(path):
        return None
    with OpenFile(path) as file:
        is_zip = is_archive(file) and not is_array_file(file)
    return ZipTree(path) if is_zip else None


def _look_at_tree(tree: FileTree, on_progress: Progress) -> Seen:
    record, stamps = ScanRecord(tree), {}
    names = sorted([*(name for name in tree.listing.top if name not in DOCUMENTS), *tree.listing.below])
    with tree.opened() as read:

        def stamped(name: str) -> bytes:
            stamps[name] = tree.stamp(name)
            return read(name)

        seen = _collected(looks(stamped, names, _shown(on_progress)))
    for name, image in zip(seen.names, seen.looks, strict=True):
        record.add(name, stamps[name], tree.stamp(name), Found(image.sha256, image.grey, image.wide))
    record.save()
    return seen


def _look_at_dataset(dataset: Dataset, on_progress: Progress) -> Seen:
    """Of data in files the files, of others the images as they are given out."""
    tree, paths = getattr(dataset, "tree", None), getattr(dataset, "paths", None)
    if tree is not None and paths is not None:
        with tree.opened() as read:
            return _collected(looks(read, paths, _shown(on_progress)))
    started = time.monotonic()
    seen = Seen()
    step = 64 * THREADS

    def look(i: int) -> tuple[tuple[int, int], bytes] | str:
        try:
            image = dataset.image(i)
        except DataError as error:
            return str(error)
        return image.shape[:2], pixel_hash(image)

    with ThreadPoolExecutor(THREADS, "adm-look") as pool:
        for start in range(0, len(dataset), step):
            part = range(start, min(start + step, len(dataset)))
            for i, verdict in zip(part, pool.map(look, part), strict=True):
                if isinstance(verdict, str):
                    seen.bad[f"image {i}"] = verdict
                    continue
                seen.names.append(f"image {i}")
                seen.sizes.append(verdict[0])
                seen.pixels.append(verdict[1])
            on_progress(DECODING, part.stop, len(dataset), "")
    seen.seconds = time.monotonic() - started
    return seen


def _collected(found: Iterator[tuple[str, Look | str | None]]) -> Seen:
    started = time.monotonic()
    seen = Seen()
    for name, verdict in found:
        if isinstance(verdict, Look):
            seen.names.append(name)
            seen.sizes.append(verdict.size)
            seen.pixels.append(verdict.pixels)
            seen.looks.append(verdict)
        elif verdict is None:
            seen.others.append(name)
        else:
            seen.bad[name] = verdict
    seen.seconds = time.monotonic() - started
    return seen


def _shown(on_progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(DECODING, done, total, "")


def _report(
    spec: str,
    seen: Seen,
    tree: FileTree | None,
    dataset: Dataset | None,
    image_size: int | tuple[int, int] | None,
    labels_from: str | None,
    problems: list[str],
) -> DataReport:
    looked = len(seen.names)
    bad = seen.bad | getattr(dataset, "bad", {})
    if dataset is not None and tree is not None:  # a table may leave files out, good or bad
        paths: tuple[str, ...] = dataset.paths  # type: ignore[attr-defined]
        bad = dict(dataset.bad)  # type: ignore[attr-defined]
        seen = seen.chosen(set(paths))
    labels = _labels(seen, dataset)
    sizes = np.array(seen.sizes, np.int64).reshape(-1, 2)
    wanted = wanted_size(sizes, image_size)
    channels = dataset.channels if dataset else 1 if seen.looks and all(look.grey for look in seen.looks) else 3
    rate = looked / seen.seconds if seen.seconds > 0 else math.inf
    report = DataReport(
        data={
            "path": spec,
            "kind": tree.kind if tree else "pack" if isinstance(dataset, Pack) else "data set",
            "name": dataset.name if dataset else Path(spec).name,
            "fingerprint": dataset.fingerprint if dataset else None,
            "num": len(seen.names),
            "left_out": looked - len(seen.names),
        },
        classes=of_classes(dataset, labels, labels_from),
        sizes=of_sizes(sizes),
        stored=of_storage(seen, channels),
        copies=of_copies(seen, labels),
        training=of_training(sizes, wanted, channels),
        speed={
            "images_per_second": round(rate, 1),
            "seconds": round(seen.seconds, 3),
            "threads": THREADS,
            "bytes_per_image": mean([look.num_bytes for look in seen.looks]),
        },
        skipped={
            "files": len(seen.others) + (tree.listing.hidden if tree else 0),
            "hidden": tree.listing.hidden if tree else 0,
            "suffixes": counts(Path(name).suffix.lower() or "none" for name in seen.others),
        },
        unreadable=dict(sorted(bad.items())),
        problems=tuple(problems),
        notes=_notes(dataset),
        suggestions=(),
    )
    return suggestions(report)


def _notes(dataset: Dataset | None) -> tuple[str, ...]:
    """What the data set remarks, but for the images that only this check has left out: of them it says more."""
    bad: dict[str, str] = getattr(dataset, "bad", {})
    said = left_out_note(bad, len(dataset)) if dataset is not None and bad else None
    return tuple(note for note in getattr(dataset, "notes", ()) if note != said)


def _labels(seen: Seen, dataset: Dataset | None) -> NDArray[np.int64]:
    """(images seen,), -1 where there is none."""
    paths = getattr(dataset, "paths", None)
    if dataset is None:
        return np.full(len(seen.names), -1)
    if paths is None:
        return np.array([dataset.label(int(name.removeprefix("image "))) for name in seen.names], np.int64)
    of_path = {path: dataset.label(i) for i, path in enumerate(paths)}
    return np.array([of_path[name] for name in seen.names], np.int64)


def refused(report: DataReport) -> str | None:
    """Why training would not begin, as one line; None if it would."""
    parts = list(report.problems)
    if report.unreadable:
        count, total = len(report.unreadable), len(report.unreadable) + report.data["num"]
        first = "; ".join(
            f"{one_line(n, 40)!r} ({one_line(why, 50)})" for n, why in list(report.unreadable.items())[:2]
        )
        parts.append(
            f"{count} of {total} images cannot be read, such as {first}: replace or remove them, or leave them out "
            "(adm train: --set data.skip_bad=true; adm data pack: --skip-bad)"
        )
    return " | ".join(parts) if parts else None
