"""Process 0's watch: it hears all the others, decides who is lost and who says why, and ends the job."""

from __future__ import annotations

import selectors
import time
from typing import Any

from adm.runtime._meeting import Met
from adm.runtime._watch import GRACE, SETTLE, UNEXPECTED, WAITING, Watch
from adm.runtime.text import one_line

__all__ = ["Center"]

LAST_WORD = 0.5
"""Seconds in which the others should have heard the last word, and closed."""
PATIENCE = 300.0
"""Seconds without a new phase after which process 0 says for whom it waits."""


class Center(Watch):
    """Process 0's watch."""

    def __init__(self, met: Met, rank: int, launcher: int | None) -> None:
        super().__init__(met, rank, launcher)
        self.heard = dict.fromkeys(met.wires, 0.0)
        self.last_phase = dict.fromkeys(met.wires, self.phase)
        self.left: set[int] = set()
        self.gone: dict[int, float] = {}
        self.speaker: int | None = None
        self.deadline = 0.0
        self.notices = 0
        self.waiting_since: tuple[str, float] = ("", 0.0)
        for other, wire in met.wires.items():
            self.selector.register(wire, selectors.EVENT_READ, other)

    def leave(self) -> None:
        with self._lock:
            self.left.add(0)
        self._over.wait()

    def fail(self, code: int) -> None:
        if self._grant(0):
            self._tell(failed=0)
            return
        self.code = self.code if code == UNEXPECTED else code
        time.sleep(3 * GRACE)  # the thread ends this process

    def phases(self) -> str:
        return ", ".join(f"{rank} in {phase}" for rank, phase in [(0, self.phase), *self.last_phase.items()][:8])

    def _receive(self, rank: int) -> None:
        wire = self.met.wires[rank]
        try:
            messages = wire.receive()
        except (ConnectionError, ValueError):
            self.selector.unregister(wire)
            self.gone[rank] = self.clock.now
            self.tick = SETTLE
            return
        self.heard[rank] = self.clock.now
        for message in messages:
            if "phase" in message:
                self.last_phase[rank] = str(message["phase"])
            elif "left" in message:
                self.left.add(rank)
            elif "failed" in message:
                wire.send(speak=self._grant(rank))

    def _grant(self, rank: int) -> bool:
        """Whether `rank` is the one process that says why the job ends."""
        with self._lock:
            if self.speaker is None:
                self.speaker, self.deadline = rank, self.clock.now + GRACE
            return self.speaker == rank

    def _say(self, phase: str) -> None:
        self._tell(phase=phase)

    def _tell(self, **message: Any) -> None:
        for rank, wire in self.met.wires.items():
            if rank not in self.gone:
                wire.send(**message)

    def _check(self) -> None:
        now = self.clock.now
        if self.speaker is not None:
            # Only when it has said all, so that what launched it finds its exit code first.
            if self.speaker in self.gone or now > self.deadline:
                self._close(None)
            return
        if len(self.left) == self.this.size:
            self._tell(over=True)
            self._drain()
            self._over.set()
            return
        dead = [rank for rank in self.gone if rank not in self.left]
        if dead and now > min(self.gone[rank] for rank in dead) + SETTLE:
            self._close(self._gone([(self.met.members[rank], self.last_phase[rank]) for rank in dead], frozen=False))
        silent = [
            rank
            for rank, heard in self.heard.items()
            if rank not in self.left and rank not in self.gone and now > heard + self.timeout
        ]
        if silent:
            lost = [self.met.members[rank] for rank in silent]
            for member in lost:
                member.kill()
            self._close(self._gone([(member, self.last_phase[member.rank]) for member in lost], frozen=True))
        self._notice()

    def _close(self, line: str | None) -> None:
        """Ends all processes, this one with the line."""
        if line is not None:  # before the launcher hears of it
            self._print(line)
        self._tell(end=True)
        self._drain()
        if self.speaker == 0:
            self._over.set()  # it is ending already, of itself
            return
        self._end(None)

    def _drain(self) -> None:
        """Lets the others hear the last word: a connection that ends with something unread may lose it."""
        deadline = time.monotonic() + LAST_WORD
        while self.selector.get_map() and time.monotonic() < deadline:
            for key, _ in self.selector.select(SETTLE):
                self._receive(key.data)

    def _notice(self) -> None:
        """Says now and then for whom this process waits, be it inside an exchange of gradients."""
        now, phase = self.clock.now, self.phase
        if phase != self.waiting_since[0]:
            self.waiting_since, self.notices = (phase, now), 0
        if now - self.waiting_since[1] <= PATIENCE * (self.notices + 1):
            return
        self.notices += 1
        busy = [
            f"process {rank} at: {one_line(text, 60)}"
            for rank, text in self.last_phase.items()
            if rank not in self.left and text != phase and not text.startswith(WAITING)
        ]
        if busy:
            minutes = f"{PATIENCE * self.notices / 60:g} minutes"
            line = f"no news for {minutes}: process 0 is at: {one_line(phase, 60)}, {', '.join(busy[:4])}"
            self._print(f"note: {line}.")
