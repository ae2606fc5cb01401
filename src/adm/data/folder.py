"""A folder or a zip archive of images, with the labels that folders, file names or a table give them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from adm.data._file_tree import FolderTree, ZipTree
from adm.data._labelled_files import LabelledFiles

__all__ = ["Folder"]


class Folder(LabelledFiles):
    """The images below a folder or in a zip archive, each decoded once at construction: training meets no bad one.

    Classes come from a `labels.csv` or `dataset.json` at the top, if there is one, else from the sub-folders: images at
    any depth below one belong to it, and an empty one keeps its label, so that a part of the data has the labels of the
    whole. Without either, images are unconditional. labels_from says otherwise: "folders", "prefix" (of the file name,
    up to the first underscore, as guided-diffusion has it), "none", or the path of a CSV or JSON table. Classes are
    ordered by the Unicode code points of their NFC names ("10" before "2"), unless a `classes.txt` at the top, one name
    a line, gives their order.

    What counts is the content (PNG, JPEG, WEBP, BMP), not the extension; but a file that is called .png, .jpg, ... has
    to be readable. Hidden files, Thumbs.db and files that are no images are skipped. Links may lead to files within the
    folder. An archive is read in place; a folder that encloses all of it is left out of the names.

    The rest is as `LabelledFiles` says. Raises DataError, UsageError or DamagedError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        labels_from: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        path = Path(path)
        tree = ZipTree(path) if path.is_file() else FolderTree(path)
        super().__init__(tree, channels, progress, labels_from, skip_bad)
