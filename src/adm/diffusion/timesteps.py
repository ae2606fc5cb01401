"""Which timesteps to train on: values that know how to draw, and how to learn from losses. They hold no generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from adm.diffusion.schedule import Schedule

__all__ = ["LogNormal", "LossSecondMoment", "TimestepSampler", "Uniform"]


class TimestepSampler(Protocol):
    """Draws timesteps from uniforms in (0, 1), with the weights that their losses get."""

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
class LogNormal:
    """log(sigma) is drawn from N(mean, std^2), rounded to the nearest timestep (EDM Table 1).

    sigma is EDM's, the noise-to-signal ratio; the first and the last timestep take the tails. With N(0, 1) on the flow
    schedule it is the logit-normal u of Esser et al. 2024. probability: (T,) float64, summing to 1. The weights are 1:
    how often a noise level is seen is meant to be how much it counts, as in EDM.
    """

    probability: Tensor

    @classmethod
    def new(cls, schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> LogNormal:
        log_sigma = -0.5 * torch.logit(schedule.alpha_bar)
        borders = torch.special.ndtr(((log_sigma[1:] + log_sigma[:-1]) / 2 - mean) / std)
        return cls(torch.cat([borders.new_zeros(1), borders, borders.new_ones(1)]).diff())

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u: (N,) uniforms -> t: (N,) int64 by the inverse CDF, and weight: (N,) float32, all 1."""
        return _inverse_cdf(self.probability, u), torch.ones(len(u))

    def updated(self, t: Tensor, loss: Tensor) -> LogNormal:
        return self

    def state(self) -> dict[str, Tensor]:
        return {}

    def restored(self, state: dict[str, Tensor]) -> LogNormal:
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
        t = _inverse_cdf(p, u)
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


def _inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    return torch.searchsorted(p.cumsum(0), u.double()).clamp(max=len(p) - 1)
