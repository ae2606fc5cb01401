"""What a data set is, and how the command line's words for one are understood."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adm.data.folder import Folder
from adm.runtime import lookup
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import nearest, one_line

__all__ = ["Dataset", "open_dataset"]


class Dataset(Protocol):
    """A fixed sequence of labelled images: the same index gives the same image and label for ever.

    A component of this room is a class whose first constructor argument is the text after the colon in
    ``name:text`` and which takes ``channels``.
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
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set that a command line names: a folder of images, "digits", "digits:test", or "my.module".

    split: which part of a built-in data set, as the text after the colon; channels: 1 or 3, None for what the
    data are; progress: called with (files looked at, files in all) while a folder is scanned. A built-in name
    wins over a folder of that name in the working directory (write ./digits for that). Raises DataError.
    """
    name, _, text = spec.partition(":")
    component = _component(spec, name)
    if component is None:
        if split is not None:
            raise DataError(
                f"data {one_line(spec)!r} is a folder, without split {split!r}: give the folder of that split"
            )
        return Folder(spec, channels, progress)
    if text and split is not None and text != split:
        raise DataError(f"data {spec!r} and split {split!r} disagree: give one of them")
    source = text or split
    return component(channels=channels) if source is None else component(source, channels=channels)


def _find(name: str) -> Callable[..., Dataset]:
    component: Callable[..., Dataset] = lookup.find("data", name)
    return component


def _component(spec: str, name: str) -> Callable[..., Dataset] | None:
    """The class that the name stands for; None if it is a folder to be opened."""
    built_in = [n for n in lookup.available("data") if n != "folder"]
    if name in built_in:
        return _find(name)
    if spec and os.path.exists(spec):
        return None
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        try:
            return _find(name)
        except UsageError as error:  # a folder with a dot in its name, or a component that has a fault of its own
            raise DataError(f"data {one_line(spec)!r}: no such folder; and of a component so named: {error}") from error
    accepted = ", ".join(built_in)
    raise DataError(
        f"data {one_line(spec)!r}: no such folder, and no built-in data set{nearest(name, built_in)} "
        f"Give a folder of images, or one of: {accepted} (digits:test is its held-out part)."
    )
