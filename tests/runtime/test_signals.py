"""Requests to stop: the first is noted and answered on a terminal, only Ctrl-C insists, nohup is respected."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adm.runtime.signals import stop_requests

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@contextmanager
def as_stderr(fd: int) -> Iterator[None]:
    """The descriptor is the process's stderr for the block."""
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def terminal_as_stderr() -> Iterator[int]:
    """What a person sees of it, to be read; a read without anything to see fails."""
    shown, stderr = pty.openpty()
    os.set_blocking(shown, False)
    with as_stderr(stderr):
        yield shown
    os.close(stderr)
    os.close(shown)


def says_nothing(terminal: int) -> bool:
    """More than what is written now."""
    os.write(2, b"end")
    return os.read(terminal, 1000) == b"end"


@pytest.mark.parametrize("number", [TERM, INT, HUP])
def test_the_first_request_is_answered_on_a_terminal_at_once_and_once(number: int) -> None:
    with terminal_as_stderr() as terminal, stop_requests() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        said = os.read(terminal, 1000).decode()
        assert said.startswith("\r\nadm: stopping in order") and said.endswith("Ctrl-C stops at once.\r\n\r\n")
        signal.raise_signal(TERM)
        assert says_nothing(terminal)


def test_processes_that_are_not_to_speak_and_files_get_no_answer(tmp_path: Path) -> None:
    with terminal_as_stderr() as terminal, stop_requests(told=False) as stop:
        signal.raise_signal(INT)
        assert stop() and says_nothing(terminal)
    with open(tmp_path / "log", "wb") as log, as_stderr(log.fileno()), stop_requests() as stop:
        signal.raise_signal(INT)
        assert stop()
    assert (tmp_path / "log").read_bytes() == b""


def test_a_closed_terminal_is_no_reason_not_to_stop_in_order() -> None:
    shown, stderr = pty.openpty()
    os.close(shown)
    with as_stderr(stderr), stop_requests() as stop:
        signal.raise_signal(HUP)
        assert stop()
    os.close(stderr)


@pytest.mark.parametrize("repeated", [TERM, HUP])
def test_signals_that_schedulers_and_shells_repeat_do_not_insist_and_ctrl_c_does(repeated: int) -> None:
    with stop_requests() as stop:
        for _ in range(3):
            signal.raise_signal(repeated)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(INT)


def test_a_sighup_that_nohup_had_ignored_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(HUP)
            assert not stop()
            signal.raise_signal(TERM)
            assert stop()
        assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)
