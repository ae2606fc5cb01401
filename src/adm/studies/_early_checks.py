"""What would fail after hours of work is refused before it."""

from __future__ import annotations

import numpy as np

from adm.data import ImageSource
from adm.metrics import Metric
from adm.metrics._evaluator import Evaluator
from adm.metrics.inception_score import InceptionScore
from adm.metrics.label_accuracy import LabelAccuracy
from adm.runtime.errors import DataError

__all__ = ["refuse_what_cannot_work"]

LEAST_FOR_ERROR_BARS = 40


def refuse_what_cannot_work(evaluator: Evaluator, samples: ImageSource, num: int) -> None:
    """Raises DataError for too few images, pixels of two sizes, and labels that are needed and not there."""
    reference = evaluator.reference.source if evaluator.uses_reference_images() else None
    for name, metric in evaluator.metrics.items():
        least = _least(metric)
        if num < least:
            raise DataError(f"{name} needs at least {least} samples, {samples.name} gives {num}. Make more.")
        if reference is not None and metric.needs_reference and reference.num < least:
            raise DataError(
                f"{name} needs at least {least} reference images, {reference.name} holds {reference.num}. Give more."
            )
        pixels = metric.extractor is not None and metric.extractor.name == "pixels"
        if pixels and reference is not None and reference.shape != samples.shape:
            raise DataError(
                f"{name} compares pixels, and images of {reference.name} and {samples.name} differ in size: "
                f"{reference.shape} and {samples.shape}. Give images of one size."
            )
        if isinstance(metric, LabelAccuracy) and (samples.labels is None or bool(np.any(samples.labels[:num] < 0))):
            raise DataError(
                f"{samples.name} lacks labels, which label_accuracy needs for each image. Give arr_1, or a labels.csv."
            )
    if evaluator.error_bars and num < LEAST_FOR_ERROR_BARS:
        raise DataError(f"error bars need at least {LEAST_FOR_ERROR_BARS} samples, {samples.name} gives {num}.")


def _least(metric: Metric) -> int:
    """Images a side without which the metric has no value."""
    k = getattr(metric, "k", None)
    if isinstance(k, int):
        return k + 1
    return 1 if isinstance(metric, InceptionScore | LabelAccuracy) else 2
