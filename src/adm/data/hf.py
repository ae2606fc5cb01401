"""Data sets of the Hugging Face Hub, or saved by its `datasets` library; `pip install "adm-diffusion[hub]"`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from adm.data._file_tree import Read, check_size
from adm.data._images import NotAnImage
from adm.data._label_table import Label, LabelTable
from adm.data._labelled_files import LabelledFiles
from adm.data._listing import Listing
from adm.runtime.errors import AdmError, DataError, UsageError
from adm.runtime.text import nearest, one_line

__all__ = ["HuggingFace"]

DEFAULT_SPLIT = "train"


class HuggingFace(LabelledFiles):
    """The images of `hf:NAME`, `hf:NAME@CONFIG` or `hf:NAME:SPLIT`, or of a folder that `save_to_disk` wrote.

    What is in the local cache is used, also without a network. The image column is the one of the feature type Image,
    and the label column the one of ClassLabel, with its names; labels_from "none" leaves labels out, and the name of a
    column, of whole numbers or text too, chooses it. Files are decoded here and not by `datasets`, so that the rules
    for 16 bits, alpha and rotation are those of folders. split: "train" unless the source says one.

    The rest is as `LabelledFiles` says. Raises DataError or UsageError.
    """

    def __init__(
        self,
        source: str,
        channels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        labels_from: str | None = None,
        skip_bad: bool = False,
        *,
        split: str | None = None,
    ) -> None:
        tree = _Rows(source, split)
        own = tree.label_table(labels_from)
        super().__init__(tree, channels, progress, "none" if own is None else None, skip_bad, own)
        self.name = tree.spec


class _Rows:
    """Rows of a table as files: the name of a row is its number."""

    kind = "Hugging Face"
    only_images = True

    def __init__(self, source: str, split: str | None) -> None:
        name, config, split = _parts(source, split)
        self.spec = f"hf:{name}{f'@{config}' if config else ''}:{split}"
        self.path = Path(self.spec)
        library = _library()
        self._table = _opened(library, self.spec, name, config, split)
        features: dict[str, Any] = dict(self._table.features)
        images = [column for column, feature in features.items() if isinstance(feature, library.Image)]
        if len(images) != 1:
            held = one_line(", ".join(features), 80)
            what = f"{len(images)} columns of images" if images else "no column of images"
            raise DataError(f"data {self.spec!r} has {what} (columns: {held}): keep one, of the feature type Image")
        self.column = images[0]
        self.class_labels = {c: feature for c, feature in features.items() if isinstance(feature, library.ClassLabel)}
        self.others = [column for column in features if column != self.column]
        self._images = self._table.select_columns([self.column]).cast_column(self.column, library.Image(decode=False))
        self._lock = Lock()
        width = len(str(max(0, len(self._table) - 1)))
        self._row_of = {f"row {k:0{width}}": k for k in range(len(self._table))}
        self.listing = Listing(list(self._row_of), [], [], 0)
        fingerprint = str(getattr(self._table, "_fingerprint", ""))
        self._stamp = (
            int(fingerprint, 16) if fingerprint and all(c in "0123456789abcdef" for c in fingerprint) else None
        )

    @contextmanager
    def opened(self) -> Iterator[Read]:
        yield self._read

    def stamp(self, name: str) -> tuple[int, ...] | None:
        return None if self._stamp is None else (self._stamp,)

    def label_table(self, labels_from: str | None) -> LabelTable | None:
        """The labels of the column that is asked for, or of the only one of ClassLabel."""
        if labels_from == "none":
            return None
        column = labels_from
        if column is None:
            if len(self.class_labels) > 1:
                choice = ", ".join(self.class_labels)
                raise DataError(f"data {self.spec!r} has several label columns: give --labels-from one of {choice}")
            column = next(iter(self.class_labels), None)
        if column is None:
            return None
        if column not in self.others:
            guess, held = nearest(column, self.others), one_line(", ".join(self.others), 80)
            raise DataError(
                f"--labels-from {one_line(column, 40)!r} is no column of {self.spec!r}{guess} Use none or: {held}."
            )
        names = tuple(self.class_labels[column].names) if column in self.class_labels else None
        where = f"column {one_line(column, 40)} of {self.spec}"
        values = self._table.select_columns([column])[:][column]
        rows: dict[str, Label] = {
            name: _label(value, names, where) for name, value in zip(self._row_of, values, strict=True)
        }
        return LabelTable(where, rows, classes=names)

    def _read(self, name: str) -> bytes:
        with self._lock:  # its readers are not documented to be safe to share
            cell = self._images[self._row_of[name]][self.column]
        if cell is None:
            raise NotAnImage("no image in this row")
        data = cell["bytes"]
        if data is None:
            try:
                data = Path(cell["path"]).read_bytes()
            except (OSError, TypeError) as error:
                raise NotAnImage(one_line(error, 60)) from None
        check_size(len(data))
        return bytes(data)


def _parts(source: str, split: str | None) -> tuple[str, str | None, str]:
    """(name, config, split) of "name@config:split"."""
    name, colon, given = source.rpartition(":")
    if not colon or os.path.isdir(source):
        name, given = source, ""
    if given and split is not None and given != split:
        raise DataError(f"data 'hf:{one_line(source)}' and split {split!r} disagree: give one of them")
    name, _, config = name.partition("@") if not os.path.isdir(name) else (name, "", "")
    if not name:
        raise DataError("data 'hf:' names no data set: write hf:NAME, hf:NAME@CONFIG or hf:NAME:SPLIT")
    return name, config or None, given or split or DEFAULT_SPLIT


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            'hf: data need the package datasets, which is missing: pip install "adm-diffusion[hub]"'
        ) from None
    return datasets


def _opened(library: Any, spec: str, name: str, config: str | None, split: str) -> Any:
    """The table of a split."""
    try:
        if not os.path.isdir(name):
            return library.load_dataset(name, config, split=split)
        if not _was_saved(name):
            return library.load_dataset(os.path.abspath(name), config, split=split)
        table = library.load_from_disk(name)
    except AdmError:
        raise
    except Exception as error:  # of the library, of the network, of a file: anything
        why = one_line(str(error).strip() or type(error).__name__, 140)
        raise DataError(f"data {one_line(spec, 60)!r} cannot be opened ({why}): check name, config and split") from None
    if isinstance(table, dict):
        if split not in table:
            raise DataError(f"data {spec!r}: the folder has no split {split!r}: use one of {', '.join(table)}")
        return table[split]
    if split != DEFAULT_SPLIT and split != str(table.split):
        raise DataError(f"data {spec!r}: the folder holds one table, without splits: leave {split!r} out")
    return table


def _was_saved(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _label(value: object, names: tuple[str, ...] | None, where: str) -> Label:
    if names is not None and isinstance(value, int) and value >= 0:
        if value >= len(names):
            raise DataError(f"{where} holds {value}, but has {len(names)} classes: correct it")
        return value
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise DataError(f"{where} holds {one_line(value, 40)}: use a column of class labels, whole numbers or text")
