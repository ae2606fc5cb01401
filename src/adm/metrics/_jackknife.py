"""Error bars without more samples: what every metric says when a block of the samples is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from adm.metrics._features import Features, Metric, Statistics, as_statistics
from adm.runtime import randomness
from adm.runtime.errors import UsageError

__all__ = ["LeaveOneOut", "jackknife"]


@runtime_checkable
class LeaveOneOut(Protocol):
    """A metric that knows a cheaper way, or one that keeps the samples' splits."""

    def leave_one_out(
        self, sample: Features, reference: Features | Statistics | None, blocks: Sequence[Tensor]
    ) -> Sequence[Mapping[str, float]]: ...


def jackknife(
    metric: Metric,
    sample: Features,
    reference: Features | Statistics | None = None,
    num_blocks: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """The metric's scores, and for each "<name>_error": its standard error over other draws of the samples.

    The samples are divided at random, a function of ``seed``, into ``num_blocks`` blocks; with theta_i the score
    without block i the squared error is (g - 1) / g sum_i (theta_i - mean)^2. The reference is taken as it is: an error
    bar tells what other samples of the same model would give, not what another reference or another training would.
    (A bootstrap will not do: the copies that it draws make FID larger.) Metrics of moments are computed from those of
    the blocks; others are computed ``num_blocks`` times anew. Raises UsageError for fewer than two samples a block.
    Source: Kunsch 1989; Efron & Tibshirani 1993, chapter 11.
    """
    if num_blocks < 2 or len(sample) < 2 * num_blocks:
        raise UsageError(f"{len(sample)} samples do not make {num_blocks} blocks of 2 or more: give more samples")
    order = randomness.permutation(len(sample), seed=seed, stream="jackknife")
    blocks = [block.sort().values for block in order.tensor_split(num_blocks)]
    if isinstance(metric, LeaveOneOut):
        scores, parts = metric(sample, reference), metric.leave_one_out(sample, reference, blocks)
    elif metric.accepts_statistics:
        scores, parts = _of_moments(metric, sample, reference, blocks)
    else:
        scores = metric(sample, reference)
        parts = [metric(sample.without(block), reference) for block in blocks]
    return dict(scores) | {f"{key}_error": _error([part[key] for part in parts]) for key in scores}


def _of_moments(
    metric: Metric, sample: Features, reference: Features | Statistics | None, blocks: Sequence[Tensor]
) -> tuple[Mapping[str, float], list[Mapping[str, float]]]:
    there = None if reference is None else as_statistics(reference)
    moments = [Statistics.of(sample.values[block.to(sample.values.device)], sample.extractor) for block in blocks]
    total = reduce(Statistics.merge, moments)
    return metric(sample.statistics(), there), [metric(total.without(part), there) for part in moments]


def _error(values: Sequence[float]) -> float:
    theta = torch.tensor(values, dtype=torch.float64)
    return float(((len(theta) - 1) * theta.var(correction=0)).sqrt())
