"""Where the classes of a tree of images come from: folders, prefixes of file names, a table, or nowhere."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from adm.data._file_tree import FileTree, Read
from adm.data._image_file import MAX_FILE_BYTES
from adm.data._images import Unreadable
from adm.data._label_rules import DOCUMENTS, ByFolder, ByPrefix, ByTable, LabelRule, Unlabelled
from adm.data._label_table import CLASSES, TABLES, LabelTable, read_classes, read_table
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
_SELECTORS = re.compile("[\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Marks without a shape of their own: the grapheme joiner, and variation selectors, as behind a heart in colour."""


def label_rule(tree: FileTree, read: Read, labels_from: str | None, own: LabelTable | None = None) -> LabelRule:
    """The rule that `labels_from` names; None for what the data say: own, a table at the top, else folders.

    own: what data of their own kind say of themselves. Raises DataError.
    """
    if labels_from is None:
        return _as_the_data_say(tree, read, own)
    if labels_from == "none":
        return Unlabelled()
    if labels_from == "prefix":
        return ByPrefix(tree)
    if labels_from == "folders":
        if not tree.listing.classes:
            raise DataError(f"{_data(tree)} has no class folders: put images into some, or use another --labels-from")
        return ByFolder(tree)
    return ByTable(_chosen_table(tree, read, labels_from))


def _as_the_data_say(tree: FileTree, read: Read, own: LabelTable | None) -> LabelRule:
    if own is not None:
        return ByTable(own)
    tables = [name for name in TABLES if name in tree.listing.top]
    if len(tables) > 1:
        raise DataError(f"{_data(tree)} has both {' and '.join(tables)}: say which with --labels-from, or remove one")
    if tables:
        table = _inside(tree, read, tables[0], chooses=False)
        return ByTable(table) if table.rows else Unlabelled()
    return ByFolder(tree) if tree.listing.classes else Unlabelled()


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


def refuse_look_alikes(names: Iterable[str], where: str) -> None:
    """DataError where two names are told apart by case, blanks or invisible characters alone.

    Such classes become one where the file system ignores case, and a user who asks for one may get the other.
    """
    seen: dict[str, str] = {}
    for name in names:
        shown = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        visible = _SELECTORS.sub("", "".join(shown))
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
