"""What is settled before the processes of a job work together."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch

from adm.runtime._launch import Launch
from adm.runtime._meeting import Met
from adm.runtime._watch import Watch
from adm.runtime._watch_center import Center
from adm.runtime._watch_other import Other
from adm.runtime._wire import Member
from adm.runtime.errors import PeerLostError, UsageError

__all__ = ["check_launcher", "check_members", "start_groups", "stay_with_launcher", "watch_over"]

WORKING = timedelta(hours=12)
"""How long one process waits for what another is still computing; one that is gone is noticed at once."""
PR_SET_PDEATHSIG = 1


def start_groups(met: Met, rank: int, device: torch.device) -> Any:
    """Starts torch.distributed, for gradients on the device; returns the group for all else."""
    from torch import distributed

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)  # else every process opens a context on the first one too
    distributed.init_process_group(
        "nccl" if cuda and distributed.is_nccl_available() else "gloo",
        store=met.store,
        rank=rank,
        world_size=len(met.members),
        timeout=WORKING,
        device_id=device if cuda else None,
    )
    return distributed.new_group(backend="gloo", timeout=WORKING)


def check_members(members: Sequence[Member]) -> None:
    """Raises UsageError for processes that do not fit together."""
    first = members[0]
    owners: dict[tuple[str, str], Member] = {}
    for member in members:
        if member.code != first.code:
            raise UsageError(
                f"process {first.rank} runs {first.code}, process {member.rank} {member.code}. Install the same."
            )
        if torch.device(member.device).type != torch.device(first.device).type:
            raise UsageError(
                f"process {first.rank} computes on {first.device}, process {member.rank} on {member.device}. "
                "Give all the same --device."
            )
        other = owners.setdefault((member.host, member.chip), member) if member.chip else member
        if other is not member:
            raise UsageError(
                f"processes {other.rank} and {member.rank} both compute on {member.device} of {member.host}. "
                "Start as many processes on a machine as it has devices, or choose --device cpu."
            )


def stay_with_launcher(launch: Launch) -> int | None:
    """The pid of what started this process, with which it ends; None for what may end before, such as a shell."""
    if launch.by not in ("torchrun", "srun") or sys.platform == "win32":
        return None
    launcher = os.getppid()
    if sys.platform == "linux" and launch.by == "torchrun":
        # Also if this process is stopped then. Only of torchrun is it known that the thread which starts processes
        # lives as long as it does: the signal comes when that thread ends.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return launcher


def check_launcher(launcher: int | None) -> None:
    if launcher is not None and os.getppid() != launcher:
        raise PeerLostError(f"what started this process (pid {launcher}) is gone. Start all again.")


def watch_over(met: Met, rank: int, launcher: int | None) -> Watch:
    """The running watch of this process."""
    watch: Watch = Center(met, rank, launcher) if rank == 0 else Other(met, rank, launcher)
    watch.start()
    return watch
