"""What lies in a folder or an archive of images, before anything in it is opened."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adm.data import _images
from adm.runtime.errors import DataError
from adm.runtime.text import one_line, shown_path

__all__ = [
    "IMAGE_SUFFIXES",
    "Listing",
    "UnreadableImagesError",
    "check_link",
    "class_names",
    "is_hidden",
    "leaving_out_by",
    "list_files",
    "mixed_layout",
    "nfc",
    "no_images",
    "unreadable",
]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"}
NEVER_READ = {"Thumbs.db", "desktop.ini", "__MACOSX"}


class UnreadableImagesError(DataError):
    """Images that cannot be read, where all of the data were asked for.

    said: which, why, and to mend them. way: how the caller can have them left out, None if there is no way.
    """

    def __init__(self, said: str, way: str | None = "skip_bad=True") -> None:
        super().__init__(said if way is None else f"{said}, or leave out with {way}")
        self.said = said


@contextmanager
def leaving_out_by(way: str | None) -> Iterator[None]:
    """Within it, a refusal of unreadable images names the way that whoever asked has, instead of Python's."""
    try:
        yield
    except UnreadableImagesError as error:
        raise UnreadableImagesError(error.said, way) from None


@dataclass(frozen=True)
class Listing:
    """What lies in the folder, as paths relative to it with "/": nothing opened yet."""

    top: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    hidden: int = 0


def list_files(root: Path) -> Listing:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"data {shown_path(root)!r} {what}: give a folder of images")
    top: list[str] = []
    below: list[str] = []
    classes: list[str] = []
    hidden = 0
    for here, folders, names in os.walk(root, onerror=_unlistable):
        at_top = Path(here) == root
        # A link to a folder goes with the files and is refused there: it may lead outside or in a circle.
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        visible = [name for name in folders if name not in links and not is_hidden(name)]
        found = [name for name in [*names, *links] if not is_hidden(name)]
        hidden += len(folders) + len(names) - len(visible) - len(found)
        folders[:] = visible
        prefix = "" if at_top else Path(here).relative_to(root).as_posix() + "/"
        (top if at_top else below).extend(prefix + name for name in found)
        if at_top:
            classes = visible
    return Listing(top, below, classes, hidden)


def _unlistable(error: OSError) -> None:
    why = (error.strerror or str(error)).lower()
    raise DataError(f"folder {shown_path(error.filename)!r} cannot be listed ({why}): allow reading it")


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in NEVER_READ


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def class_names(root: Path, folders: list[str]) -> tuple[str, ...]:
    by_name: dict[str, str] = {}
    for folder in sorted(folders):
        try:
            folder.encode()
        except UnicodeEncodeError:
            raise DataError(f"class folder {folder!a} in {_quoted(root)} is not named in UTF-8: rename it") from None
        other = by_name.setdefault(nfc(folder), folder)
        if other != folder:
            raise DataError(
                f"class folders {other!a} and {folder!a} in {_quoted(root)} are the same name in "
                "Unicode NFC: rename or merge them"
            )
    return tuple(sorted(by_name))


def check_link(path: Path, real_root: Path) -> None:
    if path.is_dir():
        raise _images.Unreadable("a link to a folder")
    if not path.exists():
        raise _images.NotAnImage("a link that leads nowhere")
    if not path.resolve().is_relative_to(real_root):
        raise _images.NotAnImage("a link that leads outside")


def mixed_layout(root: Path, loose: list[str], class_names: tuple[str, ...]) -> str:
    return (
        f"data {_quoted(root)} has images at its top ({_first(loose)}) beside class folders "
        f"({_first(class_names)}): put every image into a class folder, or all into one folder without any"
    )


def unreadable(root: Path, bad: dict[str, str], num_good: int) -> str:
    """bad: the reason why by name."""
    listed = sorted(bad.items())
    shown = "; ".join(f"{one_line(path, 32)!r} ({one_line(why, 40)})" for path, why in listed[:2])
    more = f" and {len(bad) - 2} more" if len(bad) > 2 else ""
    images = "image" if len(bad) == 1 else "images"
    return (
        f"{len(bad)} unreadable {images} of {len(bad) + num_good} in {_quoted(root)}: {shown}{more}: repair or remove"
    )


def no_images(root: Path, num_others: int) -> str:
    others = f", only {num_others} other files" if num_others else ""
    return f"no images in {_quoted(root)}{others}: give a folder with PNG, JPEG, WEBP or BMP files"


def _quoted(root: Path) -> str:
    return repr(one_line(shown_path(root), 70))


def _first(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(repr(one_line(name, 30)) for name in sorted(names)[:2])
    return f"{shown}, ... {len(names)} in all" if len(names) > 2 else shown
