"""Adaptive projected guidance: classifier-free guidance for large weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._pair import PairGuided, check_model, check_pair, label_difference
from adm.guidance._protocol import Stage
from adm.guidance._strength import check_finite, check_weight

__all__ = ["AdaptiveProjectedGuidance"]


@dataclass(frozen=True, eq=False)
class AdaptiveProjectedGuidance:
    """Classifier-free guidance without the part of D_c - D_u along D_c, which oversaturates (Sadat et al. 2024,
    section 4): D_c + (weight - 1) (orthogonal + parallel * along), for each image by itself.

    weight: of the difference, as for classifier-free guidance; 1 switches it off. model: predicts without the label;
    None: the model itself, asked for the label -1. Both are as for ClassifierFreeGuidance, which it is at parallel=1,
    norm=None, momentum=0.
    parallel: the share of the part along D_c that stays, 0 for none (eta of the paper).
    norm: the longest that D_c - D_u may be, as the square root of a sum over an image's pixels, so it grows with the
    image's size (r of the paper); None: any length.
    momentum: the share of the difference of the evaluation before that is added to this one's (beta of the paper, -0.5
    there, which pushes each away from the last). The difference becomes difference + momentum * (what it became
    before), within one trajectory and in every evaluation of rules that take several a step. Beyond a trajectory
    nothing is remembered.
    """

    weight: float = 2.0
    model: Denoiser | None = None
    parallel: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.model is not None:
            check_model("unconditional model", self.model)
        check_finite("parallel", self.parallel, "0 takes the part along D_c away, 1 leaves it")
        if self.norm is not None and not (self.norm > 0 and math.isfinite(self.norm)):
            raise ValueError(f"norm {self.norm}: choose a positive length, or None for no bound")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum {self.momentum}: choose a number between -1 and 1, or the average would grow")

    @property
    def stage(self) -> Stage:
        return "mix"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        check_pair(denoiser, self.model)
        return denoiser if self.weight == 1 else _Projected(denoiser, self)

    def update(self, difference: Tensor, x0: Tensor) -> Tensor:
        """The difference, of D_c = x0, shortened and without its part along x0, of which `parallel` stays."""
        over_pixels = tuple(range(1, x0.ndim))
        if self.norm is not None:
            length = torch.linalg.vector_norm(difference, dim=over_pixels, keepdim=True)
            difference = difference * (self.norm / length.clamp(min=self.norm))
        if self.parallel == 1:
            return difference
        square = (x0 * x0).sum(over_pixels, keepdim=True)
        share = (difference * x0).sum(over_pixels, keepdim=True) / torch.where(square > 0, square, 1)
        return difference - (1 - self.parallel) * share * x0


class _Projected(PairGuided):
    def __init__(self, denoiser: Denoiser, how: AdaptiveProjectedGuidance) -> None:
        super().__init__(denoiser, how.model)
        self.how = how
        self.remembers = False
        self.average: Tensor | None = None

    def fresh(self) -> _Projected:
        new = super().fresh()
        assert isinstance(new, _Projected)
        new.remembers, new.average = self.how.momentum != 0, None
        return new

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction, difference = label_difference(self.denoiser, self.model, x_t, t, cond)
        if self.average is not None:
            difference = difference + self.how.momentum * self.average
        if self.remembers:
            self.average = difference.detach()  # or a trajectory would keep the graph of every step
        update = self.how.update(difference, prediction.x0)
        return replace(prediction, x0=prediction.x0 + (self.how.weight - 1) * update)
