"""Lines of JSON between the processes of one job, and what they tell each other about themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adm.runtime.text import one_line
from adm.runtime.version import version

__all__ = ["Member", "Wire"]

MAX_LINE = 1 << 20
SENDING = 5.0
"""Seconds for which a line may find no room in the other's buffer."""


@dataclass(frozen=True)
class Member:
    """A process of the job. device: as torch names it; chip: what tells two devices apart; code: versions.

    machine and started are what makes its pid mean the same process here: empty where that cannot be known.
    """

    rank: int
    size: int
    local_rank: int
    host: str
    pid: int
    device: str
    chip: str
    code: str
    machine: str
    started: str

    @classmethod
    def this(cls, rank: int, size: int, local_rank: int, device: torch.device) -> Member:
        """This process."""
        return cls(
            rank=rank,
            size=size,
            local_rank=local_rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(device),
            chip=_chip(device),
            code=f"adm {version()}, torch {torch.__version__}",
            machine=_machine(),
            started=_started("self"),
        )

    def name(self, phase: str = "") -> str:
        """ "process 1 of 4 (pid 991 on host; last seen: step 77)"."""
        seen = f"; last seen: {one_line(phase, 60)}" if phase else ""
        return f"process {self.rank} of {self.size} (pid {self.pid} on {one_line(self.host, 40)}{seen})"

    def describe(self) -> str:
        """Where it computes: "process 1 of 4 on host, cuda:1"."""
        return f"process {self.rank} of {self.size} on {self.host}, {self.device}"

    def kill(self) -> None:
        """Ends the process if it is on this machine: one that is stopped cannot end itself."""
        if self.machine and self.started and self.machine == _machine() and self.started == _started(str(self.pid)):
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _chip(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    # The number alone means nothing where each process sees only its own devices.
    return str(torch.cuda.get_device_properties(device).uuid)


def _machine() -> str:
    """Names this boot and this process's name space of pids; empty where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: str) -> str:
    """When the process started, in ticks since the boot; empty where that cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Wire:
    """A connection to another process: one JSON object a line. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SENDING)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._sending = threading.Lock()
        self._received = b""

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, **message: Any) -> bool:
        """Whether the line went out: the receiving side learns why it did not."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            with self._sending:
                self.connection.sendall(data)
        except OSError:
            return False
        return True

    def send_member(self, member: Member, **more: Any) -> bool:
        return self.send(hello=asdict(member), **more)

    def receive(self) -> list[dict[str, Any]]:
        """The messages that are there; to be called when there is something to read.

        Raises ConnectionError at the end of the connection, ValueError for what no process of ours sends.
        """
        try:
            data = self.connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not data:
            raise ConnectionError("closed")
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if len(self._received) > MAX_LINE or not all(isinstance(message, dict) for message in messages):
            raise ValueError("not lines of JSON objects")
        return messages

    def close(self) -> None:
        with suppress(OSError):
            self.connection.close()
