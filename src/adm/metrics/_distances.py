"""Distances between all rows of two sets, a tile at a time, in float64.

|u - v|^2 = |u|^2 - 2 u.v + |v|^2 is one matrix product a tile, and its rounding depends on the tile. float64
keeps that below ``slack``, which comparisons grant, so that ties and duplicates count as equal whatever the
tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adm.metrics._features import _float64

__all__ = ["kth_neighbour", "nearest_neighbour", "slack", "squared_distances"]


def squared_distances(a: Tensor, b: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of ``a`` (N, D) and ``b`` (M, D) as tiles (rows of a, rows of b, distances)."""
    a, b = _common_origin(a, b)
    norm_a, norm_b = (a * a).sum(1), (b * b).sum(1)
    for i in range(0, len(a), tile):
        rows = slice(i, min(i + tile, len(a)))
        for j in range(0, len(b), tile):
            columns = slice(j, min(j + tile, len(b)))
            product = a[rows] @ b[columns].T
            yield rows, columns, (norm_a[rows, None] - 2 * product + norm_b[columns]).clamp(min=0)


def slack(a: Tensor, b: Tensor) -> float:
    """At most this much apart are two roundings of one squared distance between ``a`` and ``b``."""
    a, b = _common_origin(a, b)
    largest = max(float((x * x).sum(1).max()) for x in (a, b))
    return 8 * torch.finfo(torch.float64).eps * a.shape[1] ** 0.5 * largest


def kth_neighbour(x: Tensor, k: int, tile: int) -> Tensor:
    """Squared distance of each row of ``x`` (N, D) to its k-th nearest other row: (N,), float64."""
    best = torch.full((len(x), k), torch.inf, dtype=torch.float64, device=_float64(x[:0]).device)
    for rows, columns, distances in squared_distances(x, x, tile):
        if rows == columns:
            distances.fill_diagonal_(torch.inf)
        best[rows] = torch.cat([best[rows], distances], dim=1).topk(k, dim=1, largest=False).values
    return best.max(dim=1).values


def nearest_neighbour(sample: Tensor, reference: Tensor, tile: int = 4096) -> tuple[Tensor, Tensor]:
    """Root mean square difference of each sample to its nearest reference row, and that row's index.

    ``sample`` (N, D), ``reference`` (M, D) -> distances (N,) float64 in the unit of the features, indices
    (N,) int64. The distance is that of the rows found, taken directly: exactly 0 for a copy.
    """
    device = _float64(sample[:0]).device
    best = torch.full((len(sample),), torch.inf, dtype=torch.float64, device=device)
    index = torch.zeros(len(sample), dtype=torch.int64, device=device)
    for rows, columns, distances in squared_distances(sample, reference, tile):
        value, position = distances.min(dim=1)
        closer = value < best[rows]
        best[rows] = torch.where(closer, value, best[rows])
        index[rows] = torch.where(closer, position + columns.start, index[rows])
    difference = _float64(sample) - _float64(reference)[index]
    return difference.square().mean(dim=1).sqrt(), index


def _common_origin(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # A common offset cancels in every difference, but not in the squares, whose rounding it would set.
    a, b = _float64(a), _float64(b)
    origin = b.mean(dim=0)
    return a - origin, b - origin
