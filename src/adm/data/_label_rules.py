"""The ways in which the images of a tree get their classes: by folder, by prefix, by a table, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adm.data._file_tree import FileTree
from adm.data._label_table import CLASSES, TABLES, Label, LabelTable, check_text
from adm.data._listing import IMAGE_SUFFIXES, class_names, nfc
from adm.runtime.errors import DataError
from adm.runtime.text import nearest, one_line, shown_path

__all__ = ["DOCUMENTS", "ByFolder", "ByPrefix", "ByTable", "LabelRule", "Unlabelled"]

DOCUMENTS = {*TABLES, CLASSES, "request.json", "cost.json"}
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


class Unlabelled:
    where = "the data"
    present: tuple[str, ...] = ()
    may_be_numbers = False

    def apart(self, tree: FileTree) -> Sequence[str]:
        return ()

    def wanted(self, tree: FileTree) -> Sequence[str]:
        return _files(tree)

    def labels(self, images: Sequence[str], left_out: Iterable[str]) -> Mapping[str, Label]:
        return dict.fromkeys(images)


class ByFolder:
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


class ByPrefix:
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


class ByTable:
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
