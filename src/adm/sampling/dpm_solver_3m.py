"""DPM-Solver++ of third order, one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._log_snr import Evaluation, check_reach, finite, first_order, gaps, lambda_s, lambda_t, moments
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["DPMSolver3M"]

State = tuple[Evaluation, ...]
"""The predictions before, the latest first: two at most."""


@dataclass(frozen=True)
class DPMSolver3M:
    """DPM-Solver++(3M) (Lu et al. 2022b, section 4, and the authors' code): deterministic, guided as in ADM Alg. 2.

    d2: the weight of the second difference, "published", which is half of what the parabola through three predictions
    asks for and so of second order, or "corrected", which is all of it and of third order. On mixtures of Gaussians
    half of it is the better with 25 steps or fewer, all of it from about 50. The first two steps are those of
    DPM-Solver++(2M); the one to clean data is of first order. With strong guidance and few steps it overshoots: use
    DPM-Solver++(2M) there. Noise and the model's variance are not used.
    reach: the line through two predictions is followed over at most so many times their distance in lambda = log(alpha
    / sigma); inf is as published. Without a bound the order stays on grids with steps that lengthen in lambda.
    """

    d2: Literal["published", "corrected"] = "published"
    reach: float = 1.0

    def __post_init__(self) -> None:
        if self.d2 not in ("published", "corrected"):
            raise ValueError(f"d2 {self.d2!r}: choose published (as in the authors' code) or corrected (third order)")
        check_reach(self.reach)

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> State:
        return ()

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: State) -> tuple[Tensor, State]:
        here = Evaluation(lambda_t(link), guided(denoise, x_t, link.t).x0)
        of_x_t, of_x0 = first_order(link)
        x_s = expand(of_x_t, x_t) * x_t + expand(of_x0, x_t) * here.x0
        after = (here, *state[:1])
        if not state:
            return x_s, after
        h = lambda_s(link) - here.at
        gap, *further = gaps(h, (here, *state), self.reach)
        slope = (here.x0 - state[0].x0) / expand(gap, x_t)
        if not further:
            return x_s + expand(finite(h, of_x0 * h / 2), x_t) * slope, after  # Alg. 2
        # Newton's parabola through the three predictions: x_0 + D1 u + D2 u^2, u = lambda - lambda_t.
        slope_before = (state[0].x0 - state[1].x0) / expand(further[0] - gap, x_t)
        D2 = (slope - slope_before) / expand(further[0], x_t)
        D1 = slope + expand(gap, x_t) * D2
        _, first, second = moments(h, 3)
        second = second if self.d2 == "corrected" else second / 2
        x_s = x_s + expand(finite(h, link.alpha_s * first * h), x_t) * D1
        return x_s + expand(finite(h, link.alpha_s * second * h**2), x_t) * D2, after
