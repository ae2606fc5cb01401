"""Every image of a tree decoded once, so that training does not meet a bad one; unchanged files need it only once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL

from adm.data import _images
from adm.data._archive import DamagedArchiveError
from adm.data._file_tree import FileTree, Read
from adm.data._listing import IMAGE_SUFFIXES
from adm.data._scan_threads import by_threads
from adm.runtime import files
from adm.runtime.cache import cache_directory
from adm.runtime.errors import AdmError, DamagedError
from adm.runtime.version import version

__all__ = ["Found", "Scan", "ScanRecord", "scan"]

Progress = Callable[[int, int], None]

MIN_RECORDED = 1000
"""Images from which on a record is worth a file in the cache."""
SETTLED = 2_000_000_000
"""Nanoseconds: a file written to this soon before it was read may change again and keep its times."""


@dataclass(frozen=True, slots=True)
class Found:
    """A whole image, by the hash of its file's bytes."""

    sha256: bytes
    grey: bool
    wide: bool


@dataclass(frozen=True)
class Scan:
    images: dict[str, Found] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


Stamp = tuple[int, ...]


class ScanRecord:
    """What was found before, in a file of the cache directory; of a file whose stamp is the same it is believed.

    A stamp decides only whether a file is looked at again: each image is compared with its hash whenever it is read.
    """

    def __init__(self, tree: FileTree) -> None:
        decoder = f"{version()}/{PIL.__version__}\0".encode()
        place = hashlib.sha256(decoder + os.fsencode(tree.path.absolute())).hexdigest()[:32]
        self.path = cache_directory() / "scans" / f"{place}.jsonl"
        self._began = time.time_ns()
        self._known = self._read()
        self._new: dict[str, tuple[Stamp, Found]] = {}

    def find(self, name: str, stamp: Stamp | None) -> Found | None:
        """What is known of the file, unless it may have changed."""
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            return None
        self._new[name] = known
        return known[1]

    def add(self, name: str, before: Stamp | None, after: Stamp | None, found: Found) -> None:
        """A file that was read between the two stamps."""
        if before is not None and before == after and max(before[1:3], default=0) < self._began - SETTLED:
            self._new[name] = (before, found)

    def save(self) -> None:
        """Writes the record if it is long and has changed. A cache that cannot be written to is done without."""
        if len(self._new) < MIN_RECORDED or self._new == self._known:
            return
        lines = [
            json.dumps([name, stamp, found.sha256.hex(), found.grey, found.wide])
            for name, (stamp, found) in sorted(self._new.items())
        ]
        body = "\n".join(lines).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(self.path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except (AdmError, OSError):
            return

    def _read(self) -> dict[str, tuple[Stamp, Found]]:
        """Nothing where the record is missing, damaged or of another version."""
        try:
            digest, _, body = files.read_bytes(self.path).partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return {}
            rows = [json.loads(line) for line in body.splitlines()]
            return {
                name: (tuple(stamp), Found(bytes.fromhex(sha256), grey, wide))
                for name, stamp, sha256, grey, wide in rows
            }
        except (AdmError, ValueError, TypeError, RecursionError):
            return {}


def scan(
    tree: FileTree,
    read: Read,
    names: Sequence[str],
    progress: Progress | None = None,
    record: ScanRecord | None = None,
    *,
    skip_bad: bool = False,
) -> Scan:
    """What each of the files is. skip_bad: a member that damage of the archive makes unreadable is a bad image, too.

    Raises DamagedError.
    """
    result = Scan()
    for name, verdict in by_threads(lambda name: _look_at(tree, read, name, record, skip_bad), names, progress):
        if isinstance(verdict, Found):
            result.images[name] = verdict
        elif verdict is None:
            result.others.append(name)
        else:
            result.bad[name] = verdict
    return result


def _look_at(tree: FileTree, read: Read, name: str, record: ScanRecord | None, skip_bad: bool) -> Found | str | None:
    """What the file is: an image, the reason why it is a bad one, or None if it is something else."""
    before = tree.stamp(name) if record is not None else None
    known = record.find(name, before) if record is not None else None
    if known is not None:
        return known
    try:
        found = _decoded(read(name))
    except _images.NotAnImage as error:
        meant = tree.only_images or Path(name).suffix.lower() in IMAGE_SUFFIXES
        return str(error) if meant else None
    except _images.Unreadable as error:
        return str(error)
    except DamagedError as error:
        if not skip_bad:
            raise
        return error.why if isinstance(error, DamagedArchiveError) else str(error)
    if record is not None:
        record.add(name, before, tree.stamp(name), found)
    return found


def _decoded(data: bytes) -> Found:
    """What the file's bytes are. Nothing of a large image is left when another thread may decode one."""
    with _images.opened(data) as header, _images.one_large(header):
        image = _images.load_upright(header)
        return Found(hashlib.sha256(data).digest(), _images.is_grey(image), _images.is_wide(image))
