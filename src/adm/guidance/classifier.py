"""Guidance by a noisy classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Schedule, Time
from adm.guidance._protocol import GuidedDenoiser, Stage

__all__ = ["ClassifierGuidance"]


class Classifier(Protocol):
    """What can guide: the gradient of log p(label | x_t, t), and the schedule that it was trained for, if known."""

    @property
    def schedule(self) -> Schedule | None: ...

    def grad_log_prob(self, x_t: Tensor, t: Time, label: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Adds scale * grad log p(y | x_t, t) to the guidance gradient (ADM section 4; the sampler does Alg. 1 or 2).

    classifier: trained on the model's own schedule and image size; another is refused with a ValueError, one that
    does not say is accepted; what is no classifier is refused at once. scale: 0 switches it off, without evaluations.
    Labels come from `Condition.label`; an image with label -1 is not guided.
    """

    classifier: Classifier
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not hasattr(self.classifier, "grad_log_prob"):
            raise ValueError(
                f"a {type(self.classifier).__name__} is no classifier: give an adm.NoisyClassifier, or adm.load one"
            )

    @property
    def stage(self) -> Stage:
        return "gradient"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        _check_fits(self.classifier, denoiser)
        return denoiser if self.scale == 0 else _ClassifierGuided(denoiser, self.classifier, self.scale)


class _ClassifierGuided(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, classifier: Classifier, scale: float) -> None:
        super().__init__(denoiser)
        self.classifier = classifier
        self.scale = scale

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        return replace(prediction, guidance=self._gradient(cond, prediction.guidance))

    def _gradient(self, cond: Condition, others: GuidanceGradient | None) -> GuidanceGradient:
        label = cond.label
        if label is None:
            raise ValueError("classifier guidance needs to know which class: give Condition(label=...)")

        def gradient(x: Tensor, t: Time) -> Tensor:
            own = self.scale * self.classifier.grad_log_prob(x, t, label)
            return own if others is None else others(x, t) + own

        return gradient


def _check_fits(classifier: Classifier, denoiser: Denoiser) -> None:
    schedule = getattr(classifier, "schedule", None)
    if schedule is not None and not schedule.same_as(denoiser.schedule):
        raise ValueError(
            f"the classifier was trained for another noise schedule ({_described(schedule)}) than the model "
            f"({_described(denoiser.schedule)}): use a classifier that was trained with the model's schedule"
        )
    ours, theirs = getattr(classifier, "image_shape", None), getattr(denoiser, "image_shape", None)
    if ours is not None and theirs is not None and tuple(ours) != tuple(theirs):
        raise ValueError(
            f"the classifier was trained on images of {_size(ours)}, the model makes {_size(theirs)}: "
            "use a classifier of the model's size"
        )


def _described(schedule: Schedule) -> str:
    T = schedule.num_timesteps
    return f"T = {T}, alpha_bar = {float(schedule.alpha_bar[T // 2]):.3g} half-way"


def _size(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
