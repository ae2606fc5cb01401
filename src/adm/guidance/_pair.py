"""Two predictions at the same x_t, and the difference along which a guidance goes on.

D_other + w (D - D_other) = D + (w - 1) (D - D_other): written in the second way an image without difference is
untouched to the bit, and w = 1 is D itself.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser, fresh
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Time, expand
from adm.guidance._fit import check_fits
from adm.guidance._protocol import GuidedDenoiser

__all__ = ["PairGuided", "check_model", "check_pair", "label_difference"]


class PairGuided(GuidedDenoiser):
    """A denoiser that is compared with another; both start each trajectory afresh."""

    def __init__(self, denoiser: Denoiser, model: Denoiser | None) -> None:
        super().__init__(denoiser)
        self.model = model

    def fresh(self) -> PairGuided:
        new = copy.copy(self)
        new.denoiser = fresh(self.denoiser)
        new.model = None if self.model is None else fresh(self.model)
        return new


def label_difference(
    denoiser: Denoiser, model: Denoiser | None, x_t: Tensor, t: Time, cond: Condition
) -> tuple[Prediction, Tensor]:
    """The prediction with the label, and its x_0 less the one without: D_c and D_c - D_u, 0 where the label is -1.

    model: predicts without the label; None: the denoiser does, for label -1, both in one batch. The prediction keeps
    its variance and guidance gradient. Raises ValueError for a condition without labels.
    """
    if cond.label is None:
        raise ValueError(
            "classifier-free guidance needs to know which class: give Condition(label=...), -1 for images that are "
            "not to be guided"
        )
    if model is None:
        prediction, x0_without = _in_one_batch(denoiser, x_t, t, cond)
    else:
        prediction, x0_without = denoiser(x_t, t, cond), model(x_t, t, cond.null()).x0
    has_label = expand((cond.label >= 0).to(x_t.dtype), x_t)
    return prediction, has_label * (prediction.x0 - x0_without)


def check_model(name: str, model: object) -> None:
    """Raise ValueError for what is no denoiser."""
    if not callable(model) or not hasattr(model, "schedule") or hasattr(model, "grad_log_prob"):
        raise ValueError(f"a {type(model).__name__} is no {name}: give an adm.DiffusionModel, or adm.load one")


def check_pair(denoiser: Denoiser, model: Denoiser | None) -> None:
    """Raise ValueError for a denoiser without classes, as far as it says, and for a model that does not fit it."""
    if model is not None:
        check_fits("unconditional model", model, denoiser)
    beneath: object = denoiser
    while isinstance(beneath, GuidedDenoiser):
        beneath = beneath.denoiser
    config = getattr(getattr(beneath, "network", None), "config", None)
    if getattr(config, "num_classes", 0) is None:
        raise ValueError(
            "classifier-free guidance needs a class-conditional model, this one is unconditional: guide it with a "
            "classifier or with autoguidance, or give it as `model` beside a conditional one"
        )


def _in_one_batch(denoiser: Denoiser, x_t: Tensor, t: Time, cond: Condition) -> tuple[Prediction, Tensor]:
    """(the prediction, x_0 for label -1) from one evaluation of twice the images."""
    n = len(x_t)
    both = denoiser(torch.cat([x_t, x_t]), _twice(t), cond.cat(cond.null()))
    gradient = both.guidance

    def first_gradient(x: Tensor, t: Time) -> Tensor:
        assert gradient is not None
        return gradient(torch.cat([x, x]), _twice(t))[:n]

    guidance: GuidanceGradient | None = None if gradient is None else first_gradient
    first = Prediction(
        x_t, both.x0[:n], _first(both.alpha, n), _first(both.sigma, n), _first(both.var_frac, n), guidance
    )
    return first, both.x0[n:]


def _twice(t: Time) -> Time:
    return torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim == 1 else t


def _first(value: Tensor, n: int) -> Tensor:
    """The rows of the first n images, of what has a row for each of 2 n; what is one for all stays."""
    return value[:n] if value.ndim > 0 and len(value) == 2 * n else value
