"""The only calls that change a disk, each a function of its own, and what their failures mean to a user.

Callers use them as ``_disk.rename(...)``: replacing a name here reaches every caller, which is how tests kill
the process or fill the disk at the n-th operation.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from adm.runtime.errors import AdmError, ResourceError, UsageError
from adm.runtime.text import num_bytes, shown_path

PathLike = str | os.PathLike[str]

PARTIAL_SUFFIX = re.compile(r"\.partial-[0-9a-f]{8}(?![^/\\])")
PARTIAL = re.compile(r".+\.partial-[0-9a-f]{8}", re.DOTALL)
BLOCK = 1 << 20

# Windows has O_BINARY and not the others.
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_PATH_AT_FAULT = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EINVAL, errno.EXDEV,
)  # fmt: skip
_ALWAYS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


# ---- operations ----------------------------------------------------------------------------------


def open_file(path: Path, flags: int) -> int:
    return os.open(path, flags | _ALWAYS, 0o666)


def write(fd: int, data: bytes | memoryview) -> int:
    return os.write(fd, data)


def truncate(fd: int, size: int) -> None:
    os.ftruncate(fd, size)


def fsync(fd: int) -> None:
    """Not to be called again after it failed: the kernel may have dropped the pages and report success."""
    os.fsync(fd)


def fsync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | _ALWAYS)
    try:
        fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no directories
            raise
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def unlink(path: Path) -> None:
    os.unlink(path)


def mkdir(path: Path) -> None:
    os.mkdir(path)


def rmdir(path: Path) -> None:
    os.rmdir(path)


def lock(fd: int, *, wait: bool) -> bool:
    """Takes the lock on an open file, which ends with the process however that ends; False when it is taken.

    A file system without locks answers True.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, 1 << 30, os.SEEK_SET)  # past the contents, which others are to read
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


# ---- what failures mean --------------------------------------------------------------------------


@contextmanager
def explained(verb: str, path: PathLike, needed: int | None = None) -> Iterator[None]:
    """Turns an ``OSError`` of the block into a line with the cause and, if the disk is full, the bytes."""
    try:
        yield
    except OSError as error:
        raise explanation(error, verb, Path(path), needed) from error


def explanation(error: OSError, verb: str, path: Path, needed: int | None = None) -> AdmError:
    final = Path(PARTIAL_SUFFIX.sub("", str(path)))  # the name that the user knows
    start = f"cannot {verb} {shown_path(final)}: {error.strerror or type(error).__name__}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return ResourceError(f"{start} ({space(path, needed)}). Free space, then run the same command again.")
        case errno.EFBIG:
            return ResourceError(
                f"{start} ({_size_limit()}{space(path, needed)}). Raise the limit (ulimit -f), then run the same "
                "command again."
            )
        case errno.EACCES | errno.EPERM:
            return UsageError(f"{start}. Choose a place where you may write, or change the permissions.")
        case value if value in _PATH_AT_FAULT:
            return UsageError(f"{start}. Give another path.")
        case errno.EMFILE | errno.ENFILE:
            return ResourceError(
                f"{start}. Raise the limit of open files (ulimit -n), then run the same command again."
            )
        case _:
            numbers = "" if needed is None else f" ({space(path, needed)})"
            return ResourceError(f"{start}{numbers}. Check the disk, then run the same command again.")


def space(path: Path, needed: int | None = None) -> str:
    """ "need 412 MB, 37 MB free", as far as it is known."""
    if _no_inodes(path):
        return "the disk takes no more files: its inodes are used up"
    free = free_bytes(path)
    parts = [] if needed is None else [f"need {num_bytes(needed)}"]
    return ", ".join(parts + ([] if free is None else [f"{num_bytes(free)} free"])) or "free space unknown"


def _no_inodes(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            status = os.statvfs(place)
            return status.f_files > 0 and status.f_favail == 0
    return False


def free_bytes(path: Path) -> int | None:
    """What may still be written where the path is or will be; None when the system does not say."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def _size_limit() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "" if limit == resource.RLIM_INFINITY else f"limit {num_bytes(limit)}, "


# ---- partial files -------------------------------------------------------------------------------


def absolute(path: PathLike) -> Path:
    """The path independent of the working directory, symbolic links left as they are."""
    if "\0" in os.fspath(path):
        raise UsageError(f"a path cannot hold a NUL character: {shown_path(path)}. Give another path.")
    return Path(path).absolute()


def partial_name(path: Path, *, hidden: bool) -> Path:
    """A fresh sibling name. Long names are cut: those of files end at 255 bytes."""
    return path.with_name(f"{'.' if hidden else ''}{path.name[:48]}.partial-{secrets.token_hex(4)}")


def refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise UsageError(f"{shown_path(path)} exists already. Choose another name, or remove it first.")


def make_directory(path: PathLike) -> None:
    """Makes the directory and its missing parents, durably; one that exists is left alone."""
    path = absolute(path)
    with explained("make the directory", path):
        if path.is_dir():
            return
        if path.parent != path:
            make_directory(path.parent)
        try:
            mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
        fsync_directory(path.parent)


def remove_tree(directory: Path) -> None:
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            unlink(Path(entry.path))
    rmdir(directory)


def discard(partial: Path) -> None:
    """Cleans up after an error, which is the one to be reported."""
    with suppress(OSError):
        if partial.is_dir():
            remove_tree(partial)
        else:
            unlink(partial)


@contextmanager
def open_new(path: Path, shown: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A new file under construction, synced and closed at the end of the block; errors speak of ``shown``."""
    with explained("write", shown, needed):
        fd = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW)
    raw = _Raw(fd, shown, needed)
    buffered = io.BufferedWriter(raw, BLOCK)
    try:
        yield cast(BinaryIO, buffered)
        buffered.flush()
        with explained("write", shown, needed):
            fsync(fd)
    except BaseException:
        with suppress(OSError, AdmError):
            raw.close()  # before the buffer, which would try to write what is left in it
        raise
    with explained("write", shown, needed):
        buffered.close()


@contextmanager
def open_kept(path: Path, size: int) -> Iterator[BinaryIO]:
    """A file's first ``size`` bytes, to be extended; what was written is kept if the block raises."""
    with explained("write", path):
        fd = open_file(path, os.O_RDWR | os.O_CREAT | NOFOLLOW)
    raw = _Raw(fd, path, None)
    buffered = io.BufferedWriter(raw, BLOCK)
    try:
        with explained("write", path):
            truncate(fd, size)
            os.lseek(fd, size, os.SEEK_SET)
        yield cast(BinaryIO, buffered)
        buffered.flush()
        with explained("write", path):
            fsync(fd)
    except BaseException:
        with suppress(OSError, AdmError):
            buffered.flush()
        with suppress(OSError, AdmError):
            raw.close()  # before the buffer, which would try to write what is left in it
        raise
    with explained("write", path):
        buffered.close()


class _Raw(io.RawIOBase):
    """Writes through ``write`` and explains its errors. Without ``fileno``, so that nobody writes past it."""

    def __init__(self, fd: int, shown: Path, needed: int | None) -> None:
        self._fd, self._shown, self._needed = fd, shown, needed

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        with explained("write", self._shown, self._needed):
            return write(self._fd, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._fd, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        truncate(self._fd, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)
