"""Averages of the weights over training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["EMA", "EMAConfig"]


@dataclass(frozen=True)
class EMAConfig:
    """How the averaged weights follow the trained ones.

    kind: the rule of the average. gamma: of the power rule; 6.94 makes the average 10 % of the run wide. rate: what
    the constant rule keeps at each update.

    Power: update n keeps (1 - 1 / n)^(gamma + 1) of the average (EDM2 section 3.1), so that weights count as t^gamma at
    any length of run and the initial ones not at all. Constant: the released rule, which keeps `rate`, starts at the
    initial weights and is only right for long runs.
    """

    kind: Literal["power", "constant"] = "power"
    gamma: float = 6.94
    rate: float = 0.9999

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}: must be at least 0 (the plain mean)")
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}: must be at least 0 and below 1")


class EMA:
    """The averaged weights of a module, float32 at least, on its device."""

    def __init__(self, module: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.num_updates = 0
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one optimizer step."""
        self.num_updates += 1
        share = 1 - self.decay(self.num_updates)
        current = module.state_dict()
        floating = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in floating], [current[name] for name in floating], share)
        for name in self.weights.keys() - set(floating):
            self.weights[name].copy_(current[name])

    def decay(self, n: int) -> float:
        """What the average keeps at update n, counted from 1."""
        return (1 - 1 / n) ** (self.config.gamma + 1) if self.config.kind == "power" else self.config.rate

    def restore(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue from stored values."""
        self.num_updates = num_updates
        for name, value in self.weights.items():
            value.copy_(weights[name])
