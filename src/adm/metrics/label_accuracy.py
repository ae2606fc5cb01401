"""How often a sample shows the class that was asked for."""

from __future__ import annotations

from adm.metrics._features import Features
from adm.runtime.errors import UsageError

__all__ = ["LabelAccuracy"]


class LabelAccuracy:
    """{"label_accuracy": share of samples in which the extractor's head reads the label that was asked for}.

    Needs ``label`` and ``predicted`` of the samples, and nothing of the reference. The judge must not be the
    guide: a classifier that steered the samples agrees with itself. Raises UsageError without labels or for a
    label below 0.
    """

    def __call__(self, sample: Features, reference: Features | None = None) -> dict[str, float]:
        if sample.label is None or sample.predicted is None:
            raise UsageError(f"{sample.extractor} features carry no labels: give a classifier the labels asked for")
        if bool((sample.label < 0).any()):
            raise UsageError("some samples were asked for no class (label -1): leave them out of the label accuracy")
        agree = sample.predicted == sample.label.to(sample.predicted.device)
        return {"label_accuracy": float(agree.double().mean())}
