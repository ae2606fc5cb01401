"""A file somewhere else, from any byte on: over HTTP(S), or on a disk that can be reached."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from urllib.parse import unquote, urlsplit

from adm.runtime.errors import AdmError
from adm.runtime.text import one_line
from adm.runtime.version import version

__all__ = ["BrokenError", "Source", "UnavailableError", "UnreachableError", "open_source"]

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""


class UnavailableError(AdmError):
    """The address does not give the file, and asking again will not help. The message: why."""


class BrokenError(AdmError):
    """The connection broke. The message: how."""


class UnreachableError(BrokenError):
    """There was no connection at all."""


@dataclass(frozen=True)
class Source:
    """An open file. start: the offset of its first byte; total: bytes of the whole file, None if it is not said.

    version: what changes when the file does (ETag, or the time of the last change), None if it is not said.
    """

    stream: http.client.HTTPResponse | BufferedReader
    start: int
    total: int | None
    version: str | None

    def read(self, count: int) -> bytes:
        """What has come by now, at most so many bytes; none at the end. Raises BrokenError."""
        with _explained():
            return self.stream.read1(count)


@contextmanager
def open_source(url: str, start: int = 0, version: str | None = None) -> Iterator[Source]:
    """The file at a URL or path, from byte `start` on if it still has this version, else from 0.

    url: http, https, file, or a path. Raises UnavailableError and BrokenError.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        with _open_http(url, start, version) as source:
            yield source
        return
    with _open_path(Path(unquote(parts.path) if parts.scheme == "file" else url), start, version) as source:
        yield source


@contextmanager
def _open_path(path: Path, start: int, known: str | None) -> Iterator[Source]:
    try:
        if not path.is_file():
            raise UnavailableError("there is no such file")
        stream = path.open("rb")
    except OSError as error:
        raise UnavailableError(one_line(error.strerror or type(error).__name__)) from error
    with stream:
        status = path.stat()
        now = f"{status.st_size}-{status.st_mtime_ns}"
        start = start if known == now and start <= status.st_size else 0
        stream.seek(start)
        yield Source(stream, start, status.st_size, now)


@contextmanager
def _open_http(url: str, start: int, known: str | None) -> Iterator[Source]:
    # If-Range: a server whose file has changed since answers with the whole of it.
    wanted = {"Range": f"bytes={start}-", "If-Range": known} if start and known else {}
    headers = {"User-Agent": f"adm/{version()}", "Accept-Encoding": "identity", **wanted}
    try:
        with _explained():
            response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and wanted:  # the file is now shorter than what we have
            with _open_http(url, 0, None) as source:
                yield source
            return
        if error.code in (408, 425, 429) or error.code >= 500:
            raise BrokenError(f"the server answers HTTP {error.code} {one_line(error.reason, 40)}") from error
        raise UnavailableError(_refusal(error.code, str(error.reason))) from error
    with response:
        begins, total = _range(response)
        found = response.headers.get("ETag") or response.headers.get("Last-Modified")
        # A weak ETag says that two contents are as good as each other, not that their bytes are the same.
        strong = None if found is None or found.startswith("W/") else found
        yield Source(response, begins, total, strong)


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(the offset of the first byte, bytes of the whole file or None) of an answer."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None:
            raise UnavailableError("the server answers with a part of the file without saying which")
        return int(match[1]), None if match[3] == "*" else int(match[3])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _refusal(code: int, reason: str) -> str:
    meaning = {
        401: "asks for a password",
        403: "does not give it to us",
        404: "has no such file",
        407: "cannot be reached without a password for the proxy",
        409: "has withdrawn public access",
        410: "has removed it",
    }
    return f"the server {meaning.get(code, 'refuses')} (HTTP {code} {one_line(reason, 60)})"


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and broken connections are OSErrors
        cause = getattr(error, "reason", None)
        cause = cause if isinstance(cause, Exception) else error
        if isinstance(cause, TimeoutError):
            raise BrokenError(f"nothing came for {TIMEOUT:.0f} seconds") from error
        said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        kind = UnreachableError if isinstance(error, urllib.error.URLError) else BrokenError
        raise kind(one_line(said, 100)) from error
