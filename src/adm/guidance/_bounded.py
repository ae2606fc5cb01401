"""A bound on x_0, of the prediction or of what the gradient has made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._protocol import GuidedDenoiser, Stage

__all__ = ["Bounded", "stage_of"]


def stage_of(after: bool) -> Stage:
    return "after" if after else "clip"


class Bounded(GuidedDenoiser):
    """bound: x_0 (N, C, H, W) -> x_0 within bounds. after: the guidance gradient is folded in before (ADM Alg. 2)."""

    def __init__(self, denoiser: Denoiser, bound: Callable[[Tensor], Tensor], after: bool) -> None:
        super().__init__(denoiser)
        self.bound = bound
        self.after = after

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        if self.after and prediction.guidance is not None:
            prediction = prediction.fold(prediction.guidance(x_t, t))
        return replace(prediction, x0=self.bound(prediction.x0))
