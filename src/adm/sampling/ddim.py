"""Denoising diffusion implicit models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.schedule import Schedule, expand, strided
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2020, Eq. 12): deterministic at eta = 0; guided as in ADM Alg. 2.

    eta: 0 to 1, the share of DDPM's noise that is added (DDIM Eq. 16). The model's variance is not used. On
    `chain.inverted()` the same rule, at eta = 0, carries an image up to its noise. Grids come from `strided`: a
    guided chain that starts at the cosine schedule's last timestep explodes, because there the shift of x_0 is
    2e4 times the gradient and nothing clips it afterwards.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta}: choose a number from 0 (deterministic) to 1 (DDPM's small variance)")

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[int]:
        return strided(schedule.num_timesteps, num_steps)

    def init(self) -> None:
        return None

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: None) -> tuple[Tensor, None]:
        prediction = guided(denoise, x_t, link.t)
        alpha_s = expand(link.alpha_s, x_t)
        if self.eta == 0:
            return alpha_s * prediction.x0 + expand(link.sigma_s, x_t) * prediction.eps, None
        if link.beta_tilde.ndim == 0 and bool(link.beta_tilde.isnan()):
            raise ValueError(f"eta {self.eta}: DDIM goes up an inverted chain only without noise; use eta=0")
        variance = self.eta**2 * link.beta_tilde  # DDIM Eq. 16; 0 at the last step, where no noise is added
        direction = expand((1 - link.alpha_bar_s - variance).clamp(min=0).sqrt(), x_t)
        x_s = alpha_s * prediction.x0 + direction * prediction.eps
        if link.last.ndim == 0 and bool(link.last):
            return x_s, None
        return x_s + expand(variance.sqrt(), x_t) * noise(0), None
