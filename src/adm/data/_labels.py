"""Where the classes of a tree of images come from: folders, prefixes of file names, a table, or nowhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adm.data._file_tree import FileTree, Read
from adm.data._image_file import MAX_FILE_BYTES
from adm.data._images import Unreadable
from adm.data._label_table import CLASSES, TABLES, Label, LabelTable, check_text, read_classes, read_table
from adm.data._listing import IMAGE_SUFFIXES, class_names, nfc
from adm.runtime import files
from adm.runtime.errors import DataError
from adm.runtime.text import nearest, one_line, shown_path

__all__ = [
    "DOCUMENTS",
    "SOURCES",
    "LabelRule",
    "class_order",
    "describe_difference",
    "label_rule",
    "refuse_look_alikes",
]

SOURCES = ("folders", "prefix", "none")
DOCUMENTS = {*TABLES, CLASSES, "request.json"}
"""Files at the top of the data that are no part of the images."""


class LabelRule(Protocol):
    @property
    def where(self) -> str:
        """What says it, for a message."""

    @property
    def present(self) -> tuple[str, ...]:
        """Classes that are there whether or not an image is."""

    @property
    def may_be_numbers(self) -> bool:
        """Whether a label such as "3" is a number rather than a class of that name."""

    def apart(self, tree: FileTree) -> Sequence[str]:
        """Files among which no image may be."""

    def wanted(self, tree: FileTree) -> Sequence[str]:
        """Files to be opened. Raises DataError for what the names alone tell to be wrong."""

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        """The label of each image to be used. left_out: files that are bad images."""


def label_rule(tree: FileTree, read: Read, labels_from: str | None, own: LabelTable | None = None) -> LabelRule:
    """The rule that `labels_from` names; None for what the data say: own, a table at the top, else folders.

    own: what data of their own kind say of themselves. Raises DataError.
    """
    if labels_from is None:
        return _as_the_data_say(tree, read, own)
    if labels_from == "none":
        return _Unlabelled()
    if labels_from == "prefix":
        return _ByPrefix(tree)
    if labels_from == "folders":
        if not tree.listing.classes:
            raise DataError(f"{_data(tree)} has no class folders: put images into some, or use another --labels-from")
        return _ByFolder(tree)
    return _ByTable(_chosen_table(tree, read, labels_from))


def _as_the_data_say(tree: FileTree, read: Read, own: LabelTable | None) -> LabelRule:
    if own is not None:
        return _ByTable(own)
    tables = [name for name in TABLES if name in tree.listing.top]
    if len(tables) > 1:
        raise DataError(f"{_data(tree)} has both {' and '.join(tables)}: say which with --labels-from, or remove one")
    if tables:
        table = _inside(tree, read, tables[0], chooses=False)
        return _ByTable(table) if table.rows else _Unlabelled()
    return _ByFolder(tree) if tree.listing.classes else _Unlabelled()


def _chosen_table(tree: FileTree, read: Read, labels_from: str) -> LabelTable:
    suffix = Path(labels_from).suffix.lower()
    if suffix not in (".csv", ".json"):
        guess = nearest(labels_from, SOURCES).removesuffix(".")
        choice = f"one of {', '.join(SOURCES)}, or a .csv or .json file"
        raise DataError(f"--labels-from {one_line(labels_from, 50)!r} is none of the sources{guess}: use {choice}")
    if os.path.lexists(labels_from):
        data = files.read_bytes(labels_from, MAX_FILE_BYTES)
        return read_table(data, shown_path(labels_from), is_json=suffix == ".json", chooses=True)
    if labels_from in tree.listing.top or labels_from in tree.listing.below:
        return _inside(tree, read, labels_from, chooses=True)
    raise DataError(
        f"--labels-from {shown_path(labels_from)!r}: no such file, here or in {_data(tree)}: check the path"
    )


def _inside(tree: FileTree, read: Read, name: str, chooses: bool) -> LabelTable:
    where = f"{one_line(name, 40)} in {shown_path(tree.path)}"
    return read_table(_document(read, name, where), where, is_json=name.lower().endswith(".json"), chooses=chooses)


def class_order(tree: FileTree, read: Read) -> tuple[str, ...] | None:
    """What classes.txt at the top of the data says."""
    if CLASSES not in tree.listing.top:
        return None
    where = f"{CLASSES} in {shown_path(tree.path)}"
    return read_classes(_document(read, CLASSES, where), where)


def _document(read: Read, name: str, where: str) -> bytes:
    try:
        return read(name)
    except Unreadable as error:
        raise DataError(f"{where} cannot be read ({error}): restore or remove it") from None


class _Unlabelled:
    where = "the data"
    present: tuple[str, ...] = ()
    may_be_numbers = False

    def apart(self, tree: FileTree) -> Sequence[str]:
        return ()

    def wanted(self, tree: FileTree) -> Sequence[str]:
        return _files(tree)

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        return dict.fromkeys(images)


class _ByFolder:
    may_be_numbers = False

    def __init__(self, tree: FileTree) -> None:
        self.where = f"folders of {shown_path(tree.path)}"
        self.present = class_names(tree.path, tree.listing.classes)

    def apart(self, tree: FileTree) -> Sequence[str]:
        return [name for name in tree.listing.top if name not in DOCUMENTS]

    def wanted(self, tree: FileTree) -> Sequence[str]:
        return tree.listing.below

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        return {name: name.split("/", 1)[0] for name in images}


class _ByPrefix:
    """What stands before the first underscore of the file's name, whatever folder it is in. Source: ADM's code."""

    present: tuple[str, ...] = ()
    may_be_numbers = False

    def __init__(self, tree: FileTree) -> None:
        self.where = f"file names in {shown_path(tree.path)}"

    def apart(self, tree: FileTree) -> Sequence[str]:
        return ()

    def wanted(self, tree: FileTree) -> Sequence[str]:
        names = _files(tree)
        self._check([name for name in names if _is_named_image(name)])
        return names

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        self._check(images)
        return {name: _prefix(name) for name in images}

    def _check(self, names: Sequence[str]) -> None:
        without = [name for name in names if not _prefix(name)]
        if without:
            raise DataError(
                f"{len(without)} of {len(names)} {self.where} have no class before an underscore, such as "
                f"{one_line(min(without), 50)!r}: rename them (cat_1.png), or use another --labels-from"
            )
        for text in {_prefix(name) for name in names}:
            check_text(text, self.where)


class _ByTable:
    present: tuple[str, ...] = ()
    may_be_numbers = True

    def __init__(self, table: LabelTable) -> None:
        self.table, self.where = table, table.where
        self._row_of: dict[str, str] = {}

    def apart(self, tree: FileTree) -> Sequence[str]:
        return ()

    def wanted(self, tree: FileTree) -> Sequence[str]:
        there = _files(tree)
        exact, composed = set(there), {nfc(name): name for name in there}
        for row in self.table.rows:
            name = row if row in exact else composed.get(nfc(_tidy(row)))
            if name is None:
                self._refuse_missing(there, exact, composed)
            assert name is not None
            first = self._row_of.setdefault(name, row)
            if first != row:
                both = f"{one_line(first, 40)!r} and {one_line(row, 40)!r}"
                raise DataError(f"{self.where} lists one file twice, as {both}: correct it")
        if self.table.chooses:
            return list(self._row_of)
        self._refuse_unlisted([name for name in there if name not in self._row_of and _is_named_image(name)])
        return there

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        if not self.table.chooses:
            self._refuse_unlisted([name for name in images if name not in self._row_of])
        others = set(self._row_of) - set(images) - set(left_out)
        if others:
            raise DataError(
                f"{self.where} lists {_files_that(len(others), 'that is no image', 'that are no images')}, such as "
                f"{one_line(min(others), 60)!r}: correct it"
            )
        return {name: self.table.rows[self._row_of[name]] for name in images}

    def _refuse_missing(self, there: Sequence[str], exact: set[str], composed: Mapping[str, str]) -> None:
        missing = [row for row in self.table.rows if row not in exact and nfc(_tidy(row)) not in composed]
        hint = nearest(missing[0], sorted(there)[:2000]).removesuffix(".")
        raise DataError(
            f"{self.where} lists {_files_that(len(missing), 'that is not there', 'that are not there')}, such as "
            f"{one_line(missing[0], 60)!r}{one_line(hint, 90)}: correct it, or bring them back"
        )

    def _refuse_unlisted(self, names: Sequence[str]) -> None:
        if names:
            raise DataError(
                f"{self.where} does not list {len(names)} of the images, such as {one_line(min(names), 60)!r}: add "
                "them, or name the table after --labels-from to leave them out"
            )


def _files(tree: FileTree) -> list[str]:
    return [name for name in tree.listing.top if name not in DOCUMENTS] + list(tree.listing.below)


def _files_that(count: int, one: str, many: str) -> str:
    return f"1 file {one}" if count == 1 else f"{count} files {many}"


def _is_named_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _prefix(name: str) -> str:
    """Empty without an underscore."""
    before, underscore, _ = name.rsplit("/", 1)[-1].partition("_")
    return nfc(before) if underscore else ""


def _tidy(row: str) -> str:
    return re.sub(r"^(\./)+", "", row.replace("\\", "/"))


def refuse_look_alikes(names: Iterable[str], where: str) -> None:
    """DataError where two names are told apart by case, blanks or invisible characters alone.

    Such classes become one where the file system ignores case, and a user who asks for one may get the other.
    """
    seen: dict[str, str] = {}
    for name in names:
        visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        other = seen.setdefault(" ".join(visible.casefold().split()), name)
        if other != name:
            raise DataError(
                f"classes {_ascii(other)} and {_ascii(name)} of {where} differ only in case, blanks or invisible "
                f"characters: rename or merge them, or name both in {CLASSES} if they are two"
            )


def _ascii(name: str) -> str:
    return one_line(ascii(name), 60)


def describe_difference(before: Sequence[str], after: Sequence[str]) -> str:
    """How the classes of data differ from those of a run, in words; empty when they do not."""
    if tuple(before) == tuple(after):
        return ""
    if not before or not after:
        return "the run has classes, the data have none" if before else "the data have classes, the run has none"
    gone, new = _listed(set(before) - set(after)), _listed(set(after) - set(before))
    if gone or new:
        parts = [f"{names} {what}" for names, what in ((gone, "missing"), (new, "new")) if names]
        return f"of the classes, {' and '.join(parts)} ({len(before)} before, {len(after)} now)"
    k = next(k for k, (old, now) in enumerate(zip(before, after, strict=True)) if old != now)
    return f"the classes are in another order: label {k} was {before[k]!r}, is now {after[k]!r}"


def _listed(names: set[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(repr(one_line(name, 30)) for name in sorted(names)[:3])
    return f"{shown}{', ...' if len(names) > 3 else ''} {'is' if len(names) == 1 else 'are'}"


def _data(tree: FileTree) -> str:
    return f"data {one_line(shown_path(tree.path), 70)!r}"
