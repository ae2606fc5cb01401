"""A file read by position: never mapped, never waited for, and known again when it is opened again."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Protocol

from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import shown_path

__all__ = ["Bytes", "OpenFile", "fill"]


class Bytes(Protocol):
    """What can be read by position: a file, or a spooled copy."""

    def readinto_at(self, offset: int, view: memoryview) -> int: ...


class OpenFile:
    """A regular file read by position, from any thread; a context manager.

    identity: of an earlier opening, to refuse a file that has changed since. Raises DataError.
    """

    def __init__(self, path: Path, identity: tuple[int, ...] | None = None) -> None:
        self.path = path
        try:
            # Opening a FIFO would wait for its writer for ever.
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise DataError(
                f"{shown_path(path)} cannot be read ({why}): give the path of a file you may read"
            ) from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise DataError(f"{shown_path(path)} is not a regular file: give a file or a folder of images")
        self.size = status.st_size
        self.identity = (status.st_size, status.st_mtime_ns, status.st_ino)
        if identity is not None and identity != self.identity:
            os.close(fd)
            raise DataError(f"{shown_path(path)} has changed since it was opened: start again when it is complete")
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._lock = Lock()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def readinto_at(self, offset: int, view: memoryview) -> int:
        """Fills the view from the offset on; the number of bytes that there were."""
        done = 0
        try:
            with self._lock:
                self._file.seek(offset)
                while done < len(view):
                    count = self._file.readinto(view[done:])
                    if not count:
                        break
                    done += count
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise DamagedError(f"{shown_path(self.path)} cannot be read ({why}): use another copy") from error
        return done

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly so many bytes. Raises DamagedError when the file ends before."""
        data = bytearray(count)
        if self.readinto_at(offset, memoryview(data)) < count:
            raise DamagedError(f"{shown_path(self.path)} is refused: it is truncated. Get it again.")
        return bytes(data)


def fill(contents: Bytes, offset: int, view: memoryview, path: Path) -> None:
    """The view filled from the offset on. Raises DamagedError when the file ends before."""
    if contents.readinto_at(offset, view) < len(view):
        raise DamagedError(f"{shown_path(path)} is refused: it is truncated. Get it again.")
