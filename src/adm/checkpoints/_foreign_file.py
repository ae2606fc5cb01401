"""A file of somebody else, opened for reading only, of which nothing is believed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from adm.runtime import files
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import num_bytes, shown_path

__all__ = ["AGAIN", "ForeignFile", "RefusedError", "refused_in"]

AGAIN = "fetch it again"
BLOCK = 1 << 20


class RefusedError(Exception):
    """Why a file is refused and what to do, as the part of a sentence that follows its name."""


@contextmanager
def refused_in(path: Path) -> Iterator[None]:
    """Turns a ``RefusedError`` of the block into a ``DamagedError`` that names the file."""
    try:
        yield
    except RefusedError as error:
        raise DamagedError(f"{shown_path(path)}: {error}.") from error


class ForeignFile:
    """A regular file and its size when it was opened. Whoever shortens it meanwhile gets a refusal, no crash.

    Raises ``DataError`` for a file that is not there or not ours to read; ``RefusedError`` for what is no regular
    file, such as a FIFO, for whose writer nobody waits.
    """

    def __init__(self, path: Path) -> None:
        where = shown_path(path)
        try:
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                raise RefusedError(_irregular(path, mode))
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise DataError(f"{where}: no such file; give the path of a .pt or .safetensors file.") from error
        except ValueError as error:
            raise DataError(f"{where}: no path has a zero byte in it; correct it.") from error
        except OSError as error:
            raise DataError(str(files.explanation(error, "read", path))) from error
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise RefusedError(_irregular(path, status.st_mode))

    def __enter__(self) -> ForeignFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, start: int, length: int) -> bytes:
        """Exactly these bytes; the caller has bounded ``length``."""
        if start < 0 or length < 0 or start + length > self.size:
            raise RefusedError(f"is cut short: bytes {start} to {start + length} of {self.size} are wanted; {AGAIN}")
        data = bytearray(length)
        self.read_into(start, memoryview(data))
        return bytes(data)

    def read_into(self, start: int, target: memoryview) -> None:
        """Fills ``target``, which is bytes."""
        os.lseek(self._fd, start, os.SEEK_SET)
        done = 0
        while done < len(target):
            count = self._read_some(target[done : done + BLOCK])
            if count == 0:
                raise RefusedError(f"ends after {num_bytes(start + done)}, it changed while it was read; {AGAIN}")
            done += count

    def blocks(self, start: int, length: int) -> Iterator[memoryview]:
        """The bytes in pieces, in memory that is used again for the next."""
        buffer = memoryview(bytearray(min(BLOCK, length)))
        for at in range(start, start + length, BLOCK):
            piece = buffer[: min(BLOCK, start + length - at)]
            self.read_into(at, piece)
            yield piece

    def _read_some(self, target: memoryview) -> int:
        try:
            return os.readv(self._fd, [target]) if hasattr(os, "readv") else _read_copying(self._fd, target)
        except OSError as error:
            raise RefusedError(f"cannot be read ({error.strerror}); copy it to another disk and {AGAIN}") from error


def _read_copying(fd: int, target: memoryview) -> int:
    data = os.read(fd, len(target))
    target[: len(data)] = data
    return len(data)


def _irregular(path: Path, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        return "is a device, pipe or socket, no file; give the path of a .pt or .safetensors file"
    if (path / ".metadata").exists():
        return (
            "is a directory of torch.distributed.checkpoint, whose .metadata is a program to whoever reads it; "
            "convert it where it was written: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        )
    if (path / "data.pkl").exists():
        return "is an unpacked .pt file; give the .pt file itself"
    return "is a directory; give the path of a .pt or .safetensors file"
