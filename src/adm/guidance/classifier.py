"""Guidance by a noisy classifier."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Schedule, Time
from adm.guidance._fit import check_fits
from adm.guidance._protocol import GuidedDenoiser, Stage
from adm.guidance._strength import check_scale

__all__ = ["ClassifierGuidance"]


class Classifier(Protocol):
    """What can guide: the gradient of log p(label | x_t, t), and the schedule that it was trained for, if known.

    grad_log_prob may take a further argument `temperature`, which ClassifierGuidance gives it when it is not 1.
    """

    @property
    def schedule(self) -> Schedule | None: ...

    def grad_log_prob(self, x_t: Tensor, t: Time, label: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Adds scale * grad log p(y | x_t, t) to the guidance gradient (ADM section 4; the sampler does Alg. 1 or 2).

    classifier: a run or a preset of a classifier of noisy images, trained on the model's own schedule and image size.
    Another is refused with a ValueError, one that does not say is accepted; what is no classifier is refused at once.
    scale: how strong; 0 switches it off, without evaluations.
    temperature: divides the logits before the softmax, so p(y | x_t, t) is proportional to exp(logit_y / temperature);
    below 1 the classifier is surer than it was trained to be (adm.guidance.fit_temperature finds the honest one).
    Labels come from `Condition.label`; an image with label -1 is not guided.
    """

    classifier: Classifier
    scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not hasattr(self.classifier, "grad_log_prob"):
            raise ValueError(
                f"a {type(self.classifier).__name__} is no classifier: give an adm.NoisyClassifier, or adm.load one"
            )
        check_scale(self.scale)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature {self.temperature}: choose a positive number; 1 leaves the classifier as it is"
            )
        if self.temperature != 1 and not _takes_temperature(self.classifier):
            raise ValueError(
                f"the grad_log_prob of a {type(self.classifier).__name__} takes no temperature: leave it at 1, or give "
                "that method an argument temperature"
            )

    @property
    def stage(self) -> Stage:
        return "gradient"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        check_fits("classifier", self.classifier, denoiser)
        return denoiser if self.scale == 0 else _ClassifierGuided(denoiser, self)


class _ClassifierGuided(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, how: ClassifierGuidance) -> None:
        super().__init__(denoiser)
        self.how = how
        self.options = {} if how.temperature == 1 else {"temperature": how.temperature}

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        return replace(prediction, guidance=self._gradient(cond, prediction.guidance))

    def _gradient(self, cond: Condition, others: GuidanceGradient | None) -> GuidanceGradient:
        label = cond.label
        if label is None:
            raise ValueError("classifier guidance needs to know which class: give Condition(label=...)")

        def gradient(x: Tensor, t: Time) -> Tensor:
            own = self.how.scale * self.how.classifier.grad_log_prob(x, t, label, **self.options)
            return own if others is None else others(x, t) + own

        return gradient


def _takes_temperature(classifier: Classifier) -> bool:
    parameters = inspect.signature(classifier.grad_log_prob).parameters.values()
    return any(p.name == "temperature" or p.kind is p.VAR_KEYWORD for p in parameters)
