"""The files of a folder or of a zip archive by name, read where they are."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from adm.data._archive import members_and_folders
from adm.data._image_file import MAX_FILE_BYTES, not_read
from adm.data._images import NotAnImage, Unreadable
from adm.data._listing import Listing, check_link, is_hidden, list_files
from adm.data._member import MemberReader
from adm.data._open_file import OpenFile
from adm.runtime.text import num_bytes

__all__ = ["FileTree", "FolderTree", "Read", "ZipTree", "check_size", "file_stamp"]

Read = Callable[[str], bytes]
"""The contents of a file by its name, from any thread. Raises Unreadable, NotAnImage or DamagedError."""


class FileTree(Protocol):
    kind: str
    only_images: bool
    """Whether every file is meant to be an image, so that one that is none is a bad one whatever its name."""
    path: Path
    listing: Listing

    def opened(self) -> AbstractContextManager[Read]: ...

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Numbers that change when a file is written to; None where there are none to trust."""


class FolderTree:
    """What is below a folder; links may lead to files within it."""

    kind = "folder"
    only_images = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listing = list_files(path)
        self._real = path.resolve()

    @contextmanager
    def opened(self) -> Iterator[Read]:
        yield self._read

    def stamp(self, name: str) -> tuple[int, ...] | None:
        return file_stamp(self.path / name)

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            if path.is_symlink():
                check_link(path, self._real)
            status = path.stat()
            # Opening a FIFO would wait for its writer for ever.
            if not stat.S_ISREG(status.st_mode):
                raise NotAnImage("not a regular file")
            check_size(status.st_size)
            with path.open("rb") as stream:
                return stream.read(MAX_FILE_BYTES)
        except OSError as error:
            raise not_read(path, error) from None


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """The size and times of a file; the time of change, unlike that of modification, cannot be set back."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class ZipTree:
    """What is in a zip archive. A folder that encloses all of it is left out of the names."""

    kind = "zip"
    only_images = False

    def __init__(self, path: Path) -> None:
        self.path = path
        with OpenFile(path) as file:
            self._identity = file.identity
            found, folders = members_and_folders(file)
        self._stamp = file_stamp(path)
        shown = {name: member for name, member in found.items() if not any(map(is_hidden, name.split("/")))}
        folders = [name for name in folders if not any(map(is_hidden, name.split("/")))]
        prefix = _enclosing([*shown, *folders])
        self._members = {name.removeprefix(prefix): member for name, member in shown.items()}
        names = list(self._members)
        top = [name for name in names if "/" not in name]
        below = [name for name in names if "/" in name]
        within = [*below, *(name.removeprefix(prefix) for name in folders)]
        classes = sorted({name.split("/", 1)[0] for name in within} - {""})
        self.listing = Listing(top, below, classes, len(found) - len(shown))

    def stamp(self, name: str) -> tuple[int, ...] | None:
        member = self._members.get(name)
        if member is None or member.crc is None or self._stamp is None:
            return None
        return *self._stamp, member.offset, member.size, member.crc

    @contextmanager
    def opened(self) -> Iterator[Read]:
        with OpenFile(self.path, self._identity) as file:

            def read(name: str) -> bytes:
                member = self._members[name]
                check_size(member.size)
                reader = MemberReader(file, member)
                data = reader.read(member.size)
                reader.finish()
                return data

            yield read


def _enclosing(names: list[str]) -> str:
    """ "photos/" when every name begins with it."""
    first = {name.split("/", 1)[0] for name in names if "/" in name}
    return f"{first.pop()}/" if len(first) == 1 and all("/" in name for name in names) else ""


def check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise Unreadable(f"{num_bytes(size)} are more than {num_bytes(MAX_FILE_BYTES)}")
    if size == 0:
        raise NotAnImage("empty file")
