"""The Frechet distance of two Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from adm.metrics._features import Statistics, require_same_extractor
from adm.runtime.errors import UsageError

__all__ = ["frechet_distance"]


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), in float64; symmetric, and 0 for equal statistics.

    The last trace is that of (A^(1/2) B A^(1/2))^(1/2), so the sum of the singular values of B^(1/2) A^(1/2).
    Taken there, and not as roots of eigenvalues, a covariance that lacks rank costs no digits: rounding of
    1e-16 stays 1e-16 where the root would make it 1e-8. Raises UsageError for fewer than two rows a side or
    for other extractors. Source: Frechet 1957; Dowson & Landau 1982; Heusel et al. 2017, Eq. 6.
    """
    require_same_extractor(a, b)
    for side in (a, b):
        if side.n < 2:
            raise UsageError(f"a Frechet distance needs a covariance, and {side.n} image has none: give at least 2")
    # Two devices meet on that of a.
    factor_a, factor_b = _factor(a.cov), _factor(b.cov.to(a.cov))
    trace_root = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    shift = a.mean - b.mean.to(a.mean)
    distance = shift @ shift + a.cov.trace() + b.cov.to(a.cov).trace() - 2 * trace_root
    return max(float(distance), 0.0)


def _factor(cov: Tensor) -> Tensor:
    """F (D, rank) with F F^T = cov, without the directions whose variance is rounding."""
    values, vectors = torch.linalg.eigh(cov)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor.clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()
