"""A file has its old contents or its new ones, whenever the process dies and whatever the disk does."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adm.runtime import _disk, _lock, files
from adm.runtime.errors import AdmError, DamagedError, ResourceError, UsageError
from faults import EIO, ENOSPC, count_operations, disk_error, faults, in_child, kill_at

OLD, NEW = b"old contents", b"new contents, which are longer"


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if ".partial-" in name]


def is_one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 300


# ---- whole files ------------------------------------------------------------------------------------


def test_killed_at_any_operation_a_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(OLD)
    seen = set()
    n = 0
    while kill_at(n, lambda: files.write_bytes(path, NEW)):
        seen.add(path.read_bytes())
        files.remove_partials(tmp_path)
        assert os.listdir(tmp_path) == ["f"]
        n += 1
    assert n >= 4 and seen == {OLD, NEW}


def test_a_plain_write_would_lose_the_file_when_killed(tmp_path: Path) -> None:
    """The twin of the test above: without the temporary name the same kill is fatal."""
    path = tmp_path / "f"
    path.write_bytes(OLD)

    def plain() -> None:
        with _disk.open_new(path, path) as stream:
            stream.write(NEW)

    path.unlink()
    assert kill_at(1, plain)
    assert path.read_bytes() not in (OLD, NEW)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_any_failing_operation_is_one_line_and_leaves_old_or_new(tmp_path: Path, number: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(OLD)
    for n in range(count_operations(lambda: files.write_bytes(path, OLD))):
        with faults(n, disk_error(number)), pytest.raises(ResourceError) as raised:
            files.write_bytes(path, NEW)
        assert is_one_line(raised.value) and str(path.name) in str(raised.value)
        assert os.strerror(number) in str(raised.value)
        assert os.listdir(tmp_path) == ["f"] and path.read_bytes() in (OLD, NEW)
        path.write_bytes(OLD)


def test_a_full_disk_names_needed_and_free_bytes(tmp_path: Path) -> None:
    with faults(1, ENOSPC), pytest.raises(ResourceError, match=r"need 12 kB, .* free\)\. Free space"):
        files.write_bytes(tmp_path / "f", b"x" * 12_000)
    with pytest.raises(ResourceError, match=r"No space left on device \(need 1000000 TB, .* free\)"):
        files.require_space(tmp_path / "not" / "there", 10**18)


def test_a_limit_on_file_size_is_named(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(ResourceError, match=r"File too large \(limit 1\.0 kB, need 5\.0 kB, .* free\)"):
            files.write_bytes(tmp_path / "f", b"x" * 5000)

    assert in_child(limited) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.parent.joinpath("file").write_text("x")])
def test_an_impossible_path_is_a_usage_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "f"
    make(path)
    with pytest.raises(UsageError) as raised:
        files.write_bytes(path if path.is_dir() else tmp_path / "file" / "f", b"")
    assert is_one_line(raised.value) and not leftovers(tmp_path)


def test_permission_is_a_usage_error(tmp_path: Path) -> None:
    with faults(0, disk_error(errno.EACCES)), pytest.raises(UsageError, match="Permission denied"):
        files.write_bytes(tmp_path / "f", b"")


@pytest.mark.parametrize("name", ["x" * 240, "é" * 100, " .x. ", "-x", "x.partial-00000000"])
def test_names_up_to_the_limit_of_the_file_system_work(tmp_path: Path, name: str) -> None:
    files.write_bytes(tmp_path / name, NEW)
    assert files.read_bytes(tmp_path / name) == NEW and len(os.listdir(tmp_path)) == 1


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "f", OLD)
    with pytest.raises(KeyboardInterrupt), files.write_stream(tmp_path / "f") as stream:
        stream.write(NEW)
        raise KeyboardInterrupt
    assert files.read_bytes(tmp_path / "f") == OLD and os.listdir(tmp_path) == ["f"]


def test_streams_take_what_numpy_and_pillow_write(tmp_path: Path) -> None:
    array = np.arange(300_000).reshape(100, 1000, 3)
    with files.write_stream(tmp_path / "a.npz") as stream:
        np.savez(stream, arr_0=array)
    with np.load(tmp_path / "a.npz") as loaded:
        assert (loaded["arr_0"] == array).all()
    for name in ("a.png", "a.jpg"):
        with files.write_stream(tmp_path / name) as stream:
            Image.fromarray(array.astype(np.uint8)).save(stream, name[2:].replace("jpg", "jpeg"))
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.size == (1000, 100)


def test_writing_to_a_link_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_bytes(tmp_path / "link", NEW)
    assert (tmp_path / "target").read_bytes() == OLD and not (tmp_path / "link").is_symlink()


def durable_before_rename(run: Callable[[], object]) -> bool:
    """Whether each rename came after a sync of all that was written, and before one of its directory."""
    with faults() as recorded:
        original = _disk.write

        def write(fd: int, data: bytes) -> int:
            unsynced.add(os.readlink(f"/proc/self/fd/{fd}"))
            return original(fd, data)

        unsynced: set[str] = set()
        order: list[str] = []
        sync, rename = _disk.fsync, _disk.rename

        def fsync(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            unsynced.discard(path)
            order.append(f"sync {path}")
            sync(fd)

        def renamed(source: Path, target: Path) -> None:
            order.append("rename, all synced" if not unsynced else "rename")
            rename(source, target)

        _disk.write, _disk.fsync, _disk.rename = write, fsync, renamed
        run()
    assert recorded.calls
    return order[-2] == "rename, all synced" and order[-1].startswith("sync")


def test_contents_reach_the_disk_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def directory() -> None:
        with files.new_directory(tmp_path / "d") as partial, files.new_file(partial / "f") as stream:
            stream.write(NEW)

    assert durable_before_rename(lambda: files.write_bytes(tmp_path / "f", NEW))
    assert durable_before_rename(directory)
    monkeypatch.setattr(_disk, "open_new", unsynced_open_new)
    assert not durable_before_rename(lambda: files.write_bytes(tmp_path / "g", NEW))


class unsynced_open_new:
    def __init__(self, path: Path, *_: object) -> None:
        self.fd = _disk.open_file(path, os.O_RDWR | os.O_CREAT)

    def __enter__(self) -> unsynced_open_new:
        return self

    def write(self, data: bytes) -> None:
        _disk.write(self.fd, data)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


# ---- lines ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ["", "torn", "torn " * 5000, "\0" * 3])
def test_a_torn_last_line_does_not_damage_later_ones(tmp_path: Path, torn: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n' + torn)
    files.append_line(log, '{"step": 2}')
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_log_of_one_torn_line_starts_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("torn")
    files.append_line(tmp_path / "log", "first")
    assert (tmp_path / "log").read_text() == "first\n"


def test_lines_survive_kills_and_a_full_disk(tmp_path: Path) -> None:
    log = tmp_path / "log"
    files.append_line(log, "first line")
    n = 0
    while kill_at(n, lambda: files.append_line(log, "second line")):
        assert log.read_text().startswith("first line\n")
        n += 1
    for fault in (ENOSPC, EIO):
        before = log.read_text()
        with faults(1, fault), pytest.raises(ResourceError):
            files.append_line(log, "third line")
        assert log.read_text() == before
    files.append_line(log, "last line", durable=True)
    assert set(log.read_text().splitlines()) == {"first line", "second line", "last line"}


def test_a_write_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    files.append_line(log, "first")
    with monkeypatch.context() as patch:
        patch.setattr(_disk, "write", lambda fd, data: os.write(fd, data[:3]))
        with pytest.raises(ResourceError):
            files.append_line(log, "second")
    assert log.read_text() == "first\n"
    with pytest.raises(ValueError, match="no line break"):
        files.append_line(log, "two\nlines")


# ---- directories ------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    with files.new_directory(path) as partial:
        files.write_bytes(partial / "inner" / "a.bin", b"\x00\x01\x02\x03")
        (partial / "b.txt").write_text("text")
        (partial / "empty").touch()


def test_killed_at_any_operation_a_directory_is_absent_or_intact(tmp_path: Path) -> None:
    path = tmp_path / "d"
    n = absent = 0
    while kill_at(n, lambda: make_directory(path)):
        if path.exists():
            files.verify_directory(path)
            files.remove(path)
        else:
            absent += 1
        files.remove_partials(tmp_path)
        assert os.listdir(tmp_path) == []
        n += 1
    assert n > 15 and absent > 15


@pytest.mark.parametrize("fault", [ENOSPC, EIO])
def test_a_failing_operation_leaves_no_directory_or_an_intact_one(tmp_path: Path, fault: Callable) -> None:
    path = tmp_path / "d"
    total = count_operations(lambda: make_directory(path))
    files.remove(path)
    for n in range(total):
        with faults(n, fault), pytest.raises(ResourceError) as raised:
            make_directory(path)
        assert is_one_line(raised.value) and "partial" not in str(raised.value)
        assert not leftovers(tmp_path)
        if path.exists():
            files.verify_directory(path)
            files.remove(path)


def test_killed_while_removing_nothing_half_keeps_its_name(tmp_path: Path) -> None:
    n, removed = 0, 0
    while True:
        path = tmp_path / f"d{n}"
        make_directory(path)
        if not kill_at(n, lambda path=path: files.remove(path)):
            break
        if path.exists():
            files.verify_directory(path)
        removed += not path.exists()
        n += 1
    assert removed >= n - 1
    files.remove_partials(tmp_path)
    assert all(name.startswith("d") and ".partial-" not in name for name in os.listdir(tmp_path))


def test_the_manifest_lists_size_and_sha256_of_each_file(tmp_path: Path) -> None:
    make_directory(tmp_path / "d")
    manifest = files.read_json(tmp_path / "d" / "MANIFEST.json")
    assert manifest["format"] == 1 and list(manifest["files"]) == ["b.txt", "empty", "inner/a.bin"]
    assert manifest["files"]["b.txt"] == {"bytes": 4, "sha256": hashlib.sha256(b"text").hexdigest()}
    assert len(manifest["self"]) == 64
    records = files.verify_directory(tmp_path / "d")
    assert files.read_recorded(tmp_path / "d", "inner/a.bin", records["inner/a.bin"]) == b"\x00\x01\x02\x03"
    assert files.sha256_file(tmp_path / "d" / "b.txt") == records["b.txt"].sha256


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda d: (d / "b.txt").unlink(), "b.txt: missing"),
        (lambda d: (d / "b.txt").write_text("tex"), "b.txt: 3 of 4 bytes"),
        (lambda d: (d / "b.txt").write_text("tExt"), "b.txt: contents do not match their checksum"),
        (lambda d: (d / "MANIFEST.json").unlink(), "MANIFEST.json: missing"),
        (lambda d: (d / "MANIFEST.json").write_text("[" * 100_000), "MANIFEST.json: contents do not match"),
        (lambda d: (d / "MANIFEST.json").write_text('{"format": 2}'), "contents do not match"),
        (
            lambda d: (d / "MANIFEST.json").write_text('{"format":1,"files":{"../x":{}}}'),
            "contents do not match",
        ),
        (lambda d: (d / "MANIFEST.json").write_text("[]"), "contents do not match"),
        (lambda d: ((d / "b.txt").unlink(), os.mkfifo(d / "b.txt")), "b.txt: not a regular file"),
        (lambda d: ((d / "b.txt").unlink(), (d / "b.txt").symlink_to("inner/a.bin")), "b.txt: "),
        (lambda d: (files.remove(d / "inner"), (d / "inner").touch()), "inner/a.bin: "),
    ],
)
def test_damage_is_named(tmp_path: Path, harm: Callable[[Path], object], reason: str) -> None:
    make_directory(tmp_path / "d")
    harm(tmp_path / "d")
    with pytest.raises(DamagedError) as raised:
        files.verify_directory(tmp_path / "d")
    assert reason in str(raised.value) and is_one_line(raised.value)


def test_files_that_the_manifest_does_not_list_are_ignored(tmp_path: Path) -> None:
    make_directory(tmp_path / "d")
    (tmp_path / "d" / ".DS_Store").write_text("x")
    assert ".DS_Store" not in files.verify_directory(tmp_path / "d")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../x", "a//b", "", ".", "a\\b", "a\0b"])
def test_a_manifest_cannot_lead_out_of_its_directory(tmp_path: Path, name: str) -> None:
    from adm.runtime._directories import FileRecord, manifest_bytes

    (tmp_path / "MANIFEST.json").write_bytes(manifest_bytes({name: FileRecord(0, hashlib.sha256().hexdigest())}))
    with pytest.raises(DamagedError):
        files.verify_directory(tmp_path)


def test_names_are_never_reused(tmp_path: Path) -> None:
    make_directory(tmp_path / "d")
    with pytest.raises(UsageError, match="exists already"):
        make_directory(tmp_path / "d")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        make_directory(tmp_path / "dangling")
    with pytest.raises(UsageError, match="exists already"), files.new_directory(tmp_path / "e"):
        (tmp_path / "e").mkdir()
    assert not leftovers(tmp_path)


def test_an_error_while_filling_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.new_directory(tmp_path / "d") as partial:
        files.write_bytes(partial / "inner" / "f", b"x")
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="regular files"), files.new_directory(tmp_path / "d") as partial:
        (partial / "link").symlink_to("/etc/passwd")
    assert os.listdir(tmp_path) == []


# ---- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1,\n "b": }', "line 2"),
        (b'{"a": "\xff"}', "line 1: not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b"", "line 1"),
        (b"1" * 10_000, "digits"),
    ],
)
def test_invalid_json_is_refused_in_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DamagedError, match=r"x\.json") as raised:
        files.read_json(tmp_path / "x.json")
    assert reason in str(raised.value) and is_one_line(raised.value)


def test_reading_has_limits(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(DamagedError, match="more than 50 bytes"):
        files.read_json(tmp_path / "x.json", max_bytes=50)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "absent", Path("a\0b"), tmp_path / ("x" * 300)):
        with pytest.raises(UsageError) as raised:
            files.read_json(path)
        assert is_one_line(raised.value)


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"z": [1, 2.5, None, True], "a": {"é\ud800": "\n"}, "": 2**70}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value and list(files.read_json(tmp_path / "x.json")) == list(value)
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf{}")
    assert files.read_json(tmp_path / "bom.json") == {}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", float("nan"))


# ---- lock -------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_at_once(tmp_path: Path) -> None:
    with files.lock(tmp_path / "run" / ".lock", "run 'cats'") as held:
        held.check()

        def second() -> None:
            with (
                pytest.raises(
                    ResourceError, match=rf"^run 'cats' is in use by pid {os.getppid()} on .+ since \d{{4}}-"
                ),
                files.lock(tmp_path / "run" / ".lock", "run 'cats'"),
            ):
                pass

        started = time.monotonic()
        assert in_child(second) == 0 and time.monotonic() - started < 2
        with pytest.raises(ResourceError), files.lock(tmp_path / "run" / ".lock"):
            pass
    assert os.listdir(tmp_path / "run") == []
    with files.lock(tmp_path / "run" / ".lock"):
        pass


@pytest.mark.parametrize("before", ["nothing", "one that was killed"])
def test_who_has_only_just_taken_it_is_waited_for_to_say_its_name(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    if before == "one that was killed":

        def hold_and_die() -> None:
            with files.lock(path):
                os.kill(os.getpid(), signal.SIGKILL)

        in_child(hold_and_die)
    record = {"pid": os.getpid(), "host": platform.node(), "since": "now", "token": "0"}
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        says = threading.Timer(0.1, path.write_text, [json.dumps(record)])
        says.start()
        with pytest.raises(ResourceError, match=rf"is in use by pid {os.getpid()} on "), files.lock(path):
            pass
        says.join()
        path.write_text("")
        monkeypatch.setattr(_lock, "NAMED_WITHIN", 0.05)
        with pytest.raises(ResourceError, match="is in use by another process"), files.lock(path):
            pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    def hold_and_die() -> None:
        with files.lock(tmp_path / ".lock"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold_and_die) == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".lock"]
    with files.lock(tmp_path / ".lock") as held:
        held.check()


def test_exactly_one_of_many_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    inside, most, held = 0, 0, 0
    guard = threading.Lock()

    def contend() -> None:
        nonlocal inside, most, held
        for _ in range(40):
            try:
                with files.lock(tmp_path / ".lock"):
                    with guard:
                        inside += 1
                        held += 1
                        most = max(most, inside)
                    time.sleep(0.0005)
                    with guard:
                        inside -= 1
            except ResourceError:
                time.sleep(0.0002)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and held >= 20


def test_a_lock_file_removed_by_its_last_holder_just_then_is_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, calls = _disk.lock, []

    def removed_meanwhile(fd: int, *, wait: bool) -> bool:
        calls.append(fd)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        return take(fd, wait=wait)

    monkeypatch.setattr(_disk, "lock", removed_meanwhile)
    with files.lock(tmp_path / ".lock") as held:
        held.check()
        with pytest.raises(ResourceError), files.lock(tmp_path / ".lock"):
            pass
    assert len(calls) == 3


def test_a_holder_notices_that_another_took_over(tmp_path: Path) -> None:
    """On file systems without working locks the record decides."""
    with files.lock(tmp_path / ".lock", "run 'cats'") as first:
        (tmp_path / ".lock").unlink()
        with files.lock(tmp_path / ".lock", "run 'cats'") as second:
            second.check()
            with pytest.raises(ResourceError, match="run 'cats' is in use by pid"):
                first.check()


# ---- moving -----------------------------------------------------------------------------------------


def test_moving_refuses_an_existing_target(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        files.move(tmp_path / "a", tmp_path / "b")
    files.move(tmp_path / "a", tmp_path / "c")
    files.verify_directory(tmp_path / "c")


def test_only_partial_names_are_swept(tmp_path: Path) -> None:
    kept = ["a", "a.partial", "a.partial-xyz", "a.partial-0123456789", ".partial-01234567"]
    swept = [".a.partial-01234567", "step-00000001.partial-89abcdef"]
    for name in (*kept, *swept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
    assert files.remove_partials(tmp_path) == sorted(swept)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a\nb/" + "y" * 300, "\u202eevil" * 50])
def test_evil_paths_make_one_line(tmp_path: Path, path: str) -> None:
    for attempt in (files.read_json, files.remove, files.sha256_file, lambda p: files.write_bytes(p, b"")):
        try:
            attempt(f"{tmp_path}/{path}")
        except AdmError as error:
            assert is_one_line(error), str(error)
            assert str(error).isprintable()
