"""EDM's churn: before a step, some noise is added and the step begins at the higher level that it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import LARGEST_RATIO
from adm.diffusion.schedule import Time, expand
from adm.sampling._protocol import Draw

__all__ = ["Churn", "Start"]

LARGEST_GAMMA = math.sqrt(2) - 1
"""EDM Alg. 2: one churn at most doubles the variance of the noise."""


@dataclass(frozen=True, eq=False)
class Start:
    """Where a step begins: x at t, of this noise-to-signal ratio, float64, () or (N,)."""

    x: Tensor
    t: Time
    ratio: Tensor


@dataclass(frozen=True)
class Churn:
    """Options of the rules that EDM Alg. 2 covers; noise levels are noise-to-signal ratios, EDM's sigma."""

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if not (self.churn >= 0 and math.isfinite(self.churn)):
            raise ValueError(
                f"churn {self.churn}: choose 0 (deterministic) or more; EDM's S_churn was 80 for ImageNet 64"
            )
        if not 0 <= self.churn_min <= self.churn_max:
            raise ValueError(
                f"churn_min {self.churn_min}, churn_max {self.churn_max}: give noise-to-signal ratios, 0 <= min <= max"
            )
        if not (self.churn_noise >= 0 and math.isfinite(self.churn_noise)):
            raise ValueError(f"churn_noise {self.churn_noise}: choose a number near 1, such as 1.003")

    def start(self, x_t: Tensor, link: Link, noise: Draw) -> Start:
        """Where the step along this link begins: (x_t, t), or above it after EDM Alg. 2, lines 4 to 6,

        gamma = min(S_churn / N, sqrt 2 - 1) for sigma in [S_min, S_max], else 0; sigma' = sigma + gamma sigma;
        x' = x + sqrt(sigma'^2 - sigma^2) S_noise eps, for x = x_t / alpha and N links; sigma' no higher than the
        schedule goes, beyond which the network was not trained, and than 164, where `log_snr` grids begin: above it
        Heun's rule has no correction.
        """
        ratio = link.sigma / link.alpha
        if self.churn == 0:
            return Start(x_t, link.t, ratio)
        if bool(link.beta_tilde.isnan().any()):
            raise ValueError(f"churn {self.churn}: an inverted chain is walked only without noise; use churn=0")
        gamma = min(self.churn / link.num_links, LARGEST_GAMMA)
        top = (1 / link.schedule.alpha_bar[-1] - 1).sqrt().to(ratio)
        raised = torch.maximum(ratio, (ratio * (1 + gamma)).clamp(max=top.clamp(max=LARGEST_RATIO)))
        churned = torch.where((ratio >= self.churn_min) & (ratio <= self.churn_max), raised, ratio)
        if churned.ndim == 0 and bool(churned == ratio):
            return Start(x_t, link.t, ratio)
        added = self.churn_noise * (churned**2 - ratio**2).clamp(min=0).sqrt()
        # alpha' x' = alpha' / alpha x_t + alpha' added eps with alpha' = 1 / sqrt(1 + sigma'^2).
        alpha = (1 + churned**2).rsqrt()
        x = expand(alpha / link.alpha, x_t) * x_t + expand(alpha * added, x_t) * noise(0)
        t = torch.where(churned > ratio, link.schedule.time_at(churned), link.t.double())
        return Start(x, t, churned)
