"""Each process hears of the others once a second, and ends itself when one of them is gone.

All talk to process 0. What only computes for long goes on saying so, from a thread of its own; one that was killed is
missed at once, one that is stopped after `timeout`. The main thread may then wait inside a collective for ever: the
thread says the one line and ends the process. No file suffers, see `runtime.files`.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, NoReturn

from adm.runtime._meeting import Met
from adm.runtime._wire import Member, Wire
from adm.runtime.errors import PeerLostError
from adm.runtime.text import one_line

__all__ = ["WAITING", "Watch", "watch_over"]

TICK = 0.2
SETTLE = 0.03
"""Seconds between the first death and the line about it: several may die together. torchrun stops all within 0.1."""
GRACE = 5.0
"""Seconds for which one that failed may go on saying why."""
LAST_WORD = 0.5
"""Seconds in which the others should have heard the last word, and closed."""
PATIENCE = 300.0
"""Seconds without a new phase after which process 0 says for whom it waits."""
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


def watch_over(met: Met, rank: int, launcher: int | None) -> Watch:
    """The running watch of this process."""
    watch = _Center(met, rank, launcher) if rank == 0 else _Other(met, rank, launcher)
    watch.start()
    return watch


class _Center(Watch):
    """Process 0's."""

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


class _Other(Watch):
    """That of every other process."""

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
