"""What a sample set says of its images: `labels.csv` and `request.json`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from adm.data._file_tree import FileTree
from adm.runtime import files
from adm.runtime.errors import DataError
from adm.runtime.text import one_line, shown_path

__all__ = ["LABELS", "MAX_LABEL", "REQUEST", "check_listed", "label_rows", "named_classes", "sample_request"]

LABELS, REQUEST = "labels.csv", "request.json"
MAX_LABEL = 999_999


def label_rows(tree: FileTree, data: bytes | None) -> dict[str, int] | None:
    """The labels by file in the order of a `labels.csv` of ours; None when there is none."""
    if data is None:
        return None
    where = f"{LABELS} in {shown_path(tree.path)}"
    try:
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        if not {"file", "label"} <= set(table.fieldnames or ()):
            return None
        rows: dict[str, int] = {}
        for row in table:
            name, label = row["file"], int(row["label"] or "-1")
            if name in rows:
                raise DataError(f"{where} lists {one_line(name, 60)!r} twice: correct it")
            if not -1 <= label <= MAX_LABEL:
                raise DataError(
                    f"{where} gives {one_line(name, 60)!r} the label {label}, not 0..{MAX_LABEL}: correct it"
                )
            rows[name] = label
    except (csv.Error, ValueError, TypeError) as error:
        raise DataError(f"{where} cannot be read ({one_line(error, 80)}): correct or remove it") from None
    return rows


def named_classes(data: bytes) -> dict[int, str]:
    """Names by label, as far as a `labels.csv` that `label_rows` has read has a column `class` that says them."""
    table = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    return {int(row["label"]): row["class"] for row in table if row["label"] and row.get("class")}


def check_listed(tree: FileTree, found: Iterable[str], rows: dict[str, int]) -> None:
    """Raises DataError unless the rows list exactly the images that were found."""
    where = f"{LABELS} in {shown_path(tree.path)}"
    there = set(found)
    missing = [name for name in rows if name not in there]
    if missing:
        shown = one_line(missing[0], 60)
        raise DataError(f"{where} lists {len(missing)} images that are not there, such as {shown!r}: restore them")
    unlisted = sorted(there - set(rows))
    if unlisted:
        shown = one_line(unlisted[0], 60)
        raise DataError(
            f"{where} does not list {len(unlisted)} of the images, such as {shown!r}: let adm sample finish the set, "
            "or remove what does not belong to it"
        )


def sample_request(tree: FileTree, data: bytes | None) -> object | None:
    """What the images of a sample set were asked for with."""
    if data is None:
        return None
    request = files.parse_json(data, tree.path / REQUEST)
    return request if isinstance(request, dict) else None
