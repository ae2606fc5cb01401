"""One writer at a time, across processes and, as far as can be, across machines."""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from adm.runtime import _disk
from adm.runtime.errors import ResourceError
from adm.runtime.text import one_line, shown_path

NAMED_WITHIN = 1.0
"""Seconds in which who has taken a lock says its name."""


@dataclass(frozen=True)
class Lock:
    """A lock that is held. The kernel ends it with the process, also after kill -9."""

    path: Path
    what: str
    token: str

    def check(self) -> None:
        """Before each commit: ``ResourceError`` when the lock is gone, its directory deleted or made anew, or when
        another writer took over (locks over networks lie)."""
        record = _read_record(self.path)
        if record.get("token") == self.token:
            return
        if not record:
            raise ResourceError(
                f"{one_line(self.what)} was deleted or replaced while pid {os.getpid()} was writing to it: stopped, "
                "with nothing more written. Run the same command again."
            )
        raise ResourceError(_in_use(self.what, record))


@contextmanager
def lock(path: _disk.PathLike, what: str | None = None) -> Iterator[Lock]:
    """Holds the lock file ``path`` for the block; ``ResourceError`` at once, saying who, if it is taken.

    what: how the message calls the thing, e.g. "run 'digits'"; by default the directory of the lock file. The
    lock belongs to the open file: a process forked meanwhile shares it.
    """
    path = _disk.absolute(path)
    what = what or shown_path(path.parent)
    _disk.make_directory(path.parent)
    with _disk.explained("lock", path):
        fd = _locked(path, what)
    try:
        held = Lock(path, what, secrets.token_hex(8))
        record = _record(held.token)
        with _disk.explained("lock", path, len(record)):
            _disk.truncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            _disk.write(fd, record)
        yield held
    finally:
        with suppress(OSError):
            if _is_named(fd, path):
                _disk.unlink(path)
        os.close(fd)


def _locked(path: Path, what: str) -> int:
    unnamed_until = time.monotonic() + NAMED_WITHIN
    while True:
        fd = _disk.open_file(path, os.O_RDWR | os.O_CREAT | _disk.NOFOLLOW)
        if not _disk.lock(fd, wait=False):
            os.close(fd)
            record = _read_record(path)
            # One that has only just taken it has not said yet who it is, and one that was killed said so before.
            if not _may_hold(record) and time.monotonic() < unnamed_until:
                time.sleep(0.01)
                continue
            raise ResourceError(_in_use(what, record))
        if _is_named(fd, path):
            return fd
        os.close(fd)  # the holder before removed it between our two calls


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _record(token: str) -> bytes:
    since = datetime.now().isoformat(" ", "seconds")
    return json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since, "token": token}).encode()


def _read_record(path: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        record = json.loads(path.read_bytes()[:4096])
        if isinstance(record, dict):
            return record
    return {}


def _may_hold(record: dict[str, object]) -> bool:
    """Whether the record is of a process that is there, as far as can be seen from here."""
    pid = record.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    if os.name != "posix" or record.get("host") != platform.node():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or a number that somebody else wrote
        return True
    return True


def _in_use(what: str, record: dict[str, object]) -> str:
    who = "another process"
    if record:
        pid, host, since = (one_line(record.get(key, "?"), 40) for key in ("pid", "host", "since"))
        who = f"pid {pid} on {host} since {since}"
    return f"{one_line(what)} is in use by {who}. Wait for it or stop it, then run the same command again."
