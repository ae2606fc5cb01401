"""How long images take, compared fairly on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

__all__ = ["interleaved"]


def interleaved(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Seconds of each piece of work, the median over the rounds.

    Every round does each once, in turn, so that what slows the machine for a while slows all; a first round, in which
    things are loaded and compiled, is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = _now(device)
            work()
            if number > 0:
                seconds[name].append(_now(device) - started)
    return {name: median(values) for name, values in seconds.items()}


def _now(device: torch.device | str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
