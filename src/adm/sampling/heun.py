"""Heun's method on the probability-flow ODE, with EDM's churn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import LARGEST_RATIO, log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._churn import Churn
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(Churn):
    """EDM Alg. 2 (Karras et al. 2022), guided as in ADM Alg. 2: second order, two evaluations a step.

    With x = x_t / alpha and sigma its noise-to-signal ratio the ODE is dx / dsigma = eps (EDM Eq. 1 and 3). A step to
    clean data is Euler's, with one evaluation: N steps cost 2 N - 1. So is one from sigma > 164, twice EDM's highest
    level: x_0 is the data's mean there, and a correction times sigma would blow up what little it changes (the cosine
    schedule's t = 999 has sigma 2e4). The model's variance is not used.

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
        here = guided(denoise, start.x, start.t)
        # Alg. 2, line 8: x + (sigma_s - sigma) eps = x_0 + sigma_s eps.
        euler = expand(link.alpha_s, x_t) * here.x0 + expand(link.sigma_s, x_t) * here.eps
        # No model can be asked at clean data, nor at pure noise, where an inverted chain arrives.
        corrects = (link.sigma_s > 0) & (link.alpha_s > 0) & (start.ratio <= LARGEST_RATIO)
        if not bool(corrects.any()):
            return euler, None
        x, t = euler, link.s
        if corrects.ndim == 1:  # a link for each image: those without a correction are asked where they were
            x, t = torch.where(expand(corrects, x_t) > 0, euler, x_t), torch.where(corrects, link.s, link.t)
        there = guided(denoise, x, t)
        # Line 11 changes the slope to the mean of both: alpha_s (sigma_s - sigma) (eps_s - eps) / 2 is added.
        weight = torch.where(corrects, (link.sigma_s - link.alpha_s * start.ratio) / 2, 0)
        return euler + expand(weight, x_t) * (there.eps - here.eps), None
