"""Fetching from a server of our own that breaks off, ignores ranges, changes its file or answers with a page."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adm.runtime import _remote, download, files
from adm.runtime.cache import cache_directory
from adm.runtime.download import Artifact, fetch, partial_file, read_record
from adm.runtime.errors import DamagedError, ResourceError, UsageError

CONTENT = b"\x80\x02" + np.random.RandomState(0).bytes(3_000_000)
THING = Artifact("thing", "thing.pt", (), begins=(b"PK\x03\x04", b"\x80\x02"))


@dataclass
class Site:
    """What the server does. cuts: bytes after which it hangs up, one for each answer, None for never."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    chunked: bool = False
    status: int = 200
    cuts: list[int | None] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.asked.append(wanted)
        if self.path.startswith("/moved/"):
            return self.head(302, {"Location": self.path.replace("/moved/", "/"), "Content-Length": "0"})
        if site.status != 200:
            return self.head(site.status, {"Content-Length": "0"})
        start = int(wanted[6:-1]) if wanted and site.ranges and self.headers.get("If-Range") == site.etag else 0
        if start > len(site.content):
            return self.head(416, {"Content-Length": "0"})
        body = site.content[start:]
        headers = {"ETag": site.etag} if site.etag else {}
        headers |= {"Transfer-Encoding": "chunked"} if site.chunked else {"Content-Length": str(len(body))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(site.content) - 1}/{len(site.content)}"
        self.head(206 if start else 200, headers)
        cut = site.cuts.pop(0) if site.cuts else None
        body = body if cut is None else body[:cut]
        if site.chunked:
            body = b"%x\r\n%s\r\n" % (len(body), body) + (b"0\r\n\r\n" if cut is None else b"")
        self.wfile.write(body)
        self.close_connection = True
        return None

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("ADM_MIRROR", raising=False)
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"site": site}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/thing.pt"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def of(site: Site, **more: Any) -> Artifact:
    return replace(THING, urls=(site.url,), **more)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_file_is_fetched_whole_with_its_hash_beside_it_and_then_not_again(site: Site, tmp_path: Path):
    told: list[tuple[int, int | None]] = []
    path = fetch(of(site), tmp_path, on_progress=lambda done, total: told.append((done, total)))
    assert path == tmp_path / "thing.pt" and path.read_bytes() == CONTENT
    record = json.loads((tmp_path / "thing.pt.json").read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest() and record["num_bytes"] == len(CONTENT)
    assert record["name"] == "thing" and record["url"] == site.url
    assert told[0] == (0, len(CONTENT)) and told[-1] == (len(CONTENT), len(CONTENT)) and told == sorted(told)
    assert names(tmp_path) == {"thing.pt", "thing.pt.json"}
    fetch(of(site), tmp_path)
    assert site.asked == [None]


def test_a_connection_that_breaks_goes_on_where_it_was(site: Site, tmp_path: Path):
    site.cuts = [1_000_000, 700_000]
    assert fetch(of(site), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=1000000-", "bytes=1700000-"]


def test_the_next_call_continues_what_an_earlier_one_left(site: Site, tmp_path: Path):
    def stop(done: int, total: int | None) -> None:
        if done >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(of(site), tmp_path, on_progress=stop)
    kept = partial_file(tmp_path / "thing.pt").stat().st_size
    assert kept >= 500_000 and not (tmp_path / "thing.pt").exists()
    assert fetch(of(site), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": '"two"'}, {"etag": None}, {"etag": 'W/"one"'}])
def test_a_server_that_ignores_ranges_or_has_another_file_now_is_asked_for_all_of_it(
    site: Site, tmp_path: Path, change: dict[str, Any]
):
    site.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(ResourceError, match="kept"):
        fetch(of(site), tmp_path)
    site.cuts.clear()
    site.content = CONTENT[:2] + bytes(reversed(CONTENT[2:])) if "etag" in change else CONTENT
    for name, value in change.items():
        setattr(site, name, value)
    assert fetch(of(site), tmp_path).read_bytes() == site.content


def test_a_file_that_became_shorter_than_what_came_of_it_is_fetched_anew(site: Site, tmp_path: Path):
    site.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(ResourceError):
        fetch(of(site), tmp_path)
    site.cuts.clear()
    site.content = CONTENT[:400_000]  # under the same ETag: a server that lies
    assert fetch(of(site), tmp_path).read_bytes() == CONTENT[:400_000]


def test_without_a_length_the_end_of_the_chunks_is_the_end(site: Site, tmp_path: Path):
    site.chunked, site.cuts = True, [1_000_000]
    assert fetch(of(site), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=1000000-"]


def test_a_redirect_is_followed(site: Site, tmp_path: Path):
    moved = replace(of(site), urls=(site.url.replace("/thing.pt", "/moved/thing.pt"),))
    assert fetch(moved, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "has no such file .HTTP 404"), (409, "has withdrawn public access .HTTP 409"), (403, "does not give it")],
)
def test_a_refusal_is_told_in_one_line_with_the_way_out(site: Site, tmp_path: Path, status: int, words: str):
    site.status = status
    with pytest.raises(ResourceError, match=words) as refusal:
        fetch(of(site), tmp_path)
    assert "--mirror" in str(refusal.value) and "\n" not in str(refusal.value)
    assert len(site.asked) == 1 and names(tmp_path) == set()


def test_a_server_in_trouble_is_asked_again_and_offline_says_so(site: Site, tmp_path: Path):
    site.status = 503
    with pytest.raises(ResourceError, match="HTTP 503"):
        fetch(of(site), tmp_path)
    assert len(site.asked) == 1 + len(download.WAITS)
    offline = replace(THING, urls=("http://name.invalid/thing.pt",))
    with pytest.raises(ResourceError, match=r"name\.invalid: .*when the network is there, name a mirror"):
        fetch(offline, tmp_path)


def test_a_silent_server_counts_as_broken(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_remote, "TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: threading.Event().wait(2.0))
    monkeypatch.setattr(download, "WAITS", (0.0,))
    with pytest.raises(ResourceError, match="nothing came for"):
        fetch(of(site), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>" * 100_000, "gives a web page, not thing"),
        (b"GIF89a" * 100, "gives something else, which begins 'GIF89a"),
        (b"", "gives something else"),
        (b"PK\x03\x04" + bytes(5000), "a zip file that is cut short"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_kept(site: Site, tmp_path: Path, content: bytes, words: str):
    site.content = content
    with pytest.raises(DamagedError, match=words) as refusal:
        fetch(of(site), tmp_path)
    assert "\n" not in str(refusal.value)
    assert "thing.pt" not in names(tmp_path) and not partial_file(tmp_path / "thing.pt").exists()


def test_a_pinned_size_and_hash_are_held_to(site: Site, tmp_path: Path):
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DamagedError, match="sha256"):
        fetch(of(site, sha256="0" * 64), tmp_path)
    with pytest.raises(DamagedError, match="thing has 17"):
        fetch(of(site, num_bytes=17), tmp_path)
    assert names(tmp_path) <= {"thing.pt.part.json"}
    assert fetch(of(site, sha256=right, num_bytes=len(CONTENT)), tmp_path).exists()


def test_the_second_address_serves_when_the_first_does_not(site: Site, tmp_path: Path):
    both = replace(THING, urls=("http://name.invalid/thing.pt", site.url))
    fetch(both, tmp_path)
    record = read_record(tmp_path / "thing.pt")
    assert record is not None and record.url == site.url


@pytest.mark.parametrize("kind", ["directory", "file", "environment", "http"])
def test_a_mirror_has_the_file_under_its_name(site: Site, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / "a mirror"
    there.mkdir()
    (there / "thing.pt").write_bytes(CONTENT)
    mirror = {"directory": str(there), "file": there.as_uri(), "http": site.url.removesuffix("thing.pt")}.get(kind)
    if kind == "environment":
        monkeypatch.setenv("ADM_MIRROR", str(there))
    offline = replace(THING, urls=("http://name.invalid/thing.pt",))
    assert fetch(offline, tmp_path / "here", mirror=mirror).read_bytes() == CONTENT
    with pytest.raises(ResourceError, match="there is no such file"):
        fetch(replace(offline, file="other.pt"), tmp_path / "here", mirror=str(there))


def test_a_copy_from_a_directory_continues_too(tmp_path: Path):
    there = tmp_path / "thing.pt"
    there.write_bytes(CONTENT)

    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fetch(THING, tmp_path / "here", mirror=str(tmp_path), on_progress=stop)
    fetch(THING, tmp_path / "here", mirror=str(tmp_path), on_progress=lambda done, total: seen.append(done))
    assert seen[0] > 0 and (tmp_path / "here" / "thing.pt").read_bytes() == CONTENT


@pytest.mark.parametrize(("mirror", "words"), [("ftp://x/y", "give an http"), ("/no/such/place", "no such directory")])
def test_a_mirror_that_cannot_be_is_a_usage_error(tmp_path: Path, mirror: str, words: str):
    with pytest.raises(UsageError, match=words):
        fetch(THING, tmp_path, mirror=mirror)


def test_a_changed_file_is_replaced_and_one_put_there_by_hand_gets_a_record(site: Site, tmp_path: Path):
    path = tmp_path / "thing.pt"
    path.write_bytes(CONTENT)
    fetch(of(site), tmp_path)
    record = read_record(path)
    assert site.asked == [] and record is not None and record.sha256 == hashlib.sha256(CONTENT).hexdigest()
    path.write_bytes(CONTENT[:-1] + b"?")  # of the same length: only the hash tells
    fetch(of(site), tmp_path)
    assert site.asked == [None] and path.read_bytes() == CONTENT


def test_a_full_disk_is_known_before_the_first_byte(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files._disk, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(ResourceError, match=r"need 3\.0 MB, 1\.0 MB free"):
        fetch(of(site), tmp_path)
    assert not partial_file(tmp_path / "thing.pt").exists()


def test_two_do_not_fetch_the_same_file_at_once(site: Site, tmp_path: Path):
    with files.lock(tmp_path / ".thing.pt.lock"), pytest.raises(ResourceError, match="download of thing"):
        fetch(of(site), tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("ADM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "adm"
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("ADM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "adm"
