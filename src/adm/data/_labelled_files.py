"""Image files with labels as a data set: the one behind folders, zip archives, WebDataset shards and the Hub."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adm.data import _images
from adm.data._decoding_scan import Scan, ScanRecord, scan
from adm.data._file_tree import FileTree
from adm.data._images import Unreadable
from adm.data._label_table import CLASSES, LabelTable, number
from adm.data._labels import DOCUMENTS, LabelRule, class_order, label_rule, refuse_look_alikes
from adm.data._listing import UnreadableImagesError, mixed_layout, nfc, no_images, unreadable
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["LabelledFiles", "content_fingerprint"]

NUM_EMPTY_SHOWN = 5
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class LabelledFiles:
    """The images of a tree, each decoded once at construction, with the labels that a rule gives them.

    Images are in the order of their labels and then of their names by Unicode code point (NFC). `fingerprint` is over
    the class names, and each image's label and the hash of its file: the same for a folder, a copy of it and its
    archive, another one when a byte of an image changes. `paths`, `labels` (N,) and `hashes` (N, 32) are in order;
    `bad` has the reasons why images were left out, `skipped` counts files that are no images, and `notes` (one line
    each) is what the user should know.

    channels: 1, 3, or None for 1 if all images are stored as grey and 3 otherwise. progress: called with (files
    looked at, in all). labels_from, own: see `label_rule`. skip_bad: leave unreadable images out, which are refused
    otherwise. remember: believe what an earlier scan found in unchanged files. Raises DataError, UsageError or
    DamagedError.
    """

    default_flip = True

    def __init__(
        self,
        tree: FileTree,
        channels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        labels_from: str | None = None,
        skip_bad: bool = False,
        own: LabelTable | None = None,
        remember: bool = True,
    ) -> None:
        if channels not in (None, 1, 3):
            raise UsageError(f"channels {channels}: image files give 1 (grey) or 3 (RGB)")
        self.tree = tree
        self.name = tree.path.resolve().name
        record = ScanRecord(tree) if remember else None
        order_where = f"{CLASSES} in {shown_path(tree.path)}"
        with tree.opened() as read:
            rule = label_rule(tree, read, labels_from, own)
            order = class_order(tree, read) if own is None or own.classes is None else own.classes
            wanted = list(rule.wanted(tree))
            _refuse_colliding(rule, order, order_where)
            loose = scan(tree, read, rule.apart(tree), skip_bad=skip_bad)
            if loose.images:
                raise DataError(mixed_layout(tree.path, list(loose.images), tuple(rule.present)))
            if loose.bad:
                raise DataError(unreadable(tree.path, loose.bad, 0))
            found = scan(tree, read, wanted, progress, record, skip_bad=skip_bad)
        if found.bad and not skip_bad:
            raise UnreadableImagesError(unreadable(tree.path, found.bad, len(found.images)))
        if not found.images:
            raise DataError(no_images(tree.path, len(found.others) + len(found.bad)))
        if record is not None:
            record.save()

        labels = rule.labels(list(found.images), found.bad)
        names, numbers = number(
            labels, rule.where, order, order_where, present=rule.present, may_be_numbers=rule.may_be_numbers
        )
        if order is None:
            refuse_look_alikes(names, rule.where)
        self.class_names = names
        self.paths = tuple(sorted(found.images, key=lambda path: (numbers[path], nfc(path), path)))
        self.labels = np.array([numbers[path] for path in self.paths], np.int64)
        hashes = b"".join(found.images[path].sha256 for path in self.paths)
        self.hashes = np.frombuffer(hashes, np.uint8).reshape(len(self.paths), 32)
        self.stored_channels = 1 if all(image.grey for image in found.images.values()) else 3
        self.channels = channels or self.stored_channels
        self.bad = found.bad
        self.skipped = tree.listing.hidden + len(loose.others) + len(found.others)
        self.fingerprint = content_fingerprint(names, self.labels, self.hashes)
        left_out = len(set(tree.listing.top + tree.listing.below) - DOCUMENTS - set(wanted) - set(loose.others))
        self.notes = tuple(self._notes(found, [*loose.others, *found.others], left_out, rule, order is not None))

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (H, W, channels). Raises DataError if the file is no longer what was scanned."""
        try:
            with self.tree.opened() as read:
                data = read(self.paths[i])
        except Unreadable as error:
            raise DataError(f"{self._named(i)} cannot be read any more ({error}): restore it, or start again") from None
        if hashlib.sha256(data).digest() != self.hashes[i].tobytes():
            raise DataError(f"{self._named(i)} changed since the scan: restore it, or start again")
        try:
            return _images.to_array(_images.open_image(data), self.channels)
        except Unreadable as error:
            raise DataError(f"{self._named(i)} cannot be read ({error}): replace or remove it") from None

    def label(self, i: int) -> int:
        return int(self.labels[i])

    def _named(self, i: int) -> str:
        return f"image {one_line(self.paths[i], 60)!r} in {shown_path(self.tree.path)}"

    def _notes(self, found: Scan, others: list[str], unlisted: int, rule: LabelRule, ordered: bool) -> Iterator[str]:
        yield from _class_notes(self.class_names, self.labels, ordered)
        if found.bad:
            yield left_out_note(found.bad, len(self))
        if unlisted:
            yield f"{unlisted} files that {rule.where} does not list are left out"
        if self.skipped:
            suffixes = sorted({Path(path).suffix.lower() for path in others} - {""})
            kinds = f" ({one_line(', '.join(suffixes))})" if suffixes else ""
            yield f"{self.skipped} files skipped that are hidden or no PNG, JPEG, WEBP or BMP{kinds}"
        if num_wide := sum(image.wide for image in found.images.values()):
            yield f"{num_wide} images of 16-bit grey, scaled to 8 bits (v / 257)"
        yield from _twins(self.paths, self.labels, self.hashes)
        if not self.class_names:
            yield from _prefix_note(self.paths)


def left_out_note(bad: dict[str, str], num_good: int) -> str:
    """bad: the reason why by name. num_good: the images that are not left out."""
    num, first = len(bad), sorted(bad.items())[:2]
    reasons = "; ".join(f"{one_line(name, 40)!r} ({one_line(why, 40)})" for name, why in first)
    images = "image is" if num == 1 else "images are"
    more = f" and {num - 2} more" if num > 2 else ""
    return f"{num} unreadable {images} left out ({100 * num / (num + num_good):.2g} %): {reasons}{more}"


def content_fingerprint(names: tuple[str, ...], labels: NDArray[np.int64], hashes: NDArray[np.uint8]) -> str:
    """Over the class names, and each image's label and the hash of what it is made from, in order."""
    digest = hashlib.sha256(f"images/{len(names)}/{len(labels)}\0".encode())
    for name in names:
        digest.update(f"{name}\0".encode())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(hashes.tobytes())
    return digest.hexdigest()


def _refuse_colliding(rule: LabelRule, order: tuple[str, ...] | None, order_where: str) -> None:
    """What class folders alone tell to be wrong, before anything is decoded."""
    if order is None:
        refuse_look_alikes(rule.present, rule.where)
    elif rule.present:
        number({}, rule.where, order, order_where, present=rule.present, may_be_numbers=False)


def _class_notes(names: tuple[str, ...], labels: NDArray[np.int64], ordered: bool) -> Iterator[str]:
    present = set(labels.tolist())
    empty = [k for k in range(len(names)) if k not in present]
    if len(empty) <= NUM_EMPTY_SHOWN:
        for k in empty:
            yield f"class {one_line(names[k])!r} has no images; it keeps its label {k}"
    else:
        shown = ", ".join(repr(one_line(names[k], 20)) for k in empty[:NUM_EMPTY_SHOWN])
        yield f"{len(empty)} of {len(names)} classes have no images ({shown}, ...); they keep their labels"
    if not ordered and all(map(_NUMBER.fullmatch, names)):
        moved = [k for k, name in enumerate(sorted(names, key=float)) if name != names[k]]
        for k in moved[:1]:
            both = f"label {k} is {one_line(names[k], 20)!r}, {k + 1} is {one_line(names[k + 1], 20)!r}"
            yield f"class names are numbers but ordered as text: {both}"


def _twins(paths: tuple[str, ...], labels: NDArray[np.int64], hashes: NDArray[np.uint8]) -> Iterator[str]:
    """Of images whose files are the same byte for byte."""
    keys = np.ascontiguousarray(hashes).view("V32").reshape(-1)
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    original = first[of]
    twins = np.flatnonzero(original != np.arange(len(paths)))
    if not len(twins):
        return
    across = twins[labels[twins] != labels[original[twins]]]
    k = int(across[0] if len(across) else twins[0])
    example = f"such as {one_line(paths[original[k]], 40)!r} and {one_line(paths[k], 40)!r}"
    under = f", {len(across)} of them under another label" if len(across) else ""
    yield f"{len(twins)} images are copies of others{under}, {example}"


def _prefix_note(paths: tuple[str, ...]) -> Iterator[str]:
    """That file names look as guided-diffusion wants them."""
    prefixes = Counter(path.rsplit("/", 1)[-1].partition("_")[0] for path in paths if "_" in path.rsplit("/", 1)[-1])
    if sum(prefixes.values()) == len(paths) and 2 <= len(prefixes) <= len(paths) // 2 and "" not in prefixes:
        shown = one_line(", ".join(f"{name}_" for name in sorted(prefixes)[:3]), 50)
        yield f"no classes, but {len(prefixes)} prefixes of file names ({shown}...): classes by --labels-from prefix"
