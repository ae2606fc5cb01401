"""DPM-Solver++ for the SDE, of second order in the drift, one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._log_snr import Evaluation, check_reach, finite, first_order, gaps, lambda_s, lambda_t
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["DPMSolverSDE"]


@dataclass(frozen=True)
class DPMSolverSDE:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5): ancestral sampling with x_0 taken along a line; guided as
    in ADM Alg. 2.

    eta: 0 to 1, the share of DDPM's noise that is added, in DDIM's sense: 1 is published, 0 is DPM-Solver++(2M).
    Without the line, as in the first step, it is DDIM at this eta. The step to clean data is of first order and draws
    nothing. At eta = 1 it overshoots with strong guidance and few steps: use DPM-Solver++(2M) there. The model's
    variance is not used.
    reach: the line through two predictions is followed over at most so many times their distance in lambda = log(alpha
    / sigma); inf is as published.
    """

    eta: float = 1.0
    reach: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta}: choose a number from 0 (DPM-Solver++ 2M) to 1 (the published SDE rule)")
        check_reach(self.reach)

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: Evaluation | None
    ) -> tuple[Tensor, Evaluation]:
        here = Evaluation(lambda_t(link), guided(denoise, x_t, link.t).x0)
        h = lambda_s(link) - here.at
        if self.eta > 0 and h.ndim == 0 and bool(h < 0):
            raise ValueError(f"eta {self.eta}: noise is added on the way down only; use eta=0 on an inverted chain")
        # Of the noise in x_s, sigma_s^2, this share is new. At eta = 1 the SDE is solved (Lu et al. 2022b, section 5):
        # x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^(-2 h)) x_0 + sigma_s sqrt(1 - e^(-2 h)) z.
        new = -(self.eta**2) * torch.expm1(-2 * h) if self.eta > 0 else torch.zeros_like(h)
        of_x_t, of_x0 = first_order(link, kept=(1 - new).clamp(min=0).sqrt())
        x_s = expand(of_x_t, x_t) * x_t + expand(of_x0, x_t) * here.x0
        if state is not None:
            # As for the ODE: Alg. 2 with this weight of x_0.
            (gap,) = gaps(h, (here, state), self.reach)
            weight = finite(h, of_x0 * h / (2 * gap))
            x_s = x_s + expand(weight, x_t) * (here.x0 - state.x0)
        if self.eta == 0 or (link.last.ndim == 0 and bool(link.last)):
            return x_s, here
        return x_s + expand(link.sigma_s * new.sqrt(), x_t) * noise(0), here
