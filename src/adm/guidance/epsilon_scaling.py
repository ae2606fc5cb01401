"""Epsilon scaling: a correction of the noise that builds up along a chain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time, expand
from adm.guidance._protocol import GuidedDenoiser, Stage
from adm.guidance._strength import check_finite

__all__ = ["EpsilonScaling"]


@dataclass(frozen=True)
class EpsilonScaling:
    """eps / (factor + slope * t): a little less noise than predicted (Ning et al. 2023, lambda_t = k t + b).

    factor: the divisor of eps at t = 0; 1.004 to 1.017 were published for ADM's models and 100 steps, more for fewer,
    and 1 with slope 0 switches it off. slope: what the divisor gains per timestep of the model, t from 0 to T - 1. A
    slope published for the steps of a chain of n links is to be multiplied by (n - 1) / (T - 1). The learned variance
    is untouched. Raises ValueError for a divisor that is not positive at every timestep.
    """

    factor: float = 1.005
    slope: float = 0.0

    def __post_init__(self) -> None:
        check_finite("factor", self.factor, "1 divides by nothing, 1.005 removes a little noise")
        check_finite("slope", self.slope, "0 divides alike at all timesteps")

    @property
    def stage(self) -> Stage:
        return "mix"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        last = denoiser.schedule.num_timesteps - 1
        if not (self.factor > 0 and self.factor + self.slope * last > 0):
            raise ValueError(
                f"factor {self.factor} and slope {self.slope} divide eps by {self.factor:g} at t = 0 and by "
                f"{self.factor + self.slope * last:g} at t = {last}: choose them so that both are positive"
            )
        return denoiser if self.factor == 1 and self.slope == 0 else _Scaled(denoiser, self)


class _Scaled(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, how: EpsilonScaling) -> None:
        super().__init__(denoiser)
        self.how = how

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        # x_0 = (x_t - sigma eps) / alpha, so eps (1 - 1 / divisor) less noise is that much more of x_0.
        removed = 1 - 1 / (self.how.factor + self.how.slope * torch.as_tensor(t).cpu().double())
        shift = prediction.sigma / prediction.alpha * expand(removed, x_t) * prediction.eps
        return replace(prediction, x0=prediction.x0 + shift)
