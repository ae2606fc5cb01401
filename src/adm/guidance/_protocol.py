"""What guidance is: a function from denoiser to denoiser. Read this file to write one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser, fresh
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Schedule, Time

__all__ = ["Guidance", "GuidedDenoiser", "Stage", "guide"]

Stage = Literal["mix", "clip", "gradient", "after"]
STAGES: tuple[Stage, ...] = ("mix", "clip", "gradient", "after")


class Guidance(Protocol):
    """Denoiser -> Denoiser, at a stage.

    mix: combines predictions of several denoisers; clip: bounds x_0; gradient: adds to `Prediction.guidance`, which
    the sampler applies; after: acts on x_0 with the gradient folded in. In this order the released numbers come out:
    clipping acts on the mixed x_0, and the gradient never sees the clip.
    """

    @property
    def stage(self) -> Stage: ...

    def __call__(self, denoiser: Denoiser) -> Denoiser: ...


class GuidedDenoiser(ABC):
    """A denoiser around a denoiser: forwards its schedule, device and image shape."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction: ...

    def fresh(self) -> GuidedDenoiser:
        """This denoiser for one trajectory, over a fresh inner one. What remembers earlier calls overrides it and
        starts with an empty memory; outside of a trajectory nothing is remembered."""
        inner = fresh(self.denoiser)
        if inner is self.denoiser:
            return self
        new = copy.copy(self)
        new.denoiser = inner
        return new

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device | None:
        return getattr(self.denoiser, "device", None)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return getattr(self.denoiser, "image_shape", None)


def guide(denoiser: Denoiser, *guidances: Guidance) -> Denoiser:
    """The denoiser under all guidances, applied by stage: mix, clip, gradient, after; in the order given within one.

    A function without a `stage` is innermost, at mix. Raises ValueError for a stage that does not exist.
    """
    for guidance in guidances:
        if _stage(guidance) not in STAGES:
            raise ValueError(f"stage {_stage(guidance)!r} does not exist: give the guidance one of {', '.join(STAGES)}")
    for guidance in sorted(guidances, key=lambda guidance: STAGES.index(_stage(guidance))):
        denoiser = guidance(denoiser)
    return denoiser


def _stage(guidance: Guidance) -> Stage:
    return getattr(guidance, "stage", "mix")
