"""The nearest rows of another set, or of the same one: exact distances and indices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.metrics._distances import Pairs, squared_distances

__all__ = ["kth_neighbour", "nearest", "nearest_neighbour"]

SPARE = 3
"""Candidates kept beyond k, so that a row seldom has to be looked at again."""


def kth_neighbour(x: Tensor, k: int, tile: int = 1024, among: Tensor | None = None) -> Tensor:
    """Squared distance of each row of ``x`` (N, D) to its k-th nearest other row, or row of ``among``: (N,) float64."""
    pairs = Pairs.of(x, x if among is None else among)
    return _candidates(pairs, k, tile, exclude_self=among is None).kth_distance(k)


def nearest(sample: Tensor, reference: Tensor, k: int = 1, tile: int = 1024) -> tuple[Tensor, Tensor]:
    """The k reference rows nearest to each sample: distances (N, k), float64, ascending, and indices, int64.

    The distance is the root mean square difference, in the unit of the features; of equally distant rows the
    first comes first.
    """
    squares, index = _candidates(Pairs.of(sample, reference), k, tile, exclude_self=False).nearest(k)
    return (squares / sample.shape[1]).sqrt(), index


def nearest_neighbour(sample: Tensor, reference: Tensor, tile: int = 1024) -> tuple[Tensor, Tensor]:
    """Root mean square difference of each sample to its nearest reference row, and that row's index.

    ``sample`` (N, D), ``reference`` (M, D) -> distances (N,) float64 in the unit of the features, indices
    (N,) int64. Exactly 0 for a copy.
    """
    distance, index = nearest(sample, reference, 1, tile)
    return distance[:, 0], index[:, 0]


@dataclass(frozen=True)
class Candidates:
    """For each row of a the best rows of b by the height |v|^2 / 2 - u.v, ascending: (N, count) each."""

    pairs: Pairs
    height: Tensor
    index: Tensor
    exclude_self: bool

    def kth_distance(self, k: int) -> Tensor:
        """Squared distance to the k-th nearest, (N,) float64; of the candidates only those that might be it count."""
        kth, slack = self.height[:, k - 1 : k], 2 * self._slack(torch.float32)[:, None]
        nearer, farther = self.height < kth - slack, self.height > kth + slack
        distance = torch.full_like(self.height, torch.inf).masked_fill(nearer, -torch.inf)
        row, column = (~nearer & ~farther).nonzero(as_tuple=True)
        distance[row, column] = squared_distances(self.pairs.a, self.pairs.b, row, self.index[row, column])
        radius = distance.sort(dim=1).values[:, k - 1].contiguous()
        # Nothing that was left out can be nearer than 0.
        for i, _, squares in self._others(k, self._unsettled(k) & (radius > 0)):
            radius[i] = squares.sort().values[k - 1]
        return radius

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances (N, k), ascending, and indices, the lower one first among equals."""
        n, count = self.index.shape
        row = torch.arange(n, device=self.index.device).repeat_interleave(count)
        squares = squared_distances(self.pairs.a, self.pairs.b, row, self.index.reshape(-1)).view(n, count)
        squares, index = _ascending(squares, self.index)
        squares, index = squares[:, :k].contiguous(), index[:, :k].contiguous()
        for i, others, its_squares in self._others(k, self._unsettled(k)):
            one, its = _ascending(its_squares[None], others[None])
            squares[i], index[i] = one[0, :k], its[0, :k]
        return squares, index

    def _unsettled(self, k: int) -> Tensor:
        """Rows whose k-th nearest may have been left out: the last one kept is no clear farther than the k-th."""
        available = len(self.pairs.b) - self.exclude_self
        if self.height.shape[1] == available:
            return torch.zeros(len(self.height), dtype=torch.bool, device=self.height.device)
        return self.height[:, -1] <= self.height[:, k - 1] + 2 * self._slack(torch.float32)

    def _others(self, k: int, which: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(row, rows of b that may be among its k nearest by float64, their squared distances)."""
        slack = 2 * self._slack(torch.float64)
        for rows, product in self.pairs.in_float64(which.nonzero()[:, 0]):
            height = self.pairs.norm_b / 2 - product
            if self.exclude_self:
                height.scatter_(1, rows[:, None], torch.inf)
            kth = height.topk(k, dim=1, largest=False).values.amax(1)
            possible = height <= (kth + slack[rows])[:, None]
            for i, mask in zip(rows.tolist(), possible, strict=True):
                others = mask.nonzero()[:, 0]
                row = torch.full_like(others, i)
                yield i, others, squared_distances(self.pairs.a, self.pairs.b, row, others)

    def _slack(self, dtype: torch.dtype) -> Tensor:
        return self.pairs.slack(dtype, self.pairs.norm_a, float(self.pairs.norm_b.max()))


def _candidates(pairs: Pairs, k: int, tile: int, exclude_self: bool) -> Candidates:
    """The k nearest and some more, nearness as float32 has it."""
    n, count = len(pairs.a), min(k + SPARE, len(pairs.b) - exclude_self)
    height = torch.full((n, count), torch.inf, dtype=torch.float32, device=pairs.a.device)
    index = torch.zeros((n, count), dtype=torch.int64, device=pairs.a.device)
    half_norm = (pairs.norm_b / 2).to(height)

    def keep(rows: slice, columns: slice, product: Tensor) -> None:
        heights = half_norm[columns] - product
        value, place = heights.topk(min(count, heights.shape[1]), dim=1, largest=False)
        value, place = torch.cat([height[rows], value], 1), torch.cat([index[rows], place + columns.start], 1)
        best = value.topk(count, dim=1, largest=False)
        height[rows], index[rows] = best.values, place.gather(1, best.indices)

    symmetric = pairs.a32 is pairs.b32
    for rows, columns, product in pairs.tiles(tile, upper=symmetric):
        if exclude_self and rows == columns:
            product.fill_diagonal_(-torch.inf)
        keep(rows, columns, product)
        if symmetric and rows != columns:
            keep(columns, rows, product.T)
    device = pairs.norm_a.device
    return Candidates(pairs, height.double().to(device), index.to(device), exclude_self)


def _ascending(squares: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    by_index = index.argsort(dim=1)
    order = squares.gather(1, by_index).argsort(dim=1, stable=True)
    order = by_index.gather(1, order)
    return squares.gather(1, order), index.gather(1, order)
