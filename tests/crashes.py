"""What a disk may hold after the power failed: the operations that were done, and which of them need have arrived.

The model is harsher than file systems are: until a file is synced, each write to it may be lost, cut short or read as
zeros, and until a directory is synced, each change of its entries may be lost, all of them independently of each other.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adm.runtime import _disk

PATCHED = ("open_file", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir")


@dataclass(frozen=True)
class Operation:
    """kind: write, truncate (of a file), entry (a name appears, moves or goes), sync. nodes: what a sync must be of."""

    kind: str
    nodes: tuple[int, ...]
    change: Callable[[Disk, str], None] = lambda disk, how: None


@dataclass
class Disk:
    """Files and directories by number: what they hold."""

    files: dict[int, bytearray] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)

    def copy(self) -> Disk:
        return Disk({n: bytearray(d) for n, d in self.files.items()}, {n: dict(e) for n, e in self.entries.items()})

    def put(self, directory: Path, node: int = 0) -> None:
        """The directory as the disk has it."""
        directory.mkdir()
        for name, inner in self.entries.get(node, {}).items():
            if inner in self.files:
                (directory / name).write_bytes(self.files[inner])
            else:
                self.put(directory / name, inner)


class Journal:
    """All that is done below a directory within `recorded`, and the disk as it was before."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations, self.before = root, list[Operation](), Disk()
        self._ids: dict[int, int] = {}
        self._take(root)

    def _take(self, path: Path) -> int:
        node = self._ids[path.stat().st_ino] = len(self._ids)
        if path.is_dir():
            entries = self.before.entries[node] = {}
            entries.update({inner.name: self._take(inner) for inner in path.iterdir()})
        else:
            self.before.files[node] = bytearray(path.read_bytes())
        return node

    @contextmanager
    def recorded(self, syncs: bool = True) -> Iterator[None]:
        """syncs: False for a disk that forgets to."""
        originals = {name: getattr(_disk, name) for name in PATCHED}
        for name in PATCHED:
            setattr(_disk, name, getattr(self, f"_{name}")(originals[name]))
        if not syncs:
            setattr(_disk, "fsync", lambda fd: None)  # noqa: B010
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(_disk, name, original)

    # Each returns the operation that also notes what it does.

    def _open_file(self, original: Callable[..., int]) -> Callable[..., int]:
        def open_file(path: Path, flags: int) -> int:
            there = os.path.lexists(path)
            fd = original(path, flags)
            if not there:
                self._appeared(path, os.fstat(fd).st_ino, "files")
            return fd

        return open_file

    def _mkdir(self, original: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Path) -> None:
            original(path)
            self._appeared(path, path.stat().st_ino, "entries")

        return mkdir

    def _appeared(self, path: Path, inode: int, kind: str) -> None:
        node = self._ids[inode] = max(self._ids.values()) + 1  # the number of a removed file is given out again
        self._ids[-node] = node
        parent, name = self._node(path.parent), path.name
        getattr(self.before, kind)[node] = bytearray() if kind == "files" else {}
        self._entry((parent,), lambda disk, how: disk.entries[parent].__setitem__(name, node))

    def _entry(self, nodes: tuple[int, ...], change: Callable[[Disk, str], object]) -> None:
        self.operations.append(Operation("entry", nodes, change))  # type: ignore[arg-type]

    def _node(self, path: Path) -> int:
        return self._ids[path.stat().st_ino]

    def _write(self, original: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: bytes | memoryview) -> int:
            status = os.fstat(fd)
            append = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
            start = status.st_size if append else os.lseek(fd, 0, os.SEEK_CUR)
            written = original(fd, data)
            node, held = self._ids[status.st_ino], bytes(data)[:written]

            def change(disk: Disk, how: str) -> None:
                content = {"torn": held[: len(held) // 2], "zeros": bytes(len(held))}.get(how, held)
                file = disk.files[node]
                file.extend(bytes(max(0, start - len(file))))
                file[start : start + len(content)] = content

            self.operations.append(Operation("write", (node,), change))
            return written

        return write

    def _truncate(self, original: Callable[..., None]) -> Callable[..., None]:
        def truncate(fd: int, size: int) -> None:
            original(fd, size)
            node = self._ids[os.fstat(fd).st_ino]

            def change(disk: Disk, how: str) -> None:
                file = disk.files[node]
                file[:] = file[:size].ljust(size, b"\0")

            self.operations.append(Operation("truncate", (node,), change))

        return truncate

    def _fsync(self, original: Callable[..., None]) -> Callable[..., None]:
        def fsync(fd: int) -> None:
            original(fd)
            self.operations.append(Operation("sync", (self._ids[os.fstat(fd).st_ino],)))

        return fsync

    def _rename(self, original: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Path, target: Path) -> None:
            node, old, new = self._node(source), self._node(source.parent), self._node(target.parent)
            original(source, target)

            def change(disk: Disk, how: str) -> None:
                if disk.entries[old].get(source.name) == node:
                    del disk.entries[old][source.name]
                disk.entries[new][target.name] = node

            self._entry((old, new), change)

        return rename

    def _unlink(self, original: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Path) -> None:
            parent, node = self._node(path.parent), self._node(path)
            original(path)

            def change(disk: Disk, how: str) -> None:
                if disk.entries[parent].get(path.name) == node:
                    del disk.entries[parent][path.name]

            self._entry((parent,), change)

        return unlink

    _rmdir = _unlink

    # ---- after a crash ----

    def unsynced(self, end: int) -> list[int]:
        """Of the first `end` operations, those that need not have arrived."""
        waiting: list[int] = []
        for i, operation in enumerate(self.operations[:end]):
            if operation.kind == "sync":
                (synced,) = operation.nodes
                waiting = [k for k in waiting if set(self.operations[k].nodes) != {synced}]
            else:
                waiting.append(i)
        return waiting

    def disk(self, end: int, how: Mapping[int, str]) -> Disk:
        """After the first `end` operations; how: of some of them "lost", "torn" or "zeros"."""
        disk = self.before.copy()
        for i, operation in enumerate(self.operations[:end]):
            if (fate := how.get(i, "arrived")) != "lost":
                operation.change(disk, fate)
        return disk

    def crashes(self, most: int, rng: random.Random) -> list[tuple[int, dict[int, str]]]:
        """After each operation: nothing or all of what may be lost, one thing alone or all but one, and by chance."""
        found: list[tuple[int, dict[int, str]]] = []
        for end in range(len(self.operations) + 1):
            waiting = self.unsynced(end)
            lost = dict.fromkeys(waiting, "lost")
            states: list[dict[int, str]] = [{}, lost]
            states += [{i: "lost"} for i in waiting]
            states += [{k: how for k, how in lost.items() if k != i} for i in waiting]
            states += [{i: how} for i in waiting for how in ("torn", "zeros") if self.operations[i].kind == "write"]
            for _ in range(6 * len(waiting)):
                states.append({i: rng.choice(("lost", "torn", "zeros")) for i in waiting if rng.random() < 0.5})
            unique: dict[Any, dict[int, str]] = {tuple(sorted(state.items())): state for state in states}
            found += [(end, state) for state in unique.values()]
        return found if len(found) <= most else [found[i] for i in sorted(rng.sample(range(len(found)), most))]


def rebuilt(disk: Disk, directory: Path) -> Path:
    """The directory with what the disk holds, in place of what was there."""
    shutil.rmtree(directory, ignore_errors=True)
    disk.put(directory)
    return directory
