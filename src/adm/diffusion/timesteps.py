"""Which timesteps to train on: values that know how to draw, and how to learn from losses. They hold no generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["LossSecondMoment", "TimestepSampler", "Uniform"]


class TimestepSampler(Protocol):
    """Draws timesteps from uniforms in (0, 1), with weights that keep the loss unbiased."""

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]: ...
    def updated(self, t: Tensor, loss: Tensor) -> TimestepSampler: ...
    def state(self) -> dict[str, Tensor]: ...
    def restored(self, state: dict[str, Tensor]) -> TimestepSampler: ...


@dataclass(frozen=True)
class Uniform:
    """Every timestep equally often (DDPM Alg. 1)."""

    num_timesteps: int

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u: (N,) uniforms -> t: (N,) int64 and weight: (N,) float32, all 1."""
        return (u * self.num_timesteps).long(), torch.ones(len(u))

    def updated(self, t: Tensor, loss: Tensor) -> Uniform:
        return self

    def state(self) -> dict[str, Tensor]:
        return {}

    def restored(self, state: dict[str, Tensor]) -> Uniform:
        return self


@dataclass(frozen=True, eq=False)
class LossSecondMoment:
    """p_t proportional to sqrt(E[L_t^2]) over the last losses of each timestep (iDDPM Eq. 18).

    history: (T, 10) float64, the last losses of each t, oldest first, where filled; count: (T,) int64. Uniform until
    every t has its 10. Mixed with 0.001 of the uniform, so that weights stay bounded. An update is given the loss
    before weighting, and returns a new value.
    """

    num_timesteps: int
    history: Tensor
    count: Tensor
    uniform_share: float = 0.001

    @classmethod
    def new(cls, num_timesteps: int, history_length: int = 10) -> LossSecondMoment:
        history = torch.zeros(num_timesteps, history_length, dtype=torch.float64)
        return cls(num_timesteps, history, torch.zeros(num_timesteps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """(T,) float64, summing to 1."""
        uniform = torch.full((self.num_timesteps,), 1 / self.num_timesteps, dtype=torch.float64)
        if bool((self.count < self.history.shape[1]).any()):
            return uniform
        moment = self.history.pow(2).mean(dim=1).sqrt()
        return (1 - self.uniform_share) * moment / moment.sum() + self.uniform_share * uniform

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u: (N,) uniforms -> t: (N,) int64 by the inverse CDF, and weight: (N,) float32, 1 / (T p_t)."""
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), u.double()).clamp(max=self.num_timesteps - 1)
        return t, (1 / (self.num_timesteps * p[t])).float()

    def updated(self, t: Tensor, loss: Tensor) -> LossSecondMoment:
        """With the losses (N,) at timesteps t (N,) appended in their order; each drops the oldest of its t."""
        history, count = self.history.clone(), self.count.clone()
        for time, value in zip(t.tolist(), loss.double().tolist(), strict=True):
            filled = int(count[time])
            if filled < history.shape[1]:
                history[time, filled] = value
                count[time] += 1
            else:
                history[time] = torch.cat([history[time, 1:], history.new_tensor([value])])
        return replace(self, history=history, count=count)

    def state(self) -> dict[str, Tensor]:
        return {"history": self.history, "count": self.count}

    def restored(self, state: dict[str, Tensor]) -> LossSecondMoment:
        return replace(self, history=state["history"].clone(), count=state["count"].clone())
