"""Streams that break, fill up or are closed cost no work: what is watched may go away."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Callable

import pytest

from adm.cli._progress import bar, say
from adm.cli._streams import lasting_streams
from adm.cli.main import main


def broken_pipe() -> io.TextIOWrapper:
    """What `2>&1 | head -1` leaves of stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def full_disk() -> io.TextIOWrapper:
    return open("/dev/full", "w", buffering=1)


def closed_terminal() -> io.TextIOWrapper:
    shown, stderr = pty.openpty()
    stream = os.fdopen(stderr, "w", buffering=1)
    os.close(shown)
    return stream


BROKEN = pytest.mark.parametrize("opened", [broken_pipe, full_disk, closed_terminal])


@BROKEN
def test_a_stderr_that_takes_nothing_ends_no_work_and_changes_no_exit_code(
    opened: Callable[[], io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Closing it raises if anything is left in it, as the end of the interpreter would complain.
    with opened() as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with lasting_streams(), bar("training", 3) as shown:
            say("x" * 100_000)
            shown.update(3)
        assert main(["nonsense"]) == 2
        assert sys.stderr is stderr


@BROKEN
def test_the_twin_without_that_the_work_would_end(
    opened: Callable[[], io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(OSError, match=r"roken pipe|No space|Input/output"):
            say("x")
        with lasting_streams():
            pass


def test_a_terminal_closed_under_the_progress_bar_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    seen, terminal = pty.openpty()
    with os.fdopen(terminal, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with lasting_streams(), bar("training", 3) as shown:
            assert shown.progress is not None  # a display, whose own thread writes too
            os.close(seen)
            for step in range(3):
                shown.update(step + 1, "loss 1")
                shown.progress.refresh()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_takes_all_and_the_other_one_nothing_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, None)  # as Python has it after `>&-`
        code = main(["--version"] if name == "stdout" else ["nonsense"])
    assert (code, *capsys.readouterr()) == (0 if name == "stdout" else 2, "", "")


def test_no_file_is_opened_as_a_standard_descriptor() -> None:
    before = os.dup(0)
    try:
        os.close(0)
        with lasting_streams():
            assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
    finally:
        os.dup2(before, 0)
        os.close(before)
