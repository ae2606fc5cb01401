"""Faults at the n-th operation on the disk: an error, or the death of the process."""

from __future__ import annotations

import errno
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
