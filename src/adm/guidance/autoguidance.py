"""Guidance by a worse version of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._fit import check_fits
from adm.guidance._pair import PairGuided, check_model
from adm.guidance._protocol import Stage
from adm.guidance._strength import check_weight

__all__ = ["Autoguidance"]


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """D_worse + weight (D - D_worse), where D_worse is a worse model under the same condition (Karras et al. 2024,
    section 4).

    model: the worse one, which makes the same kind of errors in a stronger form: a smaller network, an earlier
    checkpoint, a shorter average of the weights. One that knows no classes is accepted; another schedule or image size
    is refused with a ValueError. weight: of the difference: 1 switches it off, without evaluations; 1.7 to 2.5 were
    published. All images are guided, those with label -1 too. Variance and guidance gradient stay those of D.
    """

    model: Denoiser
    weight: float = 2.0

    def __post_init__(self) -> None:
        check_weight(self.weight)
        check_model("guiding model", self.model)

    @property
    def stage(self) -> Stage:
        return "mix"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        check_fits("guiding model", self.model, denoiser)
        return denoiser if self.weight == 1 else _Autoguided(denoiser, self.model, self.weight)


class _Autoguided(PairGuided):
    model: Denoiser

    def __init__(self, denoiser: Denoiser, model: Denoiser, weight: float) -> None:
        super().__init__(denoiser, model)
        self.weight = weight

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        difference = prediction.x0 - self.model(x_t, t, cond).x0
        return replace(prediction, x0=prediction.x0 + (self.weight - 1) * difference)
