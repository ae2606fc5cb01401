"""Adams-Bashforth's multistep rule on eps: improved PNDM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["IPNDM"]

ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the slopes for steps of equal length, newest first; the n-th row is exact for slopes of degree n - 1."""

Slopes = tuple[Tensor, ...]


@dataclass(frozen=True)
class IPNDM:
    """Improved PNDM (iPNDM in DEIS, Zhang and Chen 2022, appendix): one evaluation a step, guided as in ADM Alg. 2.

    The slope of dx / dsigma = eps, x = x_t / alpha with noise-to-signal ratio sigma, is extrapolated from the last
    `order` values of eps by Adams and Bashforth's weights, those of the pseudo linear multi-step method of PNDM (Liu et
    al. 2022), whose transfer part is DDIM's step.
    PLMS is the same rule where it runs; PNDM precedes it by Runge-Kutta steps, Stable Diffusion's form by one of
    Heun's. The weights suppose steps of equal length in sigma and stay as they are on other grids, so there the order
    is 2 for many steps; at few ones the error is small all the same. The step to clean data takes x_0 as predicted.
    Noise and the model's variance are not used.

    order: 1 to 4, from how many values of eps the slope is extrapolated; 1 is DDIM, 4 is published. The first steps use
    as many as there are.
    """

    order: int = 4

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order {self.order}: choose 1 (DDIM) to 4 (as published)")

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> Slopes:
        return ()

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: Slopes) -> tuple[Tensor, Slopes]:
        here = guided(denoise, x_t, link.t)
        slopes = (here.eps, *state)[: self.order]
        x_s = expand(link.alpha_s, x_t) * here.x0 + expand(link.sigma_s, x_t) * here.eps
        # alpha_s (sigma_s / alpha_s - sigma / alpha), by which a slope other than eps moves x_s.
        length = link.sigma_s - link.alpha_s * link.sigma / link.alpha
        length = torch.where(link.sigma_s > 0, length, torch.zeros_like(length))
        for weight, slope in zip(ADAMS_BASHFORTH[len(slopes) - 1][1:], slopes[1:], strict=True):
            x_s = x_s + expand(weight * length, x_t) * (slope - here.eps)  # the weights add up to 1
        return x_s, slopes[: self.order - 1]
