"""A command that torchrun, srun or the like started several times: who may run, and who speaks."""

from __future__ import annotations

import os
import sys
import time

from adm.runtime._launch import find_launch
from adm.runtime.errors import UsageError

__all__ = ["let_first_speak", "refuse_many"]

HEAD_START = 2.0
"""Seconds in which process 0 fails of what makes all fail, and its launcher ends the others: torchrun takes 0.1."""
REMEDY = {
    "torchrun": "Start it without torchrun",
    "srun": "Start it with srun --ntasks=1, or unset SLURM_PROCID",
    "the environment": "Unset WORLD_SIZE",
}


def refuse_many(name: str) -> None:
    """Raises UsageError for one of many processes: each would do all of the work, and write the same files."""
    launch = find_launch(os.environ)
    if launch is not None:
        raise UsageError(f"{name} runs in one process, and {launch.by} asks for {launch.size}. {REMEDY[launch.by]}.")


def let_first_speak() -> None:
    """Waits a moment before an error is said, in processes other than the first that have not met yet.

    Those that have met settle among themselves who says why (`adm.runtime.distributed.join`).
    """
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "")
    if not rank.isdecimal() or int(rank) == 0:
        return
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        time.sleep(HEAD_START)
