"""Many processes, as torchrun starts them; a single one never touches torch.distributed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch import Tensor

from adm.runtime.errors import PeerLostError, UsageError
from adm.runtime.text import one_line

__all__ = ["World", "join"]

MEETING = timedelta(minutes=5)
WORKING = timedelta(hours=12)
"""How long one process waits for what another is still computing; one that is gone is noticed at once."""


@dataclass(frozen=True)
class World:
    """This process, number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    _group: Any = field(default=None, repr=False, compare=False)

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
        peer = 0
        try:
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
        except RuntimeError as error:
            raise PeerLostError(
                f"process {peer} of {self.size} is gone. Read what it said before, and start all again."
            ) from error


@contextmanager
def join() -> Iterator[World]:
    """The world that the environment describes (RANK, WORLD_SIZE, as torchrun sets them), left at the end.

    Without those, or with a WORLD_SIZE of 1, this process is alone. Raises UsageError for an environment that is
    incomplete, PeerLostError when the others do not come.
    """
    size = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    if size <= 1:
        yield World()
        return
    port = os.environ.get("MASTER_PORT", "")
    if not 0 <= rank < size or "MASTER_ADDR" not in os.environ or not port.isdecimal():
        raise UsageError(
            f"WORLD_SIZE={size} asks for many processes, but RANK, MASTER_ADDR or MASTER_PORT do not fit. "
            "Start with torchrun, or unset WORLD_SIZE."
        )
    from torch import distributed

    try:
        distributed.init_process_group("gloo", timeout=MEETING)
        group = distributed.new_group(backend="gloo", timeout=WORKING)
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(
            f"the {size} processes did not meet at MASTER_ADDR={one_line(os.environ['MASTER_ADDR'], 40)}, "
            f"MASTER_PORT={one_line(os.environ['MASTER_PORT'], 10)} ({one_line(error, 100)}). Start all again."
        ) from error
    try:
        yield World(rank, size, group)
    finally:
        distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise UsageError(f"{name}={one_line(text, 20)} is no number. Start with torchrun, or unset it.")
    return int(text)
