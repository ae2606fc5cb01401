"""A few steps of real work in a process of their own, timed, with the most memory that it took.

In a process of its own because memory that this one has given back to its allocator would look like memory that the
work needs; and a process that is killed for its memory has not killed the command that wanted to know.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adm.runtime.config import to_dict
from adm.training.config import TrainConfig

__all__ = ["Probe", "ProbeFailed", "probe_sampling", "probe_training"]

WARM_UP = 2
STEPS = 5


@dataclass(frozen=True)
class Probe:
    """What was measured.

    images: in a step. step_seconds: median of the steps, which `num_steps` were. peak: bytes; on a CPU what the process
    took beyond `base`, what it took before the work began; elsewhere what torch had allocated. reserved: what its
    allocator had taken for that. start_seconds: until the first step began, and what that took longer than others. Of
    training alone: grid_seconds (a sample grid), save_seconds (a checkpoint), validation_seconds (one image at one
    noise level).
    """

    images: int
    step_seconds: float
    num_steps: int
    peak: int | None
    reserved: int | None
    start_seconds: float
    base: int = 0
    grid_seconds: float = 0.0
    save_seconds: float = 0.0
    validation_seconds: float = 0.0


class ProbeFailed(Exception):
    """The work could not be done; `out_of_memory` says whether for want of memory."""

    def __init__(self, reason: str, out_of_memory: bool) -> None:
        super().__init__(reason)
        self.out_of_memory = out_of_memory


def probe_training(
    config: TrainConfig, device: torch.device, limit: float, out: Path | None = None, extras: bool = False
) -> Probe:
    """Steps of this run on images of noise. limit: seconds after which no further step begins. extras: also a sample
    grid, a validation and a checkpoint, which is written into a directory beside `out` and removed. Raises ProbeFailed.
    """
    request = {"what": "training", "config": to_dict(config), "device": str(device), "limit": limit, "extras": extras}
    return _in_child(request | {"out": None if out is None else str(out)})


def probe_sampling(words: Mapping[str, Any], images: int, device: torch.device, limit: float) -> Probe:
    """Steps of a batch of so many images; words: the keywords of `adm.studies._plan_sampling.open_request`. Raises
    ProbeFailed."""
    request = {"what": "sampling", "words": dict(words), "images": images, "device": str(device), "limit": limit}
    return _in_child(request)


def _in_child(request: Mapping[str, Any]) -> Probe:
    command = [sys.executable, "-m", "adm.studies._plan_work"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or ["{}"]
    try:
        answer = json.loads(last[0])
    except ValueError:
        answer = {}
    if "probe" in answer:
        return Probe(**answer["probe"])
    if "failed" in answer:
        raise ProbeFailed(answer["failed"], answer["out_of_memory"])
    killed = done.returncode in (-9, 137)
    said = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1]
    raise ProbeFailed("it was killed, as systems do when memory runs out" if killed else said, killed)
