"""Two probability-flow ODEs with exact solutions, for the deterministic samplers to be held against.

A mixture in two dimensions, whose ODE scipy solves by a score in numpy alone, nothing of adm's; and an x_0 that is a
polynomial in lambda, whatever x_t is, of which each single step has an integral.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

import adm
from analytic import MixtureDenoiser

F64 = torch.float64
LOW = 0.05
"""The noise-to-signal ratio where the walk ends: above 0, where the last step costs every rule its order."""
MEANS = [[-1.0, 0.2], [0.8, 0.9], [0.4, -1.1]]
VARIANCES = [0.04, 0.09, 0.02]
WEIGHTS = [0.5, 0.3, 0.2]


def mixture(schedule: adm.Schedule) -> MixtureDenoiser:
    return MixtureDenoiser(schedule, *(torch.tensor(values, dtype=F64) for values in (MEANS, VARIANCES, WEIGHTS)))


def starts(high: float) -> np.ndarray:
    """y = x / alpha at the ratio `high`, (24, 2)."""
    return np.random.default_rng(0).standard_normal((24, 2)) * high


def slope_field(sigma: float, y: np.ndarray) -> np.ndarray:
    """dy / dsigma = (y - D(y, sigma)) / sigma (EDM Eq. 1 and 3), by Bayes' rule."""
    spread = np.array(VARIANCES) + sigma**2
    away = y[:, None, :] - np.array(MEANS)
    log_weight = np.log(WEIGHTS) - (away**2).sum(-1) / (2 * spread) - np.log(spread)
    share = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    score = -(share[..., None] * away / spread[:, None]).sum(1)
    return -sigma * score


@cache
def ends(high: float) -> np.ndarray:
    """Where the ODE takes `starts` at the ratio LOW, to 1e-11."""

    def field(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = math.exp(log_sigma)
        return sigma * slope_field(sigma, flat.reshape(-1, 2)).reshape(-1)

    span = (math.log(high), math.log(LOW))
    return (
        solve_ivp(field, span, starts(high).reshape(-1), method="DOP853", rtol=1e-12, atol=1e-12)
        .y[:, -1]
        .reshape(-1, 2)
    )


def root_mean_square_error(sampler: adm.Sampler, ratios: Tensor) -> float:
    """Of y at LOW. ratios: falling noise-to-signal ratios, one more than there are steps, down to LOW."""
    schedule = adm.Schedule.from_sigmas(ratios.flip(0))
    chain, high = adm.Chain(schedule, range(1, len(ratios)), end=0), round(float(ratios[0]), 9)
    x = torch.from_numpy(starts(high)).reshape(-1, 2, 1, 1) * chain[0].alpha
    y = adm.sample(mixture(schedule), chain, sampler, None, x.shape, x=x).reshape(-1, 2) / chain[-1].alpha_s
    return float(np.sqrt(((y.numpy() - ends(high)) ** 2).sum(-1).mean()))


def even_in_log(high: float, num_steps: int) -> Tensor:
    return torch.linspace(math.log(high), math.log(LOW), num_steps + 1, dtype=F64).exp()


def even_in_root(high: float, num_steps: int, rho: float = 7.0) -> Tensor:
    """EDM Eq. 5."""
    return torch.linspace(high ** (1 / rho), LOW ** (1 / rho), num_steps + 1, dtype=F64) ** rho


UNEVEN = adm.Chain(adm.linear(1000), [980.0, 820.5, 700.0, 510.0, 400.0, 260.0], end=150)
"""Steps of many lengths, which end at noise."""


class Polynomial:
    """Believes in an x_0 that is a polynomial in lambda = log(alpha / sigma), and in nothing else."""

    schedule = UNEVEN.schedule

    def __init__(self, *coefficients: float) -> None:
        self.coefficients = coefficients

    def at(self, lam):
        return sum(c * lam**k for k, c in enumerate(self.coefficients))

    def __call__(self, x_t: Tensor, t, cond: adm.Condition = adm.Condition()) -> adm.Prediction:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x0 = self.at((alpha / sigma).log()).expand(x_t.shape)
        return adm.Prediction(x_t, x0, alpha, sigma, torch.zeros((), dtype=F64))

    def exact_step(self, x_t: Tensor, link: adm.Link) -> Tensor:
        """x_s = sigma_s / sigma_t x_t + sigma_s int e^lambda x_0 dlambda (Lu et al. 2022b, Proposition 4.1)."""
        low, high = (math.log(float(a / s)) for a, s in ((link.alpha, link.sigma), (link.alpha_s, link.sigma_s)))
        integral, _ = quad(lambda lam: math.exp(lam) * self.at(lam), low, high, epsabs=0, epsrel=1e-12)
        return float(link.sigma_s) * (x_t / float(link.sigma) + integral)


def no_noise(draw: int = 0) -> Tensor:
    raise AssertionError("this rule draws nothing")
