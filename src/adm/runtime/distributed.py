"""Many processes, as torchrun or srun start them; a single one never touches torch.distributed.

The environment is read, never written. Processes are numbered from 0, as torchrun does. Whatever waits for another
process ends when that one is gone, with a line that names it and exit code 7: see `_watch`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adm.runtime._launch import find_launch
from adm.runtime._wire import Member
from adm.runtime.errors import AdmError, DataError, PeerLostError, StoppedError, UsageError
from adm.runtime.text import one_line

if TYPE_CHECKING:
    from adm.runtime._watch import Watch

__all__ = ["World", "join"]

MEETING = 300.0
"""Seconds in which all processes must come."""
TIMEOUT = 60.0
"""Seconds without a word after which a process counts as frozen; ADM_TIMEOUT says otherwise."""
CONSEQUENCE = 2.0
"""Seconds in which the loss of a process is known, where what failed may have failed because of it."""


@dataclass(frozen=True)
class World:
    """This process, number `rank` of `size` in all and number `local_rank` on its machine.

    members: what each process is, in the order of the ranks; none for a single one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    members: tuple[Member, ...] = ()
    _group: Any = field(default=None, repr=False, compare=False)
    _watch: Watch | None = field(default=None, repr=False, compare=False)

    def share(self, num: int, block: int = 1) -> range:
        """The part of 0..num-1 that is this process's: contiguous, and cut at multiples of `block`.

        Parts in the order of the ranks give 0..num-1. Work in blocks of `block` meets the same blocks in one process
        as in many.
        """
        return self.shares(num, block)[self.rank]

    def shares(self, num: int, block: int = 1) -> list[range]:
        """The part of each process."""
        num_blocks = -(-num // block)
        cuts = [min(num_blocks * rank // self.size * block, num) for rank in range(self.size + 1)]
        return [range(start, stop) for start, stop in itertools.pairwise(cuts)]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor | None:
        """The rows of all processes under each other, on the CPU of process 0; None elsewhere.

        rows: (counts[rank], ...) of one dtype. Raises PeerLostError when a process is gone.
        """
        rows = rows.detach().cpu().contiguous()
        if self.size == 1:
            return rows
        from torch import distributed

        if len(rows) != counts[self.rank]:
            raise ValueError(f"process {self.rank} has {len(rows)} rows, not {counts[self.rank]}")
        with self._waiting("the rows of all"):
            if self.rank > 0:
                if len(rows) > 0:
                    distributed.send(rows, dst=0, group=self._group)
                return None
            gathered = rows.new_empty((sum(counts), *rows.shape[1:]))
            *parts, _ = gathered.tensor_split(list(itertools.accumulate(counts)))
            parts[0].copy_(rows)
            for peer in range(1, self.size):
                if counts[peer] > 0:
                    distributed.recv(parts[peer], src=peer, group=self._group)
            return gathered

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes under each other, in the order of the ranks, on the CPU of each.

        rows: as many in each process, of one shape and dtype. Raises PeerLostError when a process is gone.
        """
        rows = rows.detach().cpu().contiguous()
        if self.size == 1:
            return rows
        from torch import distributed

        gathered = rows.new_empty((self.size * len(rows), *rows.shape[1:]))
        with self._waiting("the rows of all"):
            distributed.all_gather(list(gathered.tensor_split(self.size)), rows, group=self._group)
        return gathered

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: what one was asked to do, all can do together."""
        return bool(self.all_gather(torch.tensor([flag], dtype=torch.uint8)).any())

    def agree(self, what: str, value: str, error: type[AdmError] = DataError) -> None:
        """Raises `error` in each process, naming those that differ, unless the value is the same in all.

        value: a line, or several of which those that differ are shown.
        """
        if self.size == 1:
            return
        digests = self.all_gather(_bytes_row(hashlib.sha256(value.encode()).digest()))
        rows = [bytes(row.tolist()) for row in digests]
        if len(set(rows)) == 1:
            return
        common = Counter(rows).most_common(1)[0][0]
        usual = rows.index(common)
        other, *more = (rank for rank, row in enumerate(rows) if row != common)
        ours, theirs = (self._text_of(rank, value).split("\n") for rank in (usual, other))
        usually = one_line(", ".join(line for line in ours if line not in theirs) or "less", 90)
        otherwise = one_line(", ".join(line for line in theirs if line not in ours) or "less", 90)
        too = f" (and {', '.join(map(str, more[:4]))} not either)" if more else ""
        raise error(
            f"processes see different {what}: process {usual} has {usually}, process {other} has {otherwise}{too}. "
            f"Give all {self.size} the same."
        )

    def from_first(self, text: str | None) -> str:
        """Process 0's text, in every process; what the others give does not matter."""
        if self.size == 1:
            return text or ""
        return self._text_of(0, text or "")

    def texts(self, text: str) -> list[str]:
        """The text of each process, in the order of the ranks, in every process."""
        return [text] if self.size == 1 else [self._text_of(rank, text) for rank in range(self.size)]

    def phase(self, text: str) -> None:
        """Says what this process is doing now, such as "step 77": what the others say if it is lost."""
        if self._watch is not None:
            self._watch.phase = text

    def wait(self, what: str) -> None:
        """Returns when every process has come here; waits as long as the others are alive. what: ends "waiting for"."""
        if self.size > 1:
            from torch import distributed

            with self._waiting(what):
                distributed.barrier(group=self._group)

    def replicate(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with process 0's weights in all processes, whose `backward` sums gradients over them.

        A sum and no mean: divide each loss by the number of images of all processes. Attributes such as `config`, and
        `state_dict`, are the network's, which is itself returned where there is one process.
        """
        if self.size == 1:
            return network
        from torch import distributed

        from adm.runtime._replica import Replica

        with self._waiting("the weights of process 0"):
            return Replica(network, device, distributed.group.WORLD)

    def microbatch(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a replicated network: processes exchange gradients in the last one alone."""
        if self.size == 1:
            return nullcontext()
        from adm.runtime._replica import summing

        return summing(network, last)

    def lines(self) -> list[str]:
        """Which process computes where: "process 1 of 4 on host, cuda:1"."""
        return [member.describe() for member in self.members]

    def _text_of(self, rank: int, text: str) -> str:
        from torch import distributed

        data = _bytes_row(text.encode())
        length = torch.tensor([data.shape[1]])
        with self._waiting(f"word from process {rank}"):
            distributed.broadcast(length, src=rank, group=self._group)
            if self.rank != rank:
                data = torch.empty(1, int(length), dtype=torch.uint8)
            if int(length) > 0:
                distributed.broadcast(data, src=rank, group=self._group)
        return bytes(data.flatten().tolist()).decode()

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        from adm.runtime._watch import WAITING

        watch = self._watch
        assert watch is not None  # size > 1
        before, watch.phase = watch.phase, WAITING + what
        try:
            yield
        except RuntimeError as error:
            with _unhurried():
                watch.verdict(CONSEQUENCE)
            raise PeerLostError(
                f"process {self.rank} of {self.size} waited for {what} in vain ({one_line(error, 80)}; "
                f"{one_line(watch.phases(), 80)}). Start all again."
            ) from error
        finally:
            watch.phase = before


@contextmanager
def join(
    device: torch.device | None = None, *, timeout: float | None = None, meeting: float = MEETING
) -> Iterator[World]:
    """The world that the environment describes, as torchrun or srun set it, left at the end.

    Without those variables, or with a size of 1, this process is alone. device: on which this process computes, the
    CPU if None: gradients go by NCCL between CUDA devices, everything else by gloo. timeout: seconds without a word
    from a process after which it counts as frozen, None for ADM_TIMEOUT or 60. meeting: seconds in which all must come.

    When another process is lost, one line says which, and this one exits with code 7 whatever it is doing. Of the
    exceptions that leave the block, only the first of all processes is raised; the other processes exit without a
    word. Raises UsageError for an environment that cannot be, PeerLostError when the others do not come.
    """
    launch = find_launch(os.environ)
    if launch is None:
        yield World()
        return
    from adm.runtime._meeting import meet
    from adm.runtime._start import check_launcher, check_members, start_groups, stay_with_launcher, watch_over

    device = torch.device("cpu") if device is None else device
    if device.type == "mps":
        raise UsageError("an mps device serves one process alone. Start it without torchrun, or with --device cpu.")
    launcher = stay_with_launcher(launch)
    this = Member.this(launch.rank, launch.size, launch.local_rank, device)
    met = meet(launch, this, meeting, _seconds(timeout), lambda: check_launcher(launcher))
    watch = watch_over(met, launch.rank, launcher)
    try:
        check_members(met.members)
        group = start_groups(met, launch.rank, device)
        yield World(launch.rank, launch.size, launch.local_rank, met.members, group, watch)
    except StoppedError:  # by all of them, as `any` makes sure
        _leave(watch)
        if launch.rank > 0:
            raise SystemExit(StoppedError.exit_code) from None
        raise
    except SystemExit:  # the others see that it is gone
        raise
    except BaseException as error:
        with _unhurried():
            if isinstance(error, RuntimeError):
                watch.verdict(CONSEQUENCE)
            watch.fail(_exit_code(error))
        raise
    else:
        _leave(watch)


def _leave(watch: Watch) -> None:
    from torch import distributed

    watch.phase = "the end"
    distributed.destroy_process_group()
    watch.leave()  # process 0 last, whose store the others use until then


@contextmanager
def _unhurried() -> Iterator[None]:
    """Within it SIGTERM does nothing: torchrun sees a death when we do, and may send it before we have said whose."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: a handler that is none of Python's


def _seconds(timeout: float | None) -> float:
    """The timeout, or that of the environment."""
    text = os.environ.get("ADM_TIMEOUT", "")
    if timeout is None and text:
        try:
            timeout = float(text)
        except ValueError:
            timeout = -1.0
    timeout = TIMEOUT if timeout is None else timeout
    if not 1 <= timeout < 1e6:
        raise UsageError(f"ADM_TIMEOUT={one_line(text or timeout, 20)}: give seconds, 1 or more.")
    return timeout


def _exit_code(error: BaseException) -> int:
    """What the command line makes of it."""
    if isinstance(error, AdmError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return StoppedError.exit_code
    return UsageError.exit_code if isinstance(error, ValueError) else 1


def _bytes_row(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)[None]
