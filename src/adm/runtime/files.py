"""Files that are there in full or not at all: every file of the project is written through here.

A file is written beside its name, synced, and renamed; a directory likewise, with a ``MANIFEST.json`` that
holds the size and sha256 of each file and a hash of itself. Whenever the process is killed or the disk fills
up, what had a final name before still has it, unchanged. What is left over is called ``*.partial-<8 hex
digits>``.

Errors: ``ResourceError`` when the disk cannot, ``UsageError`` when the path cannot, ``DamagedError`` when
contents are not what was written; each is one line. The operations themselves are in ``_disk``.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from adm.runtime import _disk
from adm.runtime._directories import (
    MANIFEST,
    DamagedDirectoryError,
    FileRecord,
    check_recorded,
    finish_directory,
    new_directory,
    read_manifest,
    read_recorded,
    verify_directory,
)
from adm.runtime._disk import explanation, make_directory
from adm.runtime._lock import Lock, lock
from adm.runtime._reading import parse_json, read_bytes, read_json, sha256_file
from adm.runtime.text import one_line

__all__ = [
    "MANIFEST",
    "DamagedDirectoryError",
    "FileRecord",
    "Lock",
    "append_bytes",
    "append_line",
    "check_recorded",
    "explanation",
    "extend",
    "finish_directory",
    "json_bytes",
    "lock",
    "make_directory",
    "move",
    "new_directory",
    "new_file",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_manifest",
    "read_recorded",
    "remove",
    "remove_partials",
    "require_space",
    "require_writable",
    "sha256_file",
    "verify_directory",
    "write_bytes",
    "write_json",
    "write_stream",
    "write_text",
]


def write_bytes(path: _disk.PathLike, data: bytes) -> None:
    """Replaces or creates the file, in full or not at all; missing parent directories are made."""
    with write_stream(path, needed=len(data)) as stream:
        stream.write(data)


def write_text(path: _disk.PathLike, text: str) -> None:
    """``write_bytes`` of the text as UTF-8, line ends as they are."""
    write_bytes(path, text.encode())


def write_json(path: _disk.PathLike, obj: object) -> None:
    """``write_bytes`` of the object as indented JSON, keys in its order. NaN and infinity: ``ValueError``."""
    write_bytes(path, json_bytes(obj))


def json_bytes(obj: object) -> bytes:
    """The bytes that ``write_json`` writes."""
    try:
        return (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # names of files that are not UTF-8 come as lone surrogates
        return (json.dumps(obj, indent=2, allow_nan=False) + "\n").encode()


@contextmanager
def write_stream(path: _disk.PathLike, *, needed: int | None = None) -> Iterator[BinaryIO]:
    """A seekable binary file that takes the name ``path`` at the end of the block, never if it raises.

    needed: bytes to come, for the message when the disk is full.
    """
    path = _disk.absolute(path)
    make_directory(path.parent)
    partial = _disk.partial_name(path, hidden=True)
    try:
        with _disk.open_new(partial, path, needed) as stream:
            yield stream
        with _disk.explained("write", path, needed):
            _disk.rename(partial, path)
            _disk.fsync_directory(path.parent)
    except BaseException:
        _disk.discard(partial)
        raise


@contextmanager
def new_file(path: _disk.PathLike, *, needed: int | None = None) -> Iterator[BinaryIO]:
    """A file that must not exist yet, written under its own name: for use inside ``new_directory``."""
    path = _disk.absolute(path)
    with _disk.open_new(path, path, needed) as stream:
        yield stream


@contextmanager
def extend(path: _disk.PathLike, size: int) -> Iterator[BinaryIO]:
    """A binary file that is cut or made to hold its first ``size`` bytes and then grows; missing parents are made.

    For what is to survive an interruption under a name that says that it is not whole: all that was written stays,
    also when the block raises.
    """
    path = _disk.absolute(path)
    make_directory(path.parent)
    with _disk.open_kept(path, size) as stream:
        yield stream


def append_line(path: _disk.PathLike, text: str, *, durable: bool = False) -> None:
    """Adds one line in one write; a torn line that a killed process left at the end is cut off first.

    durable: also wait until the line is on the disk (some milliseconds).
    """
    if "\n" in text:
        raise ValueError(f"a line holds no line break: {one_line(text)!r}")
    path, data = _disk.absolute(path), text.encode() + b"\n"
    make_directory(path.parent)
    with _disk.explained("write", path, len(data)):
        fd = _disk.open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            _disk.lock(fd, wait=True)  # another process may be between its cut and its write
            _append(fd, _cut_torn_line(fd), data)
            if durable:
                _disk.fsync(fd)
        finally:
            os.close(fd)


def append_bytes(path: _disk.PathLike, data: bytes) -> None:
    """Adds them at the end in one write, all of them or, when it fails, none. Of the only writer; not synced."""
    path = _disk.absolute(path)
    make_directory(path.parent)
    with _disk.explained("write", path, len(data)):
        fd = _disk.open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            _append(fd, os.lseek(fd, 0, os.SEEK_END), data)
        finally:
            os.close(fd)


def _append(fd: int, size: int, data: bytes) -> None:
    """To a file of so many bytes, which it has again when that fails."""
    try:
        written = _disk.write(fd, data)
        if written < len(data):  # the rest says why: the disk is full, or the file as large as it may be
            _disk.write(fd, data[written:])
            raise OSError(errno.EIO, "a write was cut short")
    except OSError:
        with suppress(OSError):
            _disk.truncate(fd, size)
        raise


def _cut_torn_line(fd: int) -> int:
    """Cuts the file back to the end of its last complete line; returns its size then."""
    size = end = os.lseek(fd, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        os.lseek(fd, start, os.SEEK_SET)
        newline = os.read(fd, end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        _disk.truncate(fd, end)
    return end


def require_space(path: _disk.PathLike, needed: int) -> None:
    """``ResourceError`` when the disk of ``path`` has fewer than ``needed`` bytes free."""
    free = _disk.free_bytes(_disk.absolute(path))
    if free is not None and free < needed:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise _disk.explanation(full, "write", _disk.absolute(path), needed) from full


def require_writable(path: _disk.PathLike) -> None:
    """Fails as writing the file `path` would, before the work whose result it is to hold; leaves nothing behind."""
    path = _disk.absolute(path)
    make_directory(path.parent)
    if path.is_dir():
        directory = OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise _disk.explanation(directory, "write", path)
    probe = _disk.partial_name(path, hidden=True)
    with _disk.open_new(probe, path):
        pass
    _disk.discard(probe)


def move(source: _disk.PathLike, target: _disk.PathLike) -> None:
    """Renames within one file system, durably; a target that exists is refused."""
    source, target = _disk.absolute(source), _disk.absolute(target)
    _disk.refuse_existing(target)
    with _disk.explained("rename", source):
        _disk.rename(source, target)
        _disk.fsync_directory(target.parent)


def remove(path: _disk.PathLike) -> None:
    """Removes a file or a whole directory; killed in between, it leaves a partial name, not half of it."""
    path = _disk.absolute(path)
    with _disk.explained("remove", path):
        if path.is_symlink() or not path.is_dir():
            _disk.unlink(path)
        else:
            partial = path if _disk.PARTIAL.fullmatch(path.name) else _disk.partial_name(path, hidden=False)
            if partial != path:
                _disk.rename(path, partial)
            _disk.remove_tree(partial)
        _disk.fsync_directory(path.parent)


def remove_partials(directory: _disk.PathLike) -> list[str]:
    """Removes what killed writers left directly in the directory; returns the names.

    To be called by the only writer (under ``lock``): the work of another process looks the same.
    """
    directory = _disk.absolute(directory)
    with _disk.explained("read", directory):
        names = sorted(entry.name for entry in os.scandir(directory) if _disk.PARTIAL.fullmatch(entry.name))
    for name in names:
        remove(directory / name)
    return names
