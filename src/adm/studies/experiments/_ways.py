"""The ways to guide that the study of guidances compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.guidance import Guidance
from adm.guidance.apg import AdaptiveProjectedGuidance
from adm.guidance.autoguidance import Autoguidance
from adm.guidance.classifier import ClassifierGuidance
from adm.guidance.classifier_free import ClassifierFreeGuidance
from adm.guidance.clean_classifier import CleanClassifierGuidance
from adm.guidance.interval import Interval
from adm.guidance.perturbed_attention import PerturbedAttention
from adm.studies._digit_models import Kind

__all__ = ["NONE", "WAYS", "Others", "Way", "read_variant", "variant"]

LOW, HIGH = 0.19, 1.61
"""The interval of Kynkaanniemi et al. 2024, as noise-to-signal ratios."""


@dataclass(frozen=True)
class Others:
    """What guidances of one seed may need beside the model that they guide."""

    classifier: NoisyClassifier
    early: DiffusionModel
    small: DiffusionModel


@dataclass(frozen=True)
class Way:
    """A way to guide, at some strengths; model: which one is guided."""

    meaning: str
    strengths: tuple[float, ...]
    build: Callable[[float, Others], Guidance | None]
    model: Kind = "conditional"


NONE = "none"
SCALES, WEIGHTS = (1.0, 3.0, 10.0), (1.5, 2.0, 4.0)
WAYS: Mapping[str, Way] = {
    NONE: Way("the conditional model alone", (0.0,), lambda s, others: None),
    "classifier": Way(
        "noisy classifier, unconditional model; scale", SCALES,
        lambda s, others: ClassifierGuidance(others.classifier, s), "unconditional",
    ),
    "classifier+labels": Way(
        "noisy classifier, conditional model; scale", (0.5, 1.0, 3.0),
        lambda s, others: ClassifierGuidance(others.classifier, s),
    ),
    "clean-classifier": Way(
        "the same classifier at the predicted x0, conditional model; scale", (0.3, 1.0, 3.0),
        lambda s, others: CleanClassifierGuidance(others.classifier, s, jacobian="gaussian"),
    ),
    "classifier-free": Way("null label; weight", WEIGHTS, lambda s, others: ClassifierFreeGuidance(s)),
    "cfg-interval": Way(
        f"classifier-free where {LOW} < sigma/alpha <= {HIGH}; weight", WEIGHTS,
        lambda s, others: Interval(ClassifierFreeGuidance(s), LOW, HIGH),
    ),
    "apg": Way("adaptive projected guidance; weight", WEIGHTS, lambda s, others: AdaptiveProjectedGuidance(s)),
    "autoguidance": Way(
        "worse model: a copy after a quarter of the run; weight", WEIGHTS,
        lambda s, others: Autoguidance(others.early, s),
    ),
    "autoguidance-small": Way(
        "worse model: half as wide, a quarter as long; weight", WEIGHTS,
        lambda s, others: Autoguidance(others.small, s),
    ),
    "perturbed-attention": Way(
        "the middle's attention replaced by the identity; scale", (0.5, 1.0, 2.0),
        lambda s, others: PerturbedAttention(s),
    ),
}  # fmt: skip


def variant(name: str, strength: float, budget: int) -> str:
    return f"{name}_{strength:g}_{budget}"


def read_variant(text: str) -> tuple[str, float, int]:
    name, strength, budget = text.split("_")
    return name, float(strength), int(budget)
