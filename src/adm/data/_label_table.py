"""Which label each file has, as a document says: CSV, the dataset.json of StyleGAN and EDM, and classes.txt."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adm.runtime import files
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import one_line

__all__ = [
    "CLASSES",
    "MAX_LABEL",
    "TABLES",
    "Label",
    "LabelTable",
    "check_text",
    "number",
    "read_classes",
    "read_table",
]

Label = int | str | None
"""A number, the name of a class, or none."""

TABLES = ("labels.csv", "dataset.json")
CLASSES = "classes.txt"
MAX_LABEL = 99_999

_NUMBER = re.compile(r"-?\d+", re.ASCII)
_MAX_DIGITS = 18


@dataclass(frozen=True)
class LabelTable:
    """The label of each file by name; `where` names the table in a message.

    chooses: images that it does not list are left out, with a note, instead of being an error. classes: the names of
    all classes in the order of their labels, if the table knows them.
    """

    where: str
    rows: Mapping[str, Label]
    chooses: bool = False
    classes: tuple[str, ...] | None = None


def read_table(data: bytes, where: str, *, is_json: bool, chooses: bool) -> LabelTable:
    """The table in the contents of a .csv or .json file. Raises DataError.

    CSV: UTF-8, a first line that names the columns, among them `file` and `label`. JSON: {"labels": [[file, label],
    ...]}, the list alone, or {file: label}; {"labels": null} is no labels. Files are named relative to the data.
    """
    try:
        pairs = _json_pairs(data, where) if is_json else _csv_pairs(data, where)
        rows: dict[str, Label] = {}
        for name, label in pairs or ():
            if name in rows:
                raise DataError(f"{where} lists {one_line(name, 60)!r} twice: correct it")
            rows[name] = label
    except DamagedError as error:
        raise DataError(str(error)) from None
    if pairs is not None and not rows:
        raise DataError(f"{where} lists no files: correct or remove it")
    return LabelTable(where, rows, chooses and pairs is not None)


def _csv_pairs(data: bytes, where: str) -> list[tuple[str, Label]]:
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True, skipinitialspace=True))
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8: save it so") from None
    except csv.Error as error:
        raise DataError(f"{where} cannot be read ({one_line(error, 60)}): save it as CSV") from None
    columns = [column.strip() for column in lines[0]] if lines else []
    if columns.count("file") != 1 or columns.count("label") != 1:
        shown = one_line(", ".join(map(repr, columns)), 60) or "none"
        raise DataError(
            f"{where} has the columns {shown}, not file and label: name them so in its first line, or say where the "
            "labels are (--labels-from folders, prefix, none or another table)"
        )
    file, label = columns.index("file"), columns.index("label")
    pairs: list[tuple[str, Label]] = []
    for num, line in enumerate(lines[1:], 2):
        if not any(line):
            continue
        if len(line) != len(columns):
            raise DataError(f"{where}, row {num}: {len(line)} fields under {len(columns)} columns: correct it")
        pairs.append((line[file], line[label].strip() or None))
    return pairs


def _json_pairs(data: bytes, where: str) -> list[tuple[str, Label]] | None:
    document = files.parse_json(data, where)
    if isinstance(document, Mapping) and "labels" in document and not isinstance(document["labels"], str | int):
        document = document["labels"]
        if document is None:
            return None
    entries: Any = list(document.items()) if isinstance(document, Mapping) else document
    if not isinstance(entries, list):
        raise DataError(f'{where} is no table of labels: write {{"labels": [["a.png", 0], ...]}} or {{"a.png": "cat"}}')
    pairs: list[tuple[str, Label]] = []
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise DataError(f"{where} holds {one_line(entry, 40)}: write [file, label], such as ['a.png', 0]")
        name, label = entry
        if isinstance(label, bool) or not isinstance(label, int | str | None):
            what = one_line(repr(label), 30)
            if isinstance(label, list):
                what = "a vector" if all(isinstance(part, int | float) for part in label) else "a list"
            raise DataError(
                f"{where} gives {one_line(name, 50)!r} {what} as label: write a number from 0 on, or the class's name"
            )
        pairs.append((name, label.strip() or None if isinstance(label, str) else label))
    return pairs


def read_classes(data: bytes, where: str) -> tuple[str, ...]:
    """The names of the classes in the order of their labels, one a line. Raises DataError."""
    try:
        lines = [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8: save it so") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{where} names no class: write one on each line, or remove it")
    seen: dict[str, int] = {}
    for num, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{where}, line {num} is empty: write one class on each line")
        name = unicodedata.normalize("NFC", line)
        first = seen.setdefault(name, num)
        if first != num:
            raise DataError(f"{where} names {one_line(name, 40)!r} on the lines {first} and {num}: remove one")
    return tuple(seen)


def number(
    labels: Mapping[str, Label],
    where: str,
    order: tuple[str, ...] | None = None,
    order_where: str = CLASSES,
    *,
    present: Iterable[str] = (),
    may_be_numbers: bool = True,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The class names, and the label of each file as its number among them; no names and -1 where none has a label.

    order: what classes.txt says, if there is one. present: classes that are there without a file. may_be_numbers:
    labels that are all whole numbers, and not all names in `order`, are numbers already, and -1 is none; else they are
    names, ordered by code point in Unicode NFC where `order` does not say. Raises DataError.
    """
    without = [name for name, label in labels.items() if label is None or (may_be_numbers and str(label) == "-1")]
    if labels and len(without) == len(labels):
        return (), dict.fromkeys(labels, -1)
    if without:
        raise DataError(
            f"{where} gives {len(without)} of {len(labels)} images no label, such as {one_line(without[0], 50)!r}: "
            "label all of them, or none"
        )
    texts = {label for label in labels.values() if isinstance(label, str)}
    named = {unicodedata.normalize("NFC", text) for text in texts} | set(present)
    for names_there, there in ((sorted(named), where), (order or (), order_where)):
        for name in names_there:
            check_text(name, there)
    all_numbers = all(_NUMBER.fullmatch(text) for text in texts)
    if may_be_numbers and all_numbers and not (texts and named <= set(order or ())):
        return _numbered(labels, order, order_where, where)
    mixed = next((name for name, label in labels.items() if isinstance(label, int)), None)
    if mixed is not None:
        raise DataError(
            f"{where} has numbers and names as labels, such as {one_line(labels[mixed], 30)} of "
            f"{one_line(mixed, 50)!r} beside {one_line(min(texts), 30)!r}: use one kind"
        )
    if order is not None and (unknown := sorted(named - set(order))):
        shown = ", ".join(repr(one_line(name, 30)) for name in unknown[:2]) + (", ..." if len(unknown) > 2 else "")
        raise DataError(f"{order_where} does not name {len(unknown)} of the classes ({shown}): add or rename them")
    names = tuple(sorted(named)) if order is None else order
    label_of = {name: k for k, name in enumerate(names)}
    return names, {name: label_of[unicodedata.normalize("NFC", str(label))] for name, label in labels.items()}


def check_text(text: str, where: str) -> None:
    """Raises DataError for the name of a class that no file can hold: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"class {one_line(ascii(text), 60)} of {where} is not named in UTF-8: rename it") from None


def _numbered(
    labels: Mapping[str, Label], order: tuple[str, ...] | None, order_where: str, where: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    numbers = {name: _whole(label) for name, label in labels.items()}
    last = MAX_LABEL if order is None else len(order) - 1
    bad = next((name for name, label in numbers.items() if not 0 <= label <= last), None)
    if bad is not None:
        why = "" if order is None else f" as {order_where} names {len(order)} classes"
        label = one_line(labels[bad], 30)
        raise DataError(f"{where} gives {one_line(bad, 50)!r} the label {label}, not 0..{last}{why}: correct it")
    names = order if order is not None else tuple(map(str, range(max(numbers.values()) + 1)))
    return names, numbers


def _whole(label: Label) -> int:
    """The number; of more digits than any label has, one that is too large."""
    digits = str(label or 0)
    return int(digits) if len(digits) <= _MAX_DIGITS else MAX_LABEL + 1
