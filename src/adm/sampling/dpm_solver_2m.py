"""DPM-Solver++ of second order, one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._log_snr import Evaluation, check_reach, finite, first_order, gaps, lambda_s, lambda_t
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["DPMSolver2M"]


@dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M) (Lu et al. 2022b, Alg. 2): deterministic, second order, guided as in ADM Alg. 2.

    x_0 is taken along the line through this prediction and the one before. The first step and the one to clean data
    are of first order, which is DDIM's. Noise and the model's variance are not used.

    reach: the line through two predictions is followed over at most so many times their distance in lambda = log(alpha
    / sigma); inf is as published. It matters on grids with steps that lengthen in lambda, where 1 is better.
    """

    reach: float = 1.0

    def __post_init__(self) -> None:
        check_reach(self.reach)

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: Evaluation | None
    ) -> tuple[Tensor, Evaluation]:
        here = Evaluation(lambda_t(link), guided(denoise, x_t, link.t).x0)
        of_x_t, of_x0 = first_order(link)
        x_s = expand(of_x_t, x_t) * x_t + expand(of_x0, x_t) * here.x0
        if state is None:
            return x_s, here
        # Alg. 2: (1 + 1 / (2 r)) x_0 - x_0' / (2 r) takes the place of x_0, r = h' / h, the prime for the step before.
        h = lambda_s(link) - here.at
        (gap,) = gaps(h, (here, state), self.reach)
        weight = finite(h, of_x0 * h / (2 * gap))
        return x_s + expand(weight, x_t) * (here.x0 - state.x0), here
