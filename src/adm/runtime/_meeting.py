"""How the processes of a job find each other: all connect to process 0, which then knows who did not come."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from adm.runtime._launch import Launch
from adm.runtime._wire import Member, Wire
from adm.runtime.errors import PeerLostError, ResourceError
from adm.runtime.text import one_line

__all__ = ["Met", "meet"]

PAUSE = 0.2
ANSWER = 5.0
"""Seconds in which whoever listens must show that it is process 0 of this job, and those for a port to become free."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Met:
    """All processes of the job, and the connections: process 0 has one to each other, by rank; they one to it.

    store: of torch.distributed, held by process 0. timeout: what process 0 goes by.
    """

    members: tuple[Member, ...]
    wires: dict[int, Wire]
    store: Any
    timeout: float


def meet(launch: Launch, this: Member, seconds: float, timeout: float, check: Callable[[], None]) -> Met:
    """Waits for all processes of the job.

    check: called while waiting, may raise. Raises PeerLostError that names who did not come within `seconds`, and
    ResourceError when no port is free.
    """
    deadline = time.monotonic() + seconds
    if launch.rank == 0:
        return _Host(launch, this, timeout, check).gather(deadline, seconds)
    return _find_host(launch, this, deadline, seconds, check)


class _Host:
    """Process 0 while the others come."""

    def __init__(self, launch: Launch, this: Member, timeout: float, check: Callable[[], None]) -> None:
        self.launch, self.this, self.timeout, self.check = launch, this, timeout, check
        self.listener = _listen(launch)
        self.members = {0: this}
        self.wires: dict[int, Wire] = {}
        self.selector = selectors.DefaultSelector()

    def gather(self, deadline: float, seconds: float) -> Met:
        with self.listener, self.selector:
            self.selector.register(self.listener, selectors.EVENT_READ)
            if self.launch.store:
                self._announce(deadline)
            while len(self.members) < self.launch.size:
                self.check()
                if time.monotonic() > deadline:
                    raise self._missing(seconds)
                for key, _ in self.selector.select(PAUSE):
                    if key.fileobj is self.listener:
                        self._accept()
                    else:
                        self._hear(key.data)
        members = tuple(self.members[rank] for rank in range(self.launch.size))
        # A store of this start's own: in the one that torchrun keeps, a restart finds what the last start left.
        store = _store("127.0.0.1", 0, seconds, is_master=True)
        for wire in self.wires.values():  # one that does not get it is noticed by the watch
            wire.send(welcome=[vars(member) for member in members], port=store.port, timeout=self.timeout)
        return Met(members, self.wires, store, self.timeout)

    def _announce(self, deadline: float) -> None:
        """Tells the others through torchrun's store where this process listens."""
        store = _torchrun_store(self.launch, deadline)
        store.set(_key(self.launch), f"{_own_address(self.launch)} {self.listener.getsockname()[1]}")

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            wire = Wire(connection)
            self.selector.register(wire, selectors.EVENT_READ, wire)

    def _hear(self, wire: Wire) -> None:
        try:
            messages = wire.receive()
        except (ConnectionError, ValueError):
            self._forget(wire)
            for rank, other in self.wires.items():
                if other is wire:
                    name = self.members[rank].name()
                    raise self._give_up(f"{name} ended while the others came. Read what it said") from None
            return
        for message in messages:
            try:
                member = Member(**message["hello"])
                known = message["job"] == self.launch.job and member.size == self.launch.size
            except (KeyError, TypeError):
                known = False
            if not known:
                self._forget(wire)  # another job, or a stranger that looks for open ports
            elif member.rank in self.members or not 0 < member.rank < self.launch.size:
                wire.send(refused=f"{self.members.get(member.rank, self.this).name()} is there already")
                self._forget(wire)
            else:
                self.members[member.rank] = member
                self.wires[member.rank] = wire
                wire.send(seen=True)

    def _forget(self, wire: Wire) -> None:
        self.selector.unregister(wire)
        wire.close()

    def _missing(self, seconds: float) -> PeerLostError:
        missing = [rank for rank in range(self.launch.size) if rank not in self.members]
        names = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
        return self._give_up(
            f"process{'es' if len(missing) > 1 else ''} {names} of {self.launch.size} did not come to "
            f"{one_line(self.launch.address, 60)} port {self.listener.getsockname()[1]} within {seconds:g} s. "
            f"Read what {'they' if len(missing) > 1 else 'it'} said"
        )

    def _give_up(self, text: str) -> PeerLostError:
        """The error to raise, after the others know that it is process 0 which says why."""
        for wire in self.wires.values():
            wire.send(given_up=True)
        return PeerLostError(f"{text}, and start all {self.launch.size} at the same time.")


def _listen(launch: Launch) -> socket.socket:
    """A socket at the first of the ports that is free; any port where torchrun's store can say which."""
    dual = launch.address not in LOOPBACK and socket.has_dualstack_ipv6()
    host = "" if launch.address not in LOOPBACK else "::1" if launch.address == "::1" else "127.0.0.1"
    family = socket.AF_INET6 if dual or host == "::1" else socket.AF_INET
    deadline = time.monotonic() + ANSWER
    while True:
        for port in (0,) if launch.store else launch.ports:
            try:
                return socket.create_server(
                    (host, port), family=family, backlog=max(128, launch.size), dualstack_ipv6=dual
                )
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
        if time.monotonic() > deadline:
            ports = ", ".join(map(str, launch.ports))
            raise ResourceError(
                f"process 0 of {launch.size} cannot listen at port {ports}: {reason}. "
                "End what uses it, or set MASTER_PORT to a free one (torchrun: --master-port, or --standalone)."
            )
        time.sleep(PAUSE)


def _find_host(launch: Launch, this: Member, deadline: float, seconds: float, check: Callable[[], None]) -> Met:
    """Process 0, tried at every place where it may be until it answers."""
    why = "nobody answers"
    while time.monotonic() < deadline:
        for address, port in _places(launch, deadline):
            check()
            try:
                connection = socket.create_connection((address, port), timeout=ANSWER)
            except OSError as error:
                why = error.strerror or str(error)
                continue
            wire = Wire(connection)
            wire.send_member(this, job=launch.job)
            try:
                welcome = _welcome(wire, launch, deadline, check)
            except (ConnectionError, ValueError, KeyError, TypeError) as error:
                why = f"what answers there is not process 0 of this job ({error})"
                wire.close()
                continue
            members = tuple(Member(**member) for member in welcome["welcome"])
            store = _store(address, int(welcome["port"]), seconds)
            return Met(members, {0: wire}, store, float(welcome["timeout"]))
        time.sleep(PAUSE)
    raise PeerLostError(
        f"process 0 of {launch.size} was not found at {one_line(launch.address, 60)} port "
        f"{', '.join(map(str, launch.ports))} within {seconds:g} s: {one_line(why, 80)}. "
        f"Read what it said, and start all {launch.size} at the same time."
    )


def _welcome(wire: Wire, launch: Launch, deadline: float, check: Callable[[], None]) -> dict[str, Any]:
    """What process 0 says when all are there. ConnectionError when it ends, or is none."""
    answer = time.monotonic() + ANSWER
    seen = False
    with selectors.DefaultSelector() as selector:
        selector.register(wire, selectors.EVENT_READ)
        while time.monotonic() < (deadline + ANSWER if seen else answer):
            check()
            if not selector.select(PAUSE):
                continue
            try:
                messages = wire.receive()
            except ConnectionError:
                if not seen:
                    raise
                raise PeerLostError(
                    f"process 0 of {launch.size} ended while the others came. Read what it said, and start all again."
                ) from None
            for message in messages:
                seen = seen or "seen" in message
                if "welcome" in message:
                    return message
                if "refused" in message:
                    raise PeerLostError(
                        f"two processes are number {launch.rank}: {one_line(message['refused'], 80)}. "
                        "Give each its own RANK."
                    )
                if "given_up" in message:
                    raise SystemExit(PeerLostError.exit_code)  # process 0 says who is missing
    raise ConnectionError("no answer")


def _places(launch: Launch, deadline: float) -> Iterator[tuple[str, int]]:
    if not launch.store:
        yield from ((launch.address, port) for port in launch.ports)
        return
    store = _torchrun_store(launch, deadline)
    if store.check([_key(launch)]):
        address, _, port = store.get(_key(launch)).decode().rpartition(" ")
        yield address or launch.address, int(port)


def _torchrun_store(launch: Launch, deadline: float) -> Any:
    return _store(launch.address, launch.ports[0], max(1.0, deadline - time.monotonic()))


def _store(address: str, port: int, seconds: float, is_master: bool = False) -> Any:
    from torch.distributed import TCPStore

    try:
        return TCPStore(address, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=seconds))
    except RuntimeError as error:
        raise PeerLostError(
            f"the store at {one_line(address, 60)} port {port} does not answer ({one_line(error, 80)}). "
            "Start all again."
        ) from error


def _key(launch: Launch) -> str:
    return f"adm/{launch.job}/process 0"


def _own_address(launch: Launch) -> str:
    """This machine's address as seen from torchrun's store; empty when that is on this machine."""
    try:
        family, _, _, _, place = socket.getaddrinfo(launch.address, launch.ports[0], type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing: only the route is asked for
            own = str(probe.getsockname()[0])
            return "" if own == str(place[0]) or own.startswith("127.") or own == "::1" else own
    except OSError:
        return ""
