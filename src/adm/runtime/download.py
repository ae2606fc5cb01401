"""Fetching a large file so that a broken download continues and only the right, whole file gets its name.

While it comes it is called <file>.part, and <file>.part.json says where from; afterwards <file>.json is its record.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from adm.runtime import files
from adm.runtime._remote import BrokenError, Source, UnavailableError, UnreachableError, open_source
from adm.runtime.errors import DamagedError, ResourceError, UsageError
from adm.runtime.text import num_bytes as shown_bytes
from adm.runtime.text import one_line, shown_path

__all__ = ["MIRROR", "Artifact", "Record", "fetch", "partial_file", "read_record", "record_file"]

MIRROR = "ADM_MIRROR"
"""The environment variable that names a mirror."""
CHUNK = 1 << 20
NUMBERS = ("num_bytes", "total")
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt, counted anew after every byte that came."""

Progress = Callable[[int, int | None], None]
"""Is told the bytes there and those of the whole file, if known; may raise to stop."""


@dataclass(frozen=True)
class Artifact:
    """Something that can be fetched.

    file: what it is called here and on mirrors; urls: where it is, in the order of trial. num_bytes, sha256: None if
    they were never published. begins: how its contents can begin, anything else (a page of a server's own) is refused.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    num_bytes: int | None = None
    sha256: str | None = None
    begins: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Record:
    """What is known of a file that was fetched."""

    name: str
    file: str
    url: str
    num_bytes: int
    sha256: str
    fetched_on: str


@dataclass(frozen=True)
class Partial:
    """What is known of a file that is coming. version: see Source."""

    url: str
    total: int | None
    version: str | None


def fetch(
    artifact: Artifact, directory: Path, *, mirror: str | None = None, on_progress: Progress | None = None
) -> Path:
    """The artifact's file in the directory, whole and with the right contents, fetched unless it is there already.

    mirror: a URL or directory that has the file under its name; by default $ADM_MIRROR, else the artifact's own urls.
    One that is there is checked against its record, or if it has none, against the artifact, and gets one; it is
    replaced if it is wrong. What has come of an interrupted download is kept, and the next call continues it.
    Raises ResourceError when it cannot be had, DamagedError when what is offered is something else.
    """
    path = directory / artifact.file
    report = on_progress or (lambda done, total: None)
    with files.lock(directory / f".{artifact.file}.lock", f"the download of {artifact.name}"):
        if is_right(artifact, path):
            return path
        url = _download(artifact, _addresses(artifact, mirror), path, report)
        _finish(artifact, path, url)
    return path


def is_right(artifact: Artifact, path: Path) -> bool:
    """Whether the file is there with the recorded contents; one without a record gets it, if nothing is wrong."""
    if not path.is_file():
        return False
    try:
        record = read_record(path)
        if record is not None:
            return record.num_bytes == path.stat().st_size and record.sha256 == files.sha256_file(path)
        _write_record(artifact, path, _check_whole(artifact, path, shown_path(path)), "put there by hand")
    except DamagedError:
        return False
    return True


def partial_file(path: Path) -> Path:
    """What a file is called while it comes."""
    return path.with_name(f"{path.name}.part")


def record_file(path: Path) -> Path:
    """Where the record of a file is."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> Record | None:
    """What was recorded of the file when it was fetched; None if nothing was. Raises DamagedError."""
    values = _read_values(record_file(path), Record)
    return None if values is None else Record(**values)


def _read_values(path: Path, kind: type[Record] | type[Partial]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values = files.read_json(path, max_bytes=1 << 16)
    names = {field.name for field in fields(kind)}
    right = isinstance(values, dict) and set(values) == names
    if not right or any(isinstance(value, int) != (name in NUMBERS) for name, value in values.items() if value):
        raise DamagedError(f"{shown_path(path)} is no record of a download. Remove it, then fetch the file again.")
    return values


def _addresses(artifact: Artifact, mirror: str | None) -> tuple[str, ...]:
    mirror = mirror or os.environ.get(MIRROR)
    if not mirror:
        return artifact.urls
    if urlsplit(mirror).scheme in ("http", "https", "file"):
        return (f"{mirror.rstrip('/')}/{quote(artifact.file)}",)
    if "://" in mirror:
        raise UsageError(f"mirror {one_line(mirror, 80)!r}: give an http, https or file address, or a directory.")
    if not Path(mirror).expanduser().is_dir():
        raise UsageError(f"mirror {shown_path(mirror)}: no such directory. Give a directory or an http address.")
    return (str(Path(mirror).expanduser().absolute() / artifact.file),)


def _download(artifact: Artifact, urls: Sequence[str], path: Path, report: Progress) -> str:
    """Brings the partial file to its full length; returns the address that gave it."""
    refusals = []
    for url in urls:
        try:
            _persist(artifact, url, path, report)
            return url
        except UnavailableError as error:
            refusals.append(f"{_host(url)}: {error}")
        except BrokenError as error:
            have = _size(partial_file(path))
            kept = f", {shown_bytes(have)} came and are kept" if have else ""
            refusals.append(f"{_host(url)}: {error}{kept}")
    raise ResourceError(
        f"{artifact.name} cannot be fetched ({'; '.join(refusals)}). Run the same command again when the network is "
        f"there, name a mirror that has {artifact.file} (--mirror or ${MIRROR}), or put the file at {shown_path(path)}."
    )


def _persist(artifact: Artifact, url: str, path: Path, report: Progress) -> None:
    """Fetches, and after a break goes on from where it was; gives up when nothing more comes."""
    failures, came = 0, False
    while True:
        before = _size(partial_file(path))
        try:
            return _continue(artifact, url, path, report)
        except BrokenError as error:
            if _size(partial_file(path)) > before:
                failures, came = 0, True
            # Whoever is offline from the start is told so at once.
            if failures == len(WAITS) or (isinstance(error, UnreachableError) and not came):
                raise
        time.sleep(WAITS[failures])
        failures += 1


def _continue(artifact: Artifact, url: str, path: Path, report: Progress) -> None:
    """One connection: what is missing of the partial file, or all of it if the file there is another now."""
    partial = partial_file(path)
    known = _known(path, url)
    have = 0 if known is None else _size(partial)
    if known is not None and have and have == known.total:
        return
    with open_source(url, have, None if known is None else known.version) as source:
        if known is None or source.start != have or _differs(source, known):
            if source.start:  # it is of no use without what was before it
                files.remove(partial)
                raise BrokenError("the file there changed meanwhile")
            have = 0
            files.write_json(_state_file(path), asdict(Partial(url, source.total, source.version)))
        total = artifact.num_bytes if source.total is None else source.total
        if artifact.num_bytes is not None and total != artifact.num_bytes:
            raise DamagedError(
                f"{one_line(url, 120)} has a file of {total} bytes, but {artifact.name} has {artifact.num_bytes}; it "
                f"was not fetched. Name a mirror that has {artifact.file} (--mirror or ${MIRROR})."
            )
        if total is not None:
            files.require_space(partial, total - have)
        _append(artifact, source, partial, have, total, report)


def _differs(source: Source, known: Partial) -> bool:
    """Whether another file is offered now than the one that has begun to come."""
    return source.version != known.version or known.total not in (None, source.total)


def _append(artifact: Artifact, source: Source, partial: Path, have: int, total: int | None, report: Progress) -> None:
    with files.extend(partial, have) as stream:
        report(have, total)
        while chunk := source.read(CHUNK if total is None else min(CHUNK, total - have)):
            stream.write(chunk)
            if have == 0 and not _can_begin(artifact, chunk):
                return  # the rest is not worth waiting for: `_finish` refuses it
            have += len(chunk)
            report(have, total)
    if total is not None and have < total:
        raise BrokenError("the connection ended before the file did")


def _finish(artifact: Artifact, path: Path, url: str) -> None:
    """Gives the partial file its name and its record; if it is wrong, removes it and raises DamagedError."""
    partial = partial_file(path)
    try:
        sha256 = _check_whole(artifact, partial, url)
    except DamagedError:
        files.remove(partial)
        raise
    if path.exists():
        files.remove(path)
    files.move(partial, path)
    _write_record(artifact, path, sha256, url)
    files.remove(_state_file(path))


def _check_whole(artifact: Artifact, path: Path, where: str) -> str:
    """The sha256 of a file that can be the artifact. Raises DamagedError for one that cannot."""
    with path.open("rb") as stream:
        begin = stream.read(256)
    sha256, size = files.sha256_file(path), path.stat().st_size
    problem = None
    if not begin or not _can_begin(artifact, begin):
        page = begin.lstrip()[:1] == b"<"
        problem = "a web page" if page else f"something else, which begins {one_line(begin[:16].decode('latin-1'))!r}"
    elif artifact.num_bytes is not None and size != artifact.num_bytes:
        problem = f"a file of {size} bytes instead of {artifact.num_bytes}"
    elif artifact.sha256 is not None and sha256 != artifact.sha256:
        problem = f"a file with the sha256 {sha256[:8]} instead of {artifact.sha256[:8]}"
    elif begin.startswith(b"PK") and not zipfile.is_zipfile(path):
        problem = "a zip file that is cut short"
    if problem is not None:
        raise DamagedError(
            f"{one_line(where, 120)} gives {problem}, not {artifact.name}; it was not kept. Check the address, or name "
            f"a mirror that has {artifact.file} (--mirror or ${MIRROR})."
        )
    return sha256


def _can_begin(artifact: Artifact, begin: bytes) -> bool:
    return not artifact.begins or any(known.startswith(begin[: len(known)]) for known in artifact.begins)


def _write_record(artifact: Artifact, path: Path, sha256: str, url: str) -> None:
    today = datetime.now(UTC).date().isoformat()
    record = Record(artifact.name, artifact.file, url, path.stat().st_size, sha256, today)
    files.write_json(record_file(path), asdict(record))


def _known(path: Path, url: str) -> Partial | None:
    """What is known of the partial file, if there is one and it came from this address."""
    try:
        values = _read_values(_state_file(path), Partial)
    except DamagedError:
        return None
    known = None if values is None else Partial(**values)
    return known if known is not None and known.url == url and partial_file(path).is_file() else None


def _state_file(path: Path) -> Path:
    return record_file(partial_file(path))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _host(url: str) -> str:
    return urlsplit(url).hostname or shown_path(url)
