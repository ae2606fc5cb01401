"""What a denoiser believes about x_t."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from adm.diffusion.schedule import Time

__all__ = ["GuidanceGradient", "Prediction"]

GuidanceGradient = Callable[[Tensor, Time], Tensor]
"""(x, t) -> sum_k s_k grad_x log p_k(x, t), of x's shape."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """x_0 as predicted from x_t; eps, score and v follow from it, so whoever changes x_0 changes them all.

    x_t, x0: (N, C, H, W). alpha, sigma: numbers or (N, 1, 1, 1) with x_t = alpha x_0 + sigma eps.
    var_frac: where the reverse variance lies between beta_tilde (0) and beta (1), iDDPM Eq. 15; broadcasts over x0.
    guidance: the gradient that travels with the prediction, or None. The sampler decides where to evaluate it and
    how it enters (ADM Alg. 1 and 2).
    """

    x_t: Tensor
    x0: Tensor
    alpha: Tensor
    sigma: Tensor
    var_frac: Tensor
    guidance: GuidanceGradient | None = None

    @property
    def eps(self) -> Tensor:
        """The noise in x_t: (x_t - alpha x_0) / sigma, from DDPM Eq. 4."""
        return (self.x_t - self.alpha * self.x0) / self.sigma

    @property
    def score(self) -> Tensor:
        """grad log q(x_t) = -eps / sigma (ADM Eq. 11)."""
        return -self.eps / self.sigma

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
        return self.alpha * self.eps - self.sigma * self.x0

    def fold(self, gradient: Tensor) -> Prediction:
        """This prediction with the gradient folded into eps: eps - sigma g, ADM Alg. 2; x_0 moves by sigma^2 g / alpha.

        The result is not clipped again (as released), and carries no guidance any more.
        """
        return replace(self, x0=self.x0 + (self.sigma**2 / self.alpha) * gradient, guidance=None)
