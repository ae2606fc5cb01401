"""T1: how fast each rule's error falls with its steps, on a mixture whose probability-flow ODE scipy solves."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import adm
from adm.diffusion.schedule import Schedule
from analytic import MixtureDenoiser

F64 = torch.float64
HIGH, LOW = 20.0, 0.05
"""Noise-to-signal ratios where the walk begins and ends: above 0, where the last step costs every rule its order."""

MEANS = [[-1.0, 0.2], [0.8, 0.9], [0.4, -1.1]]
VARIANCES = [0.04, 0.09, 0.02]
WEIGHTS = [0.5, 0.3, 0.2]
START = np.random.default_rng(0).standard_normal((24, 2)) * HIGH
"""y = x / alpha at the largest ratio, (24, 2)."""


def slope_field(sigma: float, y: np.ndarray) -> np.ndarray:
    """dy / dsigma = (y - D(y, sigma)) / sigma (EDM Eq. 1 and 3), by Bayes' rule in numpy: nothing of adm's."""
    spread = np.array(VARIANCES) + sigma**2
    away = y[:, None, :] - np.array(MEANS)
    log_weight = np.log(WEIGHTS) - (away**2).sum(-1) / (2 * spread) - np.log(spread)
    share = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    score = -(share[..., None] * away / spread[:, None]).sum(1)
    return -sigma * score


def exact() -> np.ndarray:
    """Where the ODE takes START, to 1e-11."""

    def field(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        sigma = math.exp(log_sigma)
        return sigma * slope_field(sigma, flat.reshape(START.shape)).reshape(-1)

    span = (math.log(HIGH), math.log(LOW))
    return solve_ivp(field, span, START.reshape(-1), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(-1, 2)


EXACT = exact()


def root_mean_square_error(sampler: adm.Sampler, ratios: torch.Tensor) -> float:
    """Of y at the last ratio. ratios: falling noise-to-signal ratios, one more than there are steps."""
    schedule = Schedule.from_sigmas(ratios.flip(0))
    denoiser = MixtureDenoiser(schedule, *(torch.tensor(values, dtype=F64) for values in (MEANS, VARIANCES, WEIGHTS)))
    chain = adm.Chain(schedule, range(1, len(ratios)), end=0)
    x = torch.from_numpy(START).reshape(-1, 2, 1, 1) * chain[0].alpha
    y = adm.sample(denoiser, chain, sampler, None, x.shape, x=x).reshape(-1, 2) / chain[-1].alpha_s
    return float(np.sqrt(((y.numpy() - EXACT) ** 2).sum(-1).mean()))


def even_in_log(num_steps: int) -> torch.Tensor:
    return torch.linspace(math.log(HIGH), math.log(LOW), num_steps + 1, dtype=F64).exp()


def even_in_root(num_steps: int, rho: float = 7.0) -> torch.Tensor:
    """EDM Eq. 5."""
    return torch.linspace(HIGH ** (1 / rho), LOW ** (1 / rho), num_steps + 1, dtype=F64) ** rho


def slopes(sampler: adm.Sampler, grid=even_in_log, counts=(128, 256, 512)) -> list[float]:
    """log2 of how much smaller the error becomes at each doubling of the steps: the order, once steps are short."""
    errors = [root_mean_square_error(sampler, grid(count)) for count in counts]
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


ORDERS = {
    "ddim": (adm.DDIM(), 1.0, 0.1),
    "euler": (adm.Euler(), 1.0, 0.1),
    "heun": (adm.Heun(), 2.0, 0.15),
    "ipndm": (adm.IPNDM(), 2.0, 0.3),  # from below: its weights' errors for uneven steps take over late
}
"""rule -> (sampler, order, within)."""


@pytest.mark.parametrize("rule", ORDERS)
@pytest.mark.parametrize("grid", [even_in_log, even_in_root])
def test_t1_the_error_falls_with_the_order_of_the_rule(rule, grid):
    sampler, order, within = ORDERS[rule]
    assert slopes(sampler, grid) == pytest.approx([order] * 2, abs=within)


def test_at_few_steps_ipndm_is_far_nearer_than_its_order_says():
    """Where both are of second order or less, at 16 evaluations: a tenth of DDIM's error, a third of Heun's."""
    ipndm, ddim, heun = (
        root_mean_square_error(sampler, even_in_log(num))
        for sampler, num in ((adm.IPNDM(), 16), (adm.DDIM(), 16), (adm.Heun(), 8))
    )
    assert ipndm < ddim / 10 and ipndm < heun / 3
