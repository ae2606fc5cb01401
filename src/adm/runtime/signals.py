"""Stopping on request: the first signal asks, a second Ctrl-C insists."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["stop_requests"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
STDERR = 2
# A new line first and an empty one last: a progress display erases its own two lines and leaves this one.
HEARD = b"\nadm: stopping in order, which may take a moment; a second Ctrl-C stops at once.\n\n"


@contextmanager
def stop_requests(told: bool = True) -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C, SIGTERM and SIGHUP are noted instead of obeyed; the value says whether one came.

    The first is answered at once where stderr is a terminal, unless `told` is False (processes other than the first). A
    Ctrl-C after any of them interrupts at once. Other repeated signals do not: schedulers and shells send them to a
    process, to its group and once more before they kill. A SIGHUP that nohup had ignored stays so. Outside the main
    thread nothing is changed, and nothing is ever noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if told and len(received) == 1:
            _answer()

    before: dict[int, Any] = {number: signal.signal(number, note) for number in SIGNALS if not _by_nohup(number)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _by_nohup(number: int) -> bool:
    """A shell has its background jobs ignore SIGINT too, but who sends them one by kill wants them to stop."""
    return number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == signal.SIG_IGN


def _answer() -> None:
    """Past sys.stderr, in whose middle the signal may have come."""
    with suppress(OSError):
        if os.isatty(STDERR):
            os.write(STDERR, HEARD)
