"""The probability-flow ODE in half the log-SNR, which the multistep rules for x_0 share.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t its solution is (Lu et al. 2022b, Proposition 4.1)

    x_s = sigma_s / sigma_t x_t + alpha_s int_0^h e^(u - h) x_0(lambda_t + u) du,

and a rule is an approximation of x_0 along the way. At the last link, where h is infinite, only the value at s counts:
every rule ends there with x_0 as predicted at t, and so do ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Link

__all__ = ["Evaluation", "check_reach", "finite", "first_order", "gaps", "lambda_s", "lambda_t", "moments"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What multistep rules remember: x_0 as predicted, guidance folded in, at some lambda, () or (N,)."""

    at: Tensor
    x0: Tensor


def lambda_t(link: Link) -> Tensor:
    """log(alpha / sigma) where the link begins, float64."""
    return (link.alpha / link.sigma).log()


def lambda_s(link: Link) -> Tensor:
    """log(alpha / sigma) where the link arrives: infinite for clean data."""
    return (link.alpha_s / link.sigma_s).log()


def finite(h: Tensor, weight: Tensor) -> Tensor:
    """The weight, but 0 on links of infinite length: at clean data no slope of x_0 counts."""
    return torch.where(h.isfinite(), weight, torch.zeros_like(weight))


def check_reach(reach: float) -> None:
    if not reach > 0:
        raise ValueError(f"reach {reach}: choose a positive number; inf is as published, 1 safe on every grid")


def gaps(h: Tensor, known: Sequence[Evaluation], reach: float) -> list[Tensor]:
    """How far in lambda each prediction lies behind the first, where a step of length h begins.

    Two neighbours that lie closer together than h / reach count as that far apart: a slope is not carried on over more
    than `reach` times the distance on which it was seen. On a grid with equal steps in lambda and reach >= 1 that
    never happens. On released grids the step to t = 0 is up to five times as long as the one before, where sections
    meet a thousand times; errors and, in the SDE, noise would be enlarged as much.
    """
    least = torch.where(h.isfinite(), h.abs() / reach, torch.zeros_like(h))
    found: list[Tensor] = []
    for later, earlier in itertools.pairwise(known):
        gap = torch.maximum((later.at - earlier.at).abs(), least) * h.sign()
        found.append(gap if not found else found[-1] + gap)
    return found


def first_order(link: Link, kept: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """What x_s has of x_t and of x_0 while x_0 stays as it is: sigma_s / sigma_t and alpha_s (1 - e^-h), which is DDIM.

    kept: the part of the noise of x_t, as it would be at s, that stays; a rule that adds noise has less than 1.
    """
    of_x_t = kept * link.sigma_s / link.sigma
    return of_x_t, link.alpha_s - link.alpha * of_x_t


def moments(h: Tensor, num: int) -> list[Tensor]:
    """int_0^h e^(u - h) (u / h)^k du for k = 0 to num - 1: the weights of a polynomial x_0 in the exact solution.

    They are k! times the phi functions of exponential integrators at -h, times h. m_0 = 1 - e^-h, and by parts
    m_k = 1 - k m_(k-1) / h, which loses digits below h = 1; there it is taken downwards, where it gains them.
    """
    upward = [-torch.expm1(-h)]
    for k in range(1, num):
        upward.append(1 - k * upward[-1] / h)
    downward = [torch.zeros_like(h)]
    for k in reversed(range(num + 18)):
        downward.append(h * (1 - downward[-1]) / (k + 1))
    return [torch.where(h.abs() < 1, small, large) for small, large in zip(downward[::-1], upward, strict=False)]
