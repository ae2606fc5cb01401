"""Faults at the n-th operation on the disk: an error, or the death of the process."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from adm.runtime import _disk

OPERATIONS = ("open_file", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir")
Fault = Callable[[], NoReturn]


class Counter:
    """How many operations there were, and their names and first arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []


@contextmanager
def faults(at: int | None = None, fault: Fault | None = None) -> Iterator[Counter]:
    """Counts the operations; the one numbered ``at`` fails by ``fault``, a write after half of its bytes."""
    counter = Counter()
    originals = {name: getattr(_disk, name) for name in OPERATIONS}

    def wrapped(name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            counter.calls.append((name, args[0]))
            if len(counter.calls) - 1 == at and fault is not None:
                if name == "write":
                    originals[name](args[0], bytes(args[1])[: len(args[1]) // 2])
                fault()
            return originals[name](*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(_disk, name, wrapped(name))
    try:
        yield counter
    finally:
        for name, original in originals.items():
            setattr(_disk, name, original)


def count_operations(run: Callable[[], object]) -> int:
    with faults() as counter:
        run()
    return len(counter.calls)


def disk_error(number: int) -> Fault:
    def fault() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fault


ENOSPC, EIO = disk_error(errno.ENOSPC), disk_error(errno.EIO)


class SmallDisk:
    """A disk of so many bytes below a directory: what does not fit is not written, and what is removed gives space.

    Counts what goes through the module of operations, and what lies there already.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    @contextmanager
    def mounted(self) -> Iterator[None]:
        write, free = _disk.write, _disk.free_bytes

        def limited(fd: int, data: bytes | memoryview) -> int:
            space = self.size - self.used()
            if space <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, bytes(data)[:space])

        _disk.write, _disk.free_bytes = limited, lambda path: max(0, self.size - self.used())
        try:
            yield
        finally:
            _disk.write, _disk.free_bytes = write, free


class Tmpfs:
    """A file system of so many bytes on a directory, seen by this process and its children alone."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size

    def __enter__(self) -> Tmpfs:
        """PermissionError where the system does not allow it."""
        self.directory.mkdir()
        try:
            self._call("unshare", 0x20000)  # CLONE_NEWNS
            self._call("mount", b"none", b"/", None, 0x44000, None)  # MS_PRIVATE | MS_REC
            self._mount(0)
        except OSError:
            self.directory.rmdir()
            raise
        return self

    def grow(self) -> None:
        self.size = 1 << 28
        self._mount(0x20)  # MS_REMOUNT

    def __exit__(self, *_: object) -> None:
        self._call("umount2", os.fsencode(self.directory), 2)  # MNT_DETACH
        self.directory.rmdir()

    def _mount(self, flags: int) -> None:
        self._call("mount", b"tmpfs", os.fsencode(self.directory), b"tmpfs", flags, f"size={self.size}".encode())

    @staticmethod
    def _call(name: str, *args: Any) -> None:
        try:
            function = getattr(ctypes.CDLL(None, use_errno=True), name)
        except AttributeError as error:  # another system than Linux
            raise PermissionError(errno.EPERM, "no such call") from error
        if function(*args):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_child(run: Callable[[], object]) -> int:
    """Runs it in a forked process; the exit status, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside torch's idle threads is what makes 100 trials a second
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(n: int, run: Callable[[], object]) -> bool:
    """Runs it in a forked process, killed with signal 9 at operation n; whether it came that far."""

    def killed() -> None:
        with faults(n, lambda: os.kill(os.getpid(), signal.SIGKILL)):  # type: ignore[arg-type, return-value]
            run()

    status = in_child(killed)
    assert status in (0, -signal.SIGKILL), f"the child failed at operation {n}"
    return status != 0
