"""The watch of every process but 0: it hears process 0 alone, and ends its own process when that says so or is gone."""

from __future__ import annotations

import selectors
import threading
import time

from adm.runtime._meeting import Met
from adm.runtime._watch import GRACE, UNEXPECTED, Watch
from adm.runtime._wire import Wire

__all__ = ["Other"]


class Other(Watch):
    """The watch of a process other than 0."""

    def __init__(self, met: Met, rank: int, launcher: int | None) -> None:
        super().__init__(met, rank, launcher)
        self.wire: Wire = met.wires[0]
        self.heard = 0.0
        self.center_phase = self.phase
        self.failing: float | None = None
        self.may_speak: bool | None = None
        self._answered = threading.Event()
        self.selector.register(self.wire, selectors.EVENT_READ, 0)

    def leave(self) -> None:
        self.wire.send(phase="the end")
        self.wire.send(left=True)
        self._over.wait()

    def fail(self, code: int) -> None:
        if self.failing is None and self.wire.send(failed=True):
            self._answered.wait(GRACE)
            if self.may_speak is not False:
                return
        self.code = self.code if code == UNEXPECTED else code
        time.sleep(3 * GRACE)  # the thread ends this process, when the one that speaks has spoken
        self._end(None)

    def _receive(self, rank: int) -> None:
        try:
            messages = self.wire.receive()
        except (ConnectionError, ValueError):
            self._lost(frozen=False)
            return
        self.heard = self.clock.now
        for message in messages:
            if "phase" in message:
                self.center_phase = str(message["phase"])
            elif "speak" in message:
                self.may_speak = bool(message["speak"])
                self._answered.set()
            elif "failed" in message:
                self.failing = self.clock.now
            elif "over" in message:
                self._over.set()
            elif "end" in message and not self.may_speak:
                self._end(None)

    def _say(self, phase: str) -> None:
        self.wire.send(phase=phase)

    def _check(self) -> None:
        if self._over.is_set():
            return
        if self.failing is not None and self.clock.now > self.failing + 2 * GRACE:
            self._end(None)
        if self.clock.now > self.heard + self.timeout:
            self._lost(frozen=True)

    def _lost(self, frozen: bool) -> None:
        """Process 0 is gone: the first process of each machine says so, and the first of its own."""
        if self._over.is_set() or self.may_speak:
            self._over.set()
            return
        if self.failing is not None:
            self._end(None)
        center = self.met.members[0]
        if frozen:
            center.kill()
        speaks = self.this.rank == 1 or self._is_first_here()
        self._end(self._gone([(center, self.center_phase)], frozen) if speaks else None)
