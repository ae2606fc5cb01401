"""What keeps the numbers of an evaluation from being compared with published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adm.data import ImageSource
from adm.metrics._evaluator import Evaluator
from adm.metrics.inception_score import InceptionScore
from adm.metrics.precision_recall import PrecisionRecall

__all__ = ["doubts"]

ENOUGH = 10_000
SPLIT_SIZE = 5000


def doubts(
    evaluator: Evaluator, samples: ImageSource | None, num: int, difference: Mapping[str, float] | None = None
) -> list[str]:
    """What keeps these numbers from being compared with published ones.

    difference: by tap, how far the Inception network's features are from those of the plain float32 one.
    """
    found = []
    if evaluator.inception is not None and evaluator.has_statistics_of_other_weights():
        found.append(
            "stored statistics are of other Inception weights than these, or do not say of which: "
            "the two sides compare only if they are of the same"
        )
    if any(
        isinstance(m, PrecisionRecall) and not m.extractor and m.precision != "fp16" for m in evaluator.metrics.values()
    ):
        found.append("precision and recall are in fp32; published ones are in float16, a few thousandths higher")
    if difference:
        measured = ", ".join(f"{tap} {value:.1g}" for tap, value in difference.items())
        found.append(f"the Inception network is not the plain float32 one: its features differ by up to {measured}")
    return found if samples is None else found + _doubts_of_images(evaluator, samples, num)


def _doubts_of_images(evaluator: Evaluator, samples: ImageSource, num: int) -> list[str]:
    reference = evaluator.reference.source
    found = []
    if num < ENOUGH and any(m.accepts_statistics or isinstance(m, InceptionScore) for m in evaluator.metrics.values()):
        found.append(
            f"{num:,} samples: FID, sFID and Inception Score depend on the number, and papers use 50,000. "
            "Compare only equal numbers of images"
        )
    counted = any(hasattr(metric, "k") for metric in evaluator.metrics.values())
    if reference is not None and counted and reference.num < ENOUGH:
        known = (
            " (the published 512-pixel reference has 1,000)"
            if (reference.num, reference.shape[0]) == (1000, 512)
            else ""
        )
        found.append(
            f"{reference.num:,} reference images{known}: precision and recall depend on the number, "
            "and papers up to 256 pixels use 10,000"
        )
    if reference is not None and reference.shape != samples.shape:
        found.append(
            f"samples are {_size(samples)}, the reference {_size(reference)}: features see the difference in size"
        )
    for name, source in (("samples", samples), ("reference", reference)):
        if source is not None:
            found += _doubts_of_pixels(name, source.conditions)
    if samples.labels is not None:
        found += _doubts_of_labels(np.asarray(samples.labels[:num]))
    request = samples.conditions.get("request")
    if isinstance(request, Mapping) and request.get("weights") == "model":
        found.append("the samples were made with the weights of the last step, not the averaged ones (EMA)")
    return found


def _size(source: ImageSource) -> str:
    height, width, channels = source.shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _doubts_of_pixels(name: str, conditions: Mapping[str, Any]) -> list[str]:
    found = []
    formats = conditions.get("formats")
    if isinstance(formats, Mapping) and formats.get("JPEG"):
        found.append(
            f"{formats['JPEG']:,} images of the {name} are JPEG: its artefacts move FID, in one report from 2.5 to 5.8"
        )
    if conditions.get("looks_like_float"):
        found.append(f"no value of the {name} is above 1: they look like images in [0, 1] that were cast to uint8")
    return found


def _doubts_of_labels(labels: np.ndarray) -> list[str]:
    labels = labels[labels >= 0]
    if len(labels) == 0:
        return []
    counts = np.bincount(labels)
    mean = len(labels) / len(counts)
    # Labels drawn at random are within some 4 standard deviations of equal counts; more is no accident.
    if len(counts) > 1 and np.abs(counts - mean).max() > 4 * np.sqrt(mean) + 1:
        return [
            f"labels are skewed: classes have {counts.min():,} to {counts.max():,} samples. "
            "FID against a balanced reference counts that as an error of the model"
        ]
    if len(labels) > SPLIT_SIZE and len(counts) > 1 and (np.diff(labels) >= 0).all():
        return [
            f"the samples are sorted by class: Inception Score, the mean over splits of {SPLIT_SIZE:,} in their order, "
            "is lower than for shuffled ones"
        ]
    return []
