"""Guidance in a range of noise levels alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser, fresh
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Time
from adm.guidance._protocol import Guidance, GuidedDenoiser, Stage

__all__ = ["Interval"]


@dataclass(frozen=True, eq=False)
class Interval:
    """Another guidance where low < sigma / alpha <= high, and none elsewhere (Kynkäänniemi et al. 2024).

    of: the guidance; what it evaluates is saved where it is off. low, high: the noise-to-signal ratios, EDM's sigma,
    between which it guides. (0.19, 1.61] was published for latents of ImageNet at 512x512, which is t = 55 to 352 on
    the linear schedule and 112 to 642 on the cosine one. Each image has its own noise level if t is (N,); where some
    are inside and some are not, all are evaluated with the guidance and without it, so a momentum of guidances beneath
    (`AdaptiveProjectedGuidance`) counts that evaluation twice. The level of the prediction decides, also for a
    gradient that a sampler asks for elsewhere. Raises ValueError for an empty interval.
    """

    of: Guidance
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not callable(self.of):
            raise ValueError(
                f"a {type(self.of).__name__} is no guidance: give one, such as adm.ClassifierFreeGuidance(2)"
            )
        if not 0 <= self.low < self.high:
            raise ValueError(
                f"the interval ({self.low}, {self.high}] is empty: choose 0 <= low < high, as noise-to-signal ratios"
            )

    @property
    def stage(self) -> Stage:
        return getattr(self.of, "stage", "mix")

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        guided = self.of(denoiser)
        return denoiser if guided is denoiser else _Within(denoiser, guided, self)

    def contains(self, denoiser: Denoiser, t: Time) -> Tensor:
        """Whether low < sigma / alpha <= high at t, of t's shape, on the CPU."""
        alpha_bar = denoiser.schedule.alpha_bar_at(torch.as_tensor(t).cpu())
        ratio = ((1 - alpha_bar) / alpha_bar).sqrt()
        return (self.low < ratio) & (ratio <= self.high)


class _Within(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, guided: Denoiser, how: Interval) -> None:
        super().__init__(denoiser)
        self.guided = guided
        self.how = how

    def fresh(self) -> _Within:
        new = copy.copy(self)
        new.denoiser = fresh(self.denoiser)
        if new.denoiser is self.denoiser:
            new.guided = fresh(self.guided)
        else:
            # Inside and outside of the interval, what lies beneath must remember the same.
            new.guided = fresh(self.how.of(_Begun(new.denoiser)))
        return new

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        inside = self.how.contains(self.denoiser, t)
        if bool(inside.all()):
            return self.guided(x_t, t, cond)
        if not bool(inside.any()):
            return self.denoiser(x_t, t, cond)
        return _chosen(inside, self.guided(x_t, t, cond), self.denoiser(x_t, t, cond))


class _Begun(GuidedDenoiser):
    """A denoiser in the trajectory for which it was made afresh."""

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        return self.denoiser(x_t, t, cond)

    def fresh(self) -> _Begun:
        return self


def _chosen(inside: Tensor, guided: Prediction, plain: Prediction) -> Prediction:
    """The guided prediction of the images inside, the plain one of the others. inside: (N,)."""
    x_t = plain.x_t
    mask = inside.to(x_t.device).reshape(-1, *(1,) * (x_t.ndim - 1))

    def gradient(x: Tensor, t: Time) -> Tensor:
        return torch.where(mask, _gradient(guided, x, t), _gradient(plain, x, t))

    guidance: GuidanceGradient | None = gradient
    if guided.guidance is None and plain.guidance is None:
        guidance = None
    return replace(
        plain,
        x0=torch.where(mask, guided.x0, plain.x0),
        var_frac=torch.where(mask, guided.var_frac, plain.var_frac),
        guidance=guidance,
    )


def _gradient(prediction: Prediction, x: Tensor, t: Time) -> Tensor:
    return torch.zeros_like(x) if prediction.guidance is None else prediction.guidance(x, t)
