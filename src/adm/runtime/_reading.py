"""Reading what may be missing, huge, foreign or damaged."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from adm.runtime import _disk
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import num_bytes, one_line, shown_path


def read_bytes(path: _disk.PathLike, max_bytes: int | None = None) -> bytes:
    """The contents of a regular file of at most ``max_bytes``."""
    path = _disk.absolute(path)
    with _disk.explained("read", path), os.fdopen(open_regular(path), "rb") as stream:
        data = stream.read() if max_bytes is None else stream.read(max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise DamagedError(f"{shown_path(path)} is refused: more than {num_bytes(max_bytes)}. Check which file it is.")
    return data


def open_regular(path: Path, flags: int = 0) -> int:
    """Opens for reading without ever waiting for a writer, as a FIFO of that name would."""
    fd = _disk.open_file(path, os.O_RDONLY | _disk.NONBLOCK | flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"cannot read {shown_path(path)}: it is not a regular file. Give the path of a file.")
    return fd


def read_json(path: _disk.PathLike, max_bytes: int = 64 << 20) -> Any:
    """The object in a JSON file. ``DamagedError``, with the line, for anything but strict JSON in UTF-8."""
    return parse_json(read_bytes(path, max_bytes), path)


def parse_json(data: bytes, path: _disk.PathLike) -> Any:
    """``read_json`` of contents that were already read from ``path``."""
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        why = f"line {error.lineno}: {error.msg}"
    except UnicodeDecodeError as error:
        why = f"line {data.count(10, 0, error.start) + 1}: not UTF-8"
    except RecursionError:
        why = "nested too deeply"
    except ValueError as error:
        why = one_line(error)
    raise DamagedError(f"{shown_path(path)} is not valid JSON ({why}). Restore the file, or correct it there.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} is there twice")
        result[key] = value
    return result


def sha256_file(path: _disk.PathLike) -> str:
    """The sha256 of a file's contents, as 64 hex digits."""
    path = _disk.absolute(path)
    with _disk.explained("read", path), os.fdopen(open_regular(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
