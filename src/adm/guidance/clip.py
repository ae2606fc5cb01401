"""Bounding x_0."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._protocol import GuidedDenoiser, Stage

__all__ = ["Clip"]


@dataclass(frozen=True)
class Clip:
    """Clamp the predicted x_0 to [-limit, limit], as the released clip_denoised does; eps follows.

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
        return "after" if self.after else "clip"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return _Clipped(denoiser, self.limit, self.after)


class _Clipped(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, limit: float, fold: bool) -> None:
        super().__init__(denoiser)
        self.limit = limit
        self.fold = fold

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        if self.fold and prediction.guidance is not None:
            prediction = prediction.fold(prediction.guidance(x_t, t))
        return replace(prediction, x0=prediction.x0.clamp(-self.limit, self.limit))
