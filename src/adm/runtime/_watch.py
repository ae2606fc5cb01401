"""Each process hears of the others once a second, and ends itself when one of them is gone.

All talk to process 0. What only computes for long goes on saying so, from a thread of its own; one that was killed is
missed at once, one that is stopped after `timeout`. The main thread may then wait inside a collective for ever: the
thread says the one line and ends the process. No file suffers, see `runtime.files`. Here is what all have in common;
`_watch_center` is process 0's watch, `_watch_other` that of every other.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import NoReturn

from adm.runtime._meeting import Met
from adm.runtime._wire import Member
from adm.runtime.errors import PeerLostError
from adm.runtime.text import one_line

__all__ = ["GRACE", "SETTLE", "UNEXPECTED", "WAITING", "Watch"]

TICK = 0.2
SETTLE = 0.03
"""Seconds between the first death and the line about it: several may die together. torchrun stops all within 0.1."""
GRACE = 5.0
"""Seconds for which one that failed may go on saying why."""
WAITING = "waiting for "
UNEXPECTED = 1
"""The exit code of an error that is none of ours: where another process failed before, a consequence of that."""


class Clock:
    """Seconds for which this process was awake: one that was stopped has not missed what others said meanwhile."""

    LONGEST = 5 * TICK

    def __init__(self) -> None:
        self.now = 0.0
        self._last = time.monotonic()

    def tick(self) -> None:
        """To be called each TICK: more than LONGEST since the last call was a sleep, and does not count."""
        last, self._last = self._last, time.monotonic()
        if self._last - last <= self.LONGEST:
            self.now += self._last - last


class Watch(threading.Thread, ABC):
    """What process 0 and the others have in common. phase: what this process is doing, for the others' message."""

    def __init__(self, met: Met, rank: int, launcher: int | None) -> None:
        super().__init__(name="adm watch", daemon=True)
        self.met, self.this, self.timeout = met, met.members[rank], met.timeout
        self.launcher = launcher
        self.phase = "the start"
        self.clock = Clock()
        self.tick = TICK
        self.beat = min(1.0, met.timeout / 4)
        self.code = PeerLostError.exit_code
        self.selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # without a watch nothing would be noticed any more
            self._end(f"the watch of {self.this.name()} failed: {one_line(repr(error), 120)}. Report this.")
        self.selector.close()
        for wire in self.met.wires.values():
            wire.close()

    def _watch(self) -> None:
        next_beat, said = 0.0, ""
        while not self._over.is_set():
            ready = self.selector.select(self.tick)
            self.clock.tick()
            for key, _ in ready:
                self._receive(key.data)
            phase = self.phase
            if phase != said or self.clock.now >= next_beat:
                self._say(phase)
                next_beat, said = self.clock.now + self.beat, phase
            self._check()
            if self.launcher is not None and os.getppid() != self.launcher:
                text = f"what started {self.this.name()} (pid {self.launcher}) is gone. Start all again."
                self._end(text if self._is_first_here() else None)

    @abstractmethod
    def leave(self) -> None:
        """Returns when all processes have left; ends this one if another is lost before."""

    @abstractmethod
    def fail(self, code: int) -> None:
        """Returns if this process is the first to fail, and so the one to say why; else ends it with `code`."""

    def verdict(self, seconds: float) -> None:
        """Waits so long for the word that another process is lost, which ends this one."""
        self._over.wait(seconds)

    def phases(self) -> str:
        """What is known of what all are doing."""
        return f"this one in {self.phase}"

    @abstractmethod
    def _receive(self, rank: int) -> None: ...

    @abstractmethod
    def _say(self, phase: str) -> None: ...

    @abstractmethod
    def _check(self) -> None: ...

    def _is_first_here(self) -> bool:
        """Whether it is this process that speaks for its machine."""
        return self.this.rank == min(member.rank for member in self.met.members if member.host == self.this.host)

    def _gone(self, members: list[tuple[Member, str]], frozen: bool) -> str:
        """The line about processes that are lost, each with the phase that it was last seen in."""
        names = " and ".join(member.name(phase) for member, phase in members[:3])
        names += f" and {len(members) - 3} more" if len(members) > 3 else ""
        if frozen:
            return f"{names} froze: nothing was heard for {self.timeout:g} s. Look at its machine, and start all again."
        return (
            f"{names} died without a word, as when killed or out of memory. "
            "Read what it said before, and start all again."
        )

    def _end(self, line: str | None) -> NoReturn:
        """Ends the process whatever its main thread is doing."""
        flush = threading.Thread(target=_flush, daemon=True)  # the main thread may hold the lock of the buffer
        flush.start()
        flush.join(0.5)
        if line is not None:
            self._print(line)
        os._exit(self.code)

    @staticmethod
    def _print(line: str) -> None:
        with suppress(OSError):
            os.write(2, f"adm: {line}\n".encode())


def _flush() -> None:
    with suppress(Exception):
        sys.stdout.flush()
