"""Bounding x_0."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adm.diffusion.model import Denoiser
from adm.guidance._bounded import Bounded, stage_of
from adm.guidance._protocol import Stage

__all__ = ["Clip"]


@dataclass(frozen=True)
class Clip:
    """Clamp the predicted x_0 to [-limit, limit], as the released clip_denoised does; eps follows.

    limit: the bound; images lie in [-1, 1].
    after: clamp what the gradient has made of x_0, as few-step solvers want; a plain Clip may stand beside it. The
    gradient is then folded into eps at (x_t, t) for every sampler (ADM Alg. 2), DDPM too.
    """

    limit: float = 1.0
    after: bool = False

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit {self.limit}: choose a positive bound; images lie in [-1, 1]")

    @property
    def stage(self) -> Stage:
        return stage_of(self.after)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return Bounded(denoiser, self.bound, self.after)

    def bound(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.limit, self.limit)
