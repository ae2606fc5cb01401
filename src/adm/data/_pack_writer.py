"""Packing: a data set's images, decoded by threads, written shard by shard so that an interruption costs one shard."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from adm.data._dataset import Dataset
from adm.data._image_file import THREADS
from adm.data._images import center_crop, image_size_pair, scaled_for_random_crop
from adm.data._npy import raw_bytes
from adm.data._pack_files import DOCUMENT, FORMAT, LABELS, PackDocument, images_name, sizes_name
from adm.data.pack import is_pack
from adm.runtime import files
from adm.runtime.config import to_dict
from adm.runtime.errors import DataError, StoppedError, UsageError
from adm.runtime.text import shown_path
from adm.runtime.version import version

__all__ = ["check_destination", "pack_images", "working_directory"]

Pixels = NDArray[np.uint8]

LEAST_SHARD = 2**26
"""Bytes."""
MOST_SHARDS = 256
AHEAD_BYTES = 2**28
REQUEST = "request.json"


def pack_images(
    dataset: Dataset,
    out: Path,
    image_size: int | tuple[int, int],
    *,
    for_random_crop: bool = False,
    source: str = "",
    threads: int = THREADS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Path:
    """Writes the pack `out` of the data set's images, ADM's central crop at `image_size`, and returns `out`.

    for_random_crop: instead the whole images, scaled to the largest that random crops to that size are taken of.
    source: how the user named the data. The work lies in `working_directory(out)` until it is complete, and the same
    call continues it. on_progress: called with (images done, in all). Raises UsageError when `out` or the work is of
    something else, StoppedError when asked to stop, DataError and ResourceError.
    """
    if not len(dataset):
        raise DataError(f"{dataset.name} holds no images: give data with images")
    document = _document(dataset, image_size_pair(image_size), for_random_crop, source)
    if is_pack(out):
        return _already(out, document)
    work = working_directory(out)
    with files.lock(work / ".lock", f"pack {shown_path(out)!r}") as lock:
        check_destination(out)
        _begin(work, document, out)
        inside = work / "pack"
        files.make_directory(inside)
        files.remove_partials(inside)
        _write_shards(dataset, document, inside, threads, on_progress, stop_requested)
        labels = np.array([dataset.label(i) for i in range(len(dataset))], np.int64)
        _write_array(inside / LABELS, labels.shape, labels.dtype, [labels])
        files.write_json(inside / DOCUMENT, to_dict(document))
        lock.check()
        files.finish_directory(inside, out)
    files.remove(work)
    return out


def check_destination(out: Path) -> None:
    """Raises UsageError when `out` is there and is no pack, before the data are opened."""
    if out.exists() and not is_pack(out):
        raise UsageError(f"{shown_path(out)} exists and is no pack. Choose another DST, or remove it.")


def working_directory(out: Path) -> Path:
    """Where a pack lies while it is made."""
    return out.with_name(f"{out.name}.packing")


def _document(dataset: Dataset, image_size: tuple[int, int], for_random_crop: bool, source: str) -> PackDocument:
    row_bytes = image_size[0] * image_size[1] * dataset.channels * (2 if for_random_crop else 1)
    rows = max(1, LEAST_SHARD // row_bytes, -(-len(dataset) // MOST_SHARDS))
    starts = range(0, len(dataset), rows)
    return PackDocument(
        format=FORMAT,
        name=dataset.name,
        channels=dataset.channels,
        image_size=image_size,
        for_random_crop=for_random_crop,
        class_names=tuple(dataset.class_names),
        default_flip=dataset.default_flip,
        shards=tuple(min(rows, len(dataset) - start) for start in starts),
        source=source or dataset.name,
        source_fingerprint=dataset.fingerprint,
        source_notes=tuple(getattr(dataset, "notes", ())),
        adm=version(),
        source_stored_channels=getattr(dataset, "stored_channels", None),
    )


def _request(document: PackDocument) -> dict[str, object]:
    """What has to be the same for work to be continued: not how the data are called, nor who began."""
    return to_dict(replace(document, name="", source="", source_notes=(), adm="", source_stored_channels=None))


def _already(out: Path, document: PackDocument) -> Path:
    found = PackDocument.read(out, files.read_manifest(out))
    if _request(found) != _request(document):
        raise UsageError(f"{shown_path(out)} is a pack of other images or another size. Choose another DST.")
    return out


def _begin(work: Path, document: PackDocument, out: Path) -> None:
    request = work / REQUEST
    if not request.exists():
        strange = [path.name for path in work.iterdir() if not path.name.startswith(".")]
        if strange:
            raise UsageError(
                f"{shown_path(work)} is not empty and no unfinished pack. Remove it, or choose another DST."
            )
        height, width = document.image_size
        files.require_space(out.parent, document.num * height * width * document.channels)
        files.write_json(request, _request(document))
    elif files.read_json(request) != files.parse_json(files.json_bytes(_request(document)), request):
        raise UsageError(
            f"{shown_path(work)} was begun with other images or another size. Remove it, or choose another DST."
        )


def _write_shards(
    dataset: Dataset,
    document: PackDocument,
    inside: Path,
    threads: int,
    on_progress: Callable[[int, int], None],
    stop_requested: Callable[[], bool],
) -> None:
    first = 0
    for k, num in enumerate(document.shards):
        path = inside / images_name(k)
        if not path.exists():  # what has its name is complete
            with closing(_prepared(dataset, document, first, first + num, threads)) as images:
                watched = _watched(images, first, document.num, on_progress, stop_requested)
                if document.for_random_crop:
                    _write_with_sizes(path, inside / sizes_name(k), watched)
                else:
                    shape = (num, *document.image_size, document.channels)
                    _write_array(path, shape, np.dtype(np.uint8), watched)
        else:
            on_progress(first + num, document.num)
        first += num


def _watched(
    images: Iterator[Pixels],
    done: int,
    total: int,
    on_progress: Callable[[int, int], None],
    stop_requested: Callable[[], bool],
) -> Iterator[Pixels]:
    for image in images:
        if stop_requested():
            raise StoppedError(f"stopped after {done:,} of {total:,} images; run the same command to continue.")
        yield image
        done += 1
        on_progress(done, total)


def _prepared(
    dataset: Dataset, document: PackDocument, start: int, stop: int, threads: int
) -> Generator[Pixels, None, None]:
    """The images as they are stored, prepared ahead by threads: Pillow decodes and scales without Python's lock."""

    def prepare(i: int) -> Pixels:
        scaled = (scaled_for_random_crop if document.for_random_crop else center_crop)(dataset.image(i), size)
        return np.ascontiguousarray(scaled)

    size = document.image_size
    ahead = max(1, min(4 * threads, AHEAD_BYTES // (size[0] * size[1] * document.channels)))
    pool = ThreadPoolExecutor(threads, "adm-pack")
    try:
        pending = deque(pool.submit(prepare, i) for i in range(start, min(start + ahead, stop)))
        for i in range(start + ahead, stop + ahead):
            image = pending.popleft().result()
            if i < stop:
                pending.append(pool.submit(prepare, i))
            yield image
    finally:
        pool.shutdown(cancel_futures=True)


def _write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]) -> None:
    """An .npy of that shape, version 1.0 in C order, from its parts."""
    with files.write_stream(path, needed=math.prod(shape) * dtype.itemsize) as stream:
        _write_header(stream, shape, dtype)
        for part in parts:
            stream.write(raw_bytes(np.ascontiguousarray(part)))


def _write_with_sizes(path: Path, sizes_path: Path, images: Iterable[Pixels]) -> None:
    """Images of different sizes one after the other. The sizes get their name first: images say that all is there."""
    sizes, total = [], 0
    with files.write_stream(path) as stream:
        _write_header(stream, (0,), np.dtype(np.uint8))
        for image in images:
            sizes.append(image.shape[:2])
            total += image.nbytes
            stream.write(raw_bytes(image))
        stream.seek(0)
        _write_header(stream, (total,), np.dtype(np.uint8))  # as long as before: numpy leaves room for any shape
        table = np.array(sizes, np.int64)
        _write_array(sizes_path, table.shape, table.dtype, [table])


def _write_header(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    npy.write_array_header_1_0(stream, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
