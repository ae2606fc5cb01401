"""What a data set is, and how the command line's words for one are understood."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adm.data._archive import is_archive
from adm.data._listing import is_hidden
from adm.data._npz import is_array_file
from adm.data._npz_dataset import ArrayDataset
from adm.data._open_file import OpenFile
from adm.data._tar import is_tar
from adm.data.folder import Folder
from adm.runtime import lookup
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import nearest, one_line, shown_path

__all__ = ["Dataset", "built_in", "open_dataset", "refuse_within"]

Progress = Callable[[int, int], None]


class Dataset(Protocol):
    """A fixed sequence of labelled images: the same index gives the same image and label for ever.

    A component of this room is a class whose first constructor argument is the text after the colon in
    ``name:text`` and which takes ``channels``; ``progress``, ``labels_from``, ``skip_bad`` and ``split`` as in
    `open_dataset` are given to those that take them.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """sha256 of what defines the data: a run refuses to continue on data with another one."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label; empty: unconditional."""

    @property
    def channels(self) -> int:
        """Channels of what ``image`` returns: 1 grey, 3 RGB."""

    @property
    def default_flip(self) -> bool:
        """Whether a mirrored image is as good an example, unless the user says otherwise."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C), upright, at its own size."""

    def label(self, i: int) -> int:
        """0 .. len(class_names) - 1, or -1 without classes."""


def open_dataset(
    spec: str,
    split: str | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    labels_from: str | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """The data set that a command line names.

    spec: a folder of images, a .zip of one, an .npz or .npy of arrays, a directory that `adm data pack` made, "digits",
    "digits:test", "hf:NAME", "webdataset:PATTERN", or "my.module". split: which part of a built-in data set, as the
    text after the colon. channels: 1 or 3, None for what the data are. progress: called with (images looked at, in
    all). labels_from: "folders", "prefix", "none", the path of a CSV or JSON table, or None for what the data say.
    skip_bad: leave unreadable images out instead of refusing them. A built-in name wins over a folder of that name in
    the working directory (write ./digits for that). Raises DataError, UsageError or DamagedError.
    """
    name, _, text = spec.partition(":")
    component = _component(spec, name)
    if component is None:
        if split is not None:
            raise DataError(
                f"data {one_line(spec)!r} is a path, without split {split!r}: give the folder or file of that split"
            )
        return _at_path(Path(spec), channels, progress, labels_from, skip_bad)
    taken = inspect.signature(component).parameters
    source: tuple[str, ...] = (text,) if text else ()
    options: dict[str, Any] = {"channels": channels}
    if split is not None and next(iter(taken), None) != "split" and "split" in taken:
        options["split"] = split
    elif split is not None:
        if text and text != split:
            raise DataError(f"data {spec!r} and split {split!r} disagree: give one of them")
        source = (split,)
    if labels_from is not None and "labels_from" not in taken:
        raise DataError(f"data {one_line(spec)!r} bring their own labels: leave --labels-from out")
    offered = {"progress": progress, "labels_from": labels_from, "skip_bad": skip_bad}
    options |= {key: value for key, value in offered.items() if key in taken}
    _refuse_without_source(spec, taken, source)
    return component(*source, **options)


def refuse_within(out: Path, data: str, labels_from: str | None, option: str) -> None:
    """Raises UsageError where what is written to `out` would become part of the data, as below a folder of images.

    labels_from: as in `open_dataset`; of a table's files no other is one. option: what else is to be chosen.
    """
    if data.partition(":")[0] in built_in() or not data or not os.path.isdir(data):
        return
    below = os.path.relpath(os.path.realpath(out), os.path.realpath(data)).split(os.sep)
    if below[0] == ".." or (below != ["."] and any(map(is_hidden, below))):
        return
    if labels_from is None or Path(labels_from).suffix.lower() not in (".csv", ".json"):
        raise UsageError(
            f"{shown_path(out)} lies within the data {shown_path(data)!r}, and would become a part of them. "
            f"Choose another {option}."
        )


def built_in() -> list[str]:
    """Names that win over a folder of that name; `folder` itself is what paths are opened by."""
    return [name for name in lookup.available("data") if name != "folder"]


def _at_path(
    path: Path, channels: int | None, progress: Progress | None, labels_from: str | None, skip_bad: bool
) -> Dataset:
    if path.is_dir():
        from adm.data.pack import Pack, is_pack

        if not is_pack(path):
            return Folder(path, channels, progress, labels_from, skip_bad)
        if labels_from is not None:
            raise DataError(f"{shown_path(path)} is a pack, with labels of its own: pack it with other --labels-from")
        return Pack(path, channels)
    with OpenFile(path) as file:
        is_array, is_zip, begin = is_array_file(file), is_archive(file), file.read_at(0, min(file.size, 4))
        tar = is_tar(file)
    if is_array:
        return ArrayDataset(path, channels, progress, labels_from)
    if is_zip or begin[:2] == b"PK" or path.suffix.lower() == ".zip":
        return Folder(path, channels, progress, labels_from, skip_bad)
    if tar:
        raise DataError(f"{shown_path(path)} is a tar archive: write webdataset:{shown_path(path)}, or unpack it")
    raise DataError(
        f"{shown_path(path)} is a file, not a folder, and no .zip, .npz or .npy: give one of these, or a folder"
    )


def _refuse_without_source(spec: str, taken: Any, source: tuple[str, ...]) -> None:
    first = next(iter(taken.values()), None)
    if not source and first is not None and first.default is first.empty and first.kind == first.POSITIONAL_OR_KEYWORD:
        raise DataError(f"data {one_line(spec)!r}: say which, as in {one_line(spec.rstrip(':'))}:{first.name.upper()}")


def _find(name: str) -> Callable[..., Dataset]:
    component: Callable[..., Dataset] = lookup.find("data", name)
    return component


def _component(spec: str, name: str) -> Callable[..., Dataset] | None:
    """The class that the name stands for; None if it is a path to be opened."""
    if name in built_in():
        return _find(name)
    if spec and os.path.lexists(spec):
        return None
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        try:
            return _find(name)
        except UsageError as error:  # a folder with a dot in its name, or a component that has a fault of its own
            raise DataError(f"data {one_line(spec)!r}: no such folder; and of a component so named: {error}") from error
    accepted = ", ".join(built_in())
    raise DataError(
        f"data {one_line(spec)!r}: no such folder, and no built-in data set{nearest(name, built_in())} "
        f"Give a folder of images, a .zip, an .npz, or one of: {accepted} (digits:test is its held-out part)."
    )
