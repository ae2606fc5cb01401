"""Guidance by the model's own prediction without the label."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._pair import PairGuided, check_model, check_pair, label_difference
from adm.guidance._protocol import Stage
from adm.guidance._strength import check_weight

__all__ = ["ClassifierFreeGuidance"]


@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance:
    """D_u + weight (D_c - D_u), of predictions with and without the label (Ho & Salimans 2022, Eq. 6, w = weight - 1).

    weight: of the difference: 1 switches it off, without evaluations, 0 leaves the unconditional prediction, and the
    paper's best FID was at 1.1 to 1.3. model: predicts without the label, such as the released unconditional 256x256
    model beside the conditional one; None: the model itself, asked for the label -1. Another model must be of the same
    schedule and image size, or it is refused with a ValueError. Without one, both are asked in one batch of twice the
    size. That is what a model was trained for only if some labels were left out in training (label_dropout): the
    prediction of another for -1 has no meaning.
    An image with label -1 is not guided. Variance and guidance gradient stay those of D_c.
    """

    weight: float = 2.0
    model: Denoiser | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.model is not None:
            check_model("unconditional model", self.model)

    @property
    def stage(self) -> Stage:
        return "mix"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        check_pair(denoiser, self.model)
        return denoiser if self.weight == 1 else _LabelGuided(denoiser, self.model, self.weight)


class _LabelGuided(PairGuided):
    def __init__(self, denoiser: Denoiser, model: Denoiser | None, weight: float) -> None:
        super().__init__(denoiser, model)
        self.weight = weight

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction, difference = label_difference(self.denoiser, self.model, x_t, t, cond)
        return replace(prediction, x0=prediction.x0 + (self.weight - 1) * difference)
