"""Euler's method on the probability-flow ODE, with EDM's churn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._churn import Churn
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(Churn):
    """EDM Alg. 2 without its correction (lines 4 to 8), guided as in ADM Alg. 2: first order, one evaluation a step.

    With x = x_t / alpha and sigma its noise-to-signal ratio the ODE is dx / dsigma = eps (EDM Eq. 1 and 3). Without
    churn this is DDIM at eta = 0, on a grid that is even in log sigma. The model's variance is not used.

    churn: how much noise a step first adds, 0 for none: it raises the level by the factor 1 + min(churn / N, sqrt 2 -
    1), N the number of links (EDM's S_churn). Not above 164, nor above the schedule's highest level. churn_min,
    churn_max: noise-to-signal ratios between which it does so (S_min, S_max). churn_noise: standard deviation of that
    noise (S_noise).
    """

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> None:
        return None

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: None) -> tuple[Tensor, None]:
        start = self.start(x_t, link, noise)
        prediction = guided(denoise, start.x, start.t)
        # x + (sigma_s - sigma) eps = x_0 + sigma_s eps, from any sigma.
        return expand(link.alpha_s, x_t) * prediction.x0 + expand(link.sigma_s, x_t) * prediction.eps, None
