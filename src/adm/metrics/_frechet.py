"""The Frechet distance of two Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from adm.metrics._features import Statistics, require_same_extractor
from adm.runtime.errors import DataError, UsageError

__all__ = ["frechet_distance", "trace_of_root"]

NEGATIVE_MASS = 1e-6
"""Negative variance up to this share of the trace is rounding, as in statistics that were stored in float32."""


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), in float64; symmetric, and 0 for equal statistics.

    Nothing is added to a covariance that lacks rank. Raises UsageError for fewer than two rows a side or for
    other extractors, DataError for a matrix that is no covariance. Source: Frechet 1957; Dowson & Landau 1982;
    Heusel et al. 2017, Eq. 6.
    """
    require_same_extractor(a, b)
    for side in (a, b):
        if side.n is not None and side.n < 2:
            raise UsageError(f"a Frechet distance needs a covariance, and {side.n} image has none: give at least 2")
    # Two devices meet on that of a.
    mean_b, cov_b = b.mean.to(a.mean), b.cov.to(a.cov)
    shift = a.mean - mean_b
    distance = shift @ shift + a.cov.trace() + cov_b.trace() - 2 * trace_of_root(a.cov, cov_b)
    return max(float(distance), 0.0)


def trace_of_root(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> Tensor:
    """tr (A B)^(1/2) of two covariances (D, D), float64, to about ``tolerance`` of their traces; a scalar.

    With A = F F^T it is the sum of the roots of the eigenvalues of F^T B F. A root magnifies the rounding of a
    small eigenvalue: where the sum of what it may do passes ``tolerance``, the singular values of G^T F with
    B = G G^T are taken, which are those roots themselves. ``tolerance=0`` always takes them.
    """
    factor = _factor(a)
    if factor.shape[1] == 0:  # a set without variance, such as copies of one image
        return a.new_zeros(())
    product = factor.T @ (b @ factor)
    eigenvalues = torch.linalg.eigvalsh(product)
    eps = torch.finfo(eigenvalues.dtype).eps
    # Weyl: each eigenvalue moves by at most the norm of the rounding, here some eps of the largest one, and then
    # its root by no more than rounding / root, or root(rounding) where that is smaller.
    rounding = 8 * eps * eigenvalues[-1].clamp(min=0)
    roots = eigenvalues.clamp(min=0).sqrt()
    error = (rounding / roots.clamp(min=rounding.sqrt())).nan_to_num(0.0).sum()
    if bool(error <= tolerance * (a.trace() + b.trace()) / 2):
        return roots.sum()
    return torch.linalg.svdvals(_factor(b).T @ factor).sum()


def _factor(cov: Tensor) -> Tensor:
    """F (D, rank) with F F^T = cov: Cholesky's where the rank is full, else by eigenvectors."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    diagonal = factor.diagonal()
    floor = len(cov) * torch.finfo(cov.dtype).eps
    # A pivot that is rounding says that the rank is not full, though no pivot was negative.
    if not bool(failed) and bool(diagonal.min() ** 2 > floor * diagonal.max() ** 2):
        return factor
    return _spectral_factor(cov)


def _spectral_factor(cov: Tensor) -> Tensor:
    """The same without the directions whose variance is rounding."""
    values, vectors = torch.linalg.eigh(cov)
    negative = -values.clamp(max=0).sum()
    if bool(negative > NEGATIVE_MASS * values.clamp(min=0).sum()):
        raise DataError(
            f"a covariance has negative variances, {float(negative):.2g} in all: "
            "the stored statistics are damaged or of something else, make them anew"
        )
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor.clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()
