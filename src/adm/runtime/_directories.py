"""Directories that appear at once, with a manifest by which every changed bit in them is seen."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adm.runtime import _disk
from adm.runtime._reading import open_regular, read_bytes, read_json
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

MANIFEST = "MANIFEST.json"
MANIFEST_FORMAT = 1
MAX_MANIFEST = 64 << 20
# Other errors (permissions, limits of this process) say nothing about the contents.
CONTENTS_AT_FAULT = (errno.EIO, errno.ELOOP, errno.EMLINK, errno.ENOTDIR)


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of one file."""

    num_bytes: int
    sha256: str


class DamagedDirectoryError(DamagedError):
    """A directory that is not as its manifest says; ``reason`` names the file and what is wrong with it."""

    def __init__(self, directory: _disk.PathLike, name: str, why: str) -> None:
        self.reason = f"{one_line(name, 60)}: {why}"
        where = shown_path(directory)
        super().__init__(f"{where} is damaged ({self.reason}). Use another copy, or make it again.")


@contextmanager
def new_directory(path: _disk.PathLike) -> Iterator[Path]:
    """A directory to fill, named ``path``, with a manifest, at the end of the block.

    Yields the temporary directory; nothing is left of it if the block raises. A ``path`` that exists is
    refused: names are never reused.
    """
    path = _disk.absolute(path)
    _disk.make_directory(path.parent)
    _disk.refuse_existing(path)
    partial = _disk.partial_name(path, hidden=False)
    try:
        with _disk.explained("write", path):
            _disk.mkdir(partial)
        yield partial
        _publish(partial, path)
    except BaseException:
        _disk.discard(partial)
        raise


def finish_directory(partial: _disk.PathLike, path: _disk.PathLike) -> None:
    """Gives a directory that was filled over several runs its manifest and its final name, on the same file system.

    Killed in between it leaves ``partial`` as it was, but perhaps with a manifest, which the next call replaces. A
    ``path`` that exists is refused.
    """
    partial, path = _disk.absolute(partial), _disk.absolute(path)
    _disk.refuse_existing(path)
    with _disk.explained("write", path):
        if os.path.lexists(partial / MANIFEST):
            _disk.unlink(partial / MANIFEST)
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    with _disk.explained("write", path):
        _seal(partial, path)
        _disk.refuse_existing(path)
        _disk.rename(partial, path)
        _disk.fsync_directory(path.parent)


def _seal(directory: Path, shown: Path) -> None:
    """Writes the manifest and syncs all that is in the directory."""
    names, inner = _walk(directory)
    data = manifest_bytes({name: _synced(directory / name) for name in names})
    with _disk.open_new(directory / MANIFEST, shown / MANIFEST, len(data)) as stream:
        stream.write(data)
    for name in reversed(inner):
        _disk.fsync_directory(directory / name)
    _disk.fsync_directory(directory)


def _synced(path: Path) -> FileRecord:
    fd = _disk.open_file(path, os.O_RDWR | _disk.NOFOLLOW)
    with os.fdopen(fd, "rb") as stream:
        _disk.fsync(fd)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(os.fstat(fd).st_size, digest)


def _walk(directory: Path) -> tuple[list[str], list[str]]:
    """Names of all files and of all directories below, sorted, with forward slashes."""
    names: list[str] = []
    inner: list[str] = []
    for entry in directory.rglob("*"):
        name = entry.relative_to(directory).as_posix()
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()) or not _is_inside(name):
            raise ValueError(f"{one_line(name)!r} cannot be in a manifest: only regular files and directories can")
        (inner if entry.is_dir() else names).append(name)
    return sorted(names), sorted(inner)


def manifest_bytes(records: Mapping[str, FileRecord]) -> bytes:
    """The one spelling of a manifest; "self" is the sha256 of the canonical JSON of the rest."""
    files = {name: {"bytes": r.num_bytes, "sha256": r.sha256} for name, r in sorted(records.items())}
    body: dict[str, object] = {"format": MANIFEST_FORMAT, "files": files}
    body["self"] = _self_hash(body)
    return (json.dumps(body, indent=1) + "\n").encode()


def _self_hash(body: Mapping[str, object]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _is_newer(raw: Any) -> bool:
    """Whether it is an intact manifest of a later format; by its hash, for a changed bit can make a format larger."""
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int) or raw["format"] <= MANIFEST_FORMAT:
        return False
    return _self_hash({name: value for name, value in raw.items() if name != "self"}) == raw.get("self")


def read_manifest(directory: _disk.PathLike) -> dict[str, FileRecord]:
    """What the manifest lists, by name. ``DamagedDirectoryError`` when it is missing or not as it was written, a plain
    ``DamagedError`` when a newer version wrote it: such a directory is intact, and nobody is to put it aside."""
    path = _disk.absolute(directory) / MANIFEST
    if not os.path.lexists(path):
        raise DamagedDirectoryError(directory, MANIFEST, "missing: the directory was never completed, or is not ours")
    try:
        raw = read_json(path, MAX_MANIFEST)
    except DamagedError:
        raw = None
    if _is_newer(raw):
        raise DamagedError(
            f"{shown_path(directory)} was written by a newer version of adm (format {one_line(raw['format'], 20)}, "
            f"this one reads {MANIFEST_FORMAT}). Use that version, and leave it as it is."
        )
    records = _parsed(raw)
    # Equal to the byte, so that a flip which JSON overlooks (the case of an escape) is seen too.
    if records is None or manifest_bytes(records) != read_bytes(path):
        raise DamagedDirectoryError(directory, MANIFEST, "contents do not match their checksum")
    return records


def _parsed(raw: Any) -> dict[str, FileRecord] | None:
    try:
        records = {name: FileRecord(int(r["bytes"]), str(r["sha256"])) for name, r in raw["files"].items()}
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return records if all(map(_is_inside, records)) else None


def read_recorded(directory: _disk.PathLike, name: str, record: FileRecord) -> bytes:
    """The contents of one listed file, read once and checked against its record."""
    copy = io.BytesIO()
    check_recorded(directory, name, record, copy)
    return copy.getvalue()


def verify_directory(directory: _disk.PathLike) -> dict[str, FileRecord]:
    """Checks every listed file by size and sha256; returns the manifest. ``DamagedError`` names file and why.

    Files that the manifest does not list (``.DS_Store``) are ignored: readers open listed names only.
    """
    records = read_manifest(directory)
    for name, record in records.items():
        check_recorded(directory, name, record)
    return records


def check_recorded(directory: _disk.PathLike, name: str, record: FileRecord, copy: BinaryIO | None = None) -> None:
    """Compares one file with its record, block by block; ``copy`` receives what was read."""
    path = _disk.absolute(directory) / name
    digest, count = hashlib.sha256(), 0
    try:
        with os.fdopen(open_regular(path, _disk.NOFOLLOW), "rb", 0) as stream:
            if (size := os.fstat(stream.fileno()).st_size) != record.num_bytes:
                raise DamagedDirectoryError(directory, name, f"{size:,} of {record.num_bytes:,} bytes")
            while block := stream.read(_disk.BLOCK):
                digest.update(block)
                count += len(block)
                if copy is not None:
                    copy.write(block)
    except FileNotFoundError as error:
        raise DamagedDirectoryError(directory, name, "missing") from error
    except UsageError as error:
        raise DamagedDirectoryError(directory, name, "not a regular file") from error
    except OSError as error:
        if error.errno in CONTENTS_AT_FAULT:
            raise DamagedDirectoryError(directory, name, str(error.strerror)) from error
        raise _disk.explanation(error, "read", path) from error
    if count != record.num_bytes or digest.hexdigest() != record.sha256:
        raise DamagedDirectoryError(directory, name, "contents do not match their checksum")


def _is_inside(name: str) -> bool:
    """A relative name that cannot lead out of its directory."""
    return "\\" not in name and "\0" not in name and all(p not in ("", ".", "..") for p in name.split("/"))
