"""The temperature of a classifier: by how much its log-probabilities are too small or too large."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Calibration", "calibrate"]

TOLERANCE = 1e-10
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Calibration:
    """scale: 0 when no scale is better than guessing, inf when every image is right, so that none is too much.

    standard_error: of the scale, over images; None at 0 and inf. cross_entropy: of the scaled logits, in nats.
    """

    scale: float
    standard_error: float | None
    cross_entropy: float


def calibrate(logits: Tensor, label: Tensor) -> Calibration:
    """The scale s that minimises the cross-entropy of softmax(s * logits), above 1 for a classifier too unsure.

    logits: (N, K), or (N, L, K) for L views of each image, which count as one in the standard error; label: (N,).
    Computed in float64 on the CPU. Source: temperature scaling, Guo et al. 2017, section 4.2, with s = 1 / T.
    """
    logits = logits.detach().cpu().double()
    logits = logits[:, None] if logits.ndim == 2 else logits
    index = label.cpu()[:, None, None].expand(-1, logits.shape[1], 1)
    margins = logits - logits.gather(2, index)  # (N, L, K), 0 at the label; all that the cross-entropy depends on
    largest = float(margins.abs().max())
    if largest == 0 or float(margins.mean()) >= 0:  # the slope at 0
        return Calibration(0.0, None, math.log(logits.shape[2]))
    if bool((margins <= 0).all()):
        return Calibration(math.inf, None, float((margins == 0).sum(2).double().log().mean()))
    scale = _minimum(margins, 1 / largest)
    # The estimating equation's own error: sqrt(sum of squared slopes) / sum of curvatures.
    slope, curvature = _derivatives(margins, scale)
    error = float(slope.sum(1).pow(2).sum().sqrt() / curvature.sum())
    return Calibration(scale, error, float((scale * margins).logsumexp(2).mean()))


def _minimum(margins: Tensor, start: float) -> float:
    """Where the mean slope, which rises with the scale, is 0: Newton's steps, halving where one leaves the bracket."""
    low, high, scale = 0.0, math.inf, start
    for _ in range(MAX_ITERATIONS):
        slope, curvature = (float(values.mean()) for values in _derivatives(margins, scale))
        low, high = (scale, high) if slope <= 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else math.inf
        outside = 2 * scale if math.isinf(high) else (low + high) / 2
        # At most twice as far at once: where the cross-entropy is nearly flat Newton's step leads anywhere.
        following = step if low < step < min(high, 2 * scale) else outside
        if abs(following - scale) <= TOLERANCE * scale:
            return following
        scale = following
    return scale


def _derivatives(margins: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """d/ds of the cross-entropy of each view, (N, L), and the second one: mean and variance of the margin under
    softmax(s * logits)."""
    p = F.softmax(scale * margins, dim=2)
    mean = (p * margins).sum(2, keepdim=True)
    return mean[..., 0], torch.sum(p * (margins - mean) ** 2, dim=2)
