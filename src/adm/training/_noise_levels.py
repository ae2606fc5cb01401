"""Parts of the timesteps, from little noise to much."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from adm.diffusion.schedule import Schedule

__all__ = ["CERTAIN", "Level", "noise_levels"]

CERTAIN = 3.0
"""Standard errors beyond which a difference between measurements is called one."""


@dataclass(frozen=True)
class Level:
    """Timesteps first .. stop - 1 and their mean log-SNR, log(alpha_bar / (1 - alpha_bar))."""

    first: int
    stop: int
    log_snr: float

    def described(self) -> dict[str, Any]:
        return {"t": [self.first, self.stop - 1], "log_snr": self.log_snr}

    def __str__(self) -> str:
        return f"t = {self.first} to {self.stop - 1}"


def noise_levels(schedule: Schedule, num: int) -> list[Level]:
    """The timesteps cut into `num` equal parts, or as many as there are timesteps."""
    T = schedule.num_timesteps
    num = min(num, T)
    log_snr = torch.logit(schedule.alpha_bar)
    cuts = [k * T // num for k in range(num + 1)]
    return [Level(first, stop, float(log_snr[first:stop].mean())) for first, stop in itertools.pairwise(cuts)]
