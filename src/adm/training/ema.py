"""Averages of the weights over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["EMA", "EMAConfig", "gamma_of_std", "group_name", "std_of_gamma"]


GAMMA, RATE = 6.94, 0.9999


@dataclass(frozen=True)
class EMAConfig:
    """How the averaged weights follow the trained ones.

    kind: the rule of the average. gamma: of the power rule; 6.94 makes the average 10 % of the run wide, 16.97 makes
    it 5 %. rate: what the constant rule keeps at each update. others: further gammas of the power rule, or rates of
    the constant one, averaged beside the first; each costs one more copy of the weights, in memory and in every
    checkpoint. snapshot_every: steps between stored copies of the averages, from which `adm ema` makes those of any
    other width afterwards; they stay, whatever loop.keep says; None for no copies.

    Power: update n keeps (1 - 1 / n)^(gamma + 1) of the average (EDM2 section 3.1), so that weights count as t^gamma at
    any length of run and the initial ones not at all. Constant: the released rule, which keeps `rate`, starts at the
    initial weights and is only right for long runs.
    """

    kind: Literal["power", "constant"] = "power"
    gamma: float = GAMMA
    rate: float = RATE
    others: tuple[float, ...] = ()
    snapshot_every: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma is {self.gamma}: must be at least 0 (the plain mean)")
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}: must be at least 0 and below 1")
        if self.kind == "power" and self.rate != RATE:
            raise ValueError(f"rate {self.rate} does nothing with kind=power: set kind=constant too, or gamma instead")
        if self.kind == "constant" and self.gamma != GAMMA:
            raise ValueError(f"gamma {self.gamma} does nothing with kind=constant: set kind=power too, or rate instead")
        for other in self.others:
            if self.kind == "power" and not 0 <= other < math.inf:
                raise ValueError(f"others has {other}: a gamma of the power rule must be at least 0")
            if self.kind == "constant" and not 0 <= other < 1:
                raise ValueError(f"others has {other}: a rate of the constant rule must be at least 0 and below 1")
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"others repeats an average: {', '.join(f'{v:g}' for v in self.values)}")
        if self.snapshot_every is not None:
            if self.snapshot_every < 1:
                raise ValueError(f"snapshot_every is {self.snapshot_every}: must be at least 1, or none")
            if self.kind == "constant":
                raise ValueError("snapshot_every is for kind=power: constant averages cannot be combined afterwards")

    @property
    def values(self) -> tuple[float, ...]:
        """The gamma or rate of each average, the main one first."""
        return (self.gamma if self.kind == "power" else self.rate, *self.others)


class EMA:
    """The averaged weights of a module, float32 at least, on its device: one copy for each of the config's averages."""

    def __init__(self, module: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.num_updates = 0
        self.averages = [
            {name: value.detach().clone() for name, value in module.state_dict().items()} for _ in config.values
        ]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The main average, by name."""
        return self.averages[0]

    @property
    def others(self) -> list[dict[str, Tensor]]:
        """The further ones, in the config's order."""
        return self.averages[1:]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one optimizer step."""
        self.num_updates += 1
        current = module.state_dict()
        floating = [name for name, value in self.weights.items() if value.is_floating_point()]
        others = self.weights.keys() - set(floating)
        for average, value in zip(self.averages, self.config.values, strict=True):
            share = 1 - self.decay(self.num_updates, value)
            torch._foreach_lerp_([average[name] for name in floating], [current[name] for name in floating], share)
            for name in others:
                average[name].copy_(current[name])

    def decay(self, n: int, value: float) -> float:
        """What the average of this gamma or rate keeps at update n, counted from 1."""
        return (1 - 1 / n) ** (value + 1) if self.config.kind == "power" else value

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Each average under the name of its group in a checkpoint: ema, ema-1, ema-2, ..."""
        return {group_name(i): average for i, average in enumerate(self.averages)}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], num_updates: int) -> None:
        """Continue from the stored values of `tensors()`; other groups are ignored."""
        self.num_updates = num_updates
        for group, average in self.tensors().items():
            for name, value in average.items():
                value.copy_(tensors[group][name])


def group_name(i: int) -> str:
    """What average i is called in a checkpoint."""
    return f"ema-{i}" if i else "ema"


def std_of_gamma(gamma: float) -> float:
    """The width of the power profile t^gamma as a share of the run, EDM2's sigma_rel: 0.1 for 6.94 (EDM2 Eq. 123)."""
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}: must be at least 0 (the plain mean)")
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of_std(std: float) -> float:
    """The gamma whose profile has this width; it solves the cubic of EDM2 Eq. 126. ValueError above 0.2887."""
    widest = std_of_gamma(0)
    if not 0 < std <= widest * (1 + 1e-12):
        raise ValueError(f"std is {std:g}: must be above 0 and at most {widest:.4f}, the plain mean of the run")
    # The width falls with gamma, from the widest at 0, and is below 1 / (gamma + 2): halve until doubles end.
    low, high = 0.0, 1 / std
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if std_of_gamma(middle) > std else (low, middle)
    return low
