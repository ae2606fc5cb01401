"""How often a sample shows the class that was asked for."""

from __future__ import annotations

import torch

from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, named
from adm.runtime.errors import UsageError

__all__ = ["LabelAccuracy"]


class LabelAccuracy:
    """{"label_accuracy": share of samples in which the extractor's head reads the label that was asked for}.

    ``per_class`` adds "label_accuracy_<class>" for each class that was asked for. Needs ``label`` and ``predicted``
    of the samples, and nothing of the reference. The judge must not be the guide: a classifier that steered the
    samples agrees with itself. Raises UsageError without labels or for a label below 0.
    """

    tap = "logits"
    accepts_statistics = False
    needs_reference = False

    def __init__(self, per_class: bool = False, extractor: Extractor | None = None) -> None:
        self.per_class = per_class
        self.extractor = extractor

    def __call__(self, sample: Features, reference: Features | None = None) -> dict[str, float]:
        if sample.label is None or sample.predicted is None:
            raise UsageError(f"{sample.extractor} features carry no labels: give a classifier the labels asked for")
        if bool((sample.label < 0).any()):
            raise UsageError("some samples were asked for no class (label -1): leave them out of the label accuracy")
        label = sample.label.to(sample.predicted.device)
        agree = (sample.predicted == label).double().cpu()
        scores = {"label_accuracy": float(agree.mean())}
        if self.per_class:
            right, asked = (torch.bincount(label.cpu(), weights) for weights in (agree, torch.ones_like(agree)))
            scores |= {f"label_accuracy_{c}": float(right[c] / asked[c]) for c in asked.nonzero()[:, 0].tolist()}
        return named(scores, self.extractor)
