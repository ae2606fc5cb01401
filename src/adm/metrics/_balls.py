"""Which rows of one set lie in balls around the rows of another, decided as a direct sum in float64 decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from adm.metrics._distances import Pairs, squared_distances

__all__ = ["covered", "num_balls"]


def covered(a: Tensor, b: Tensor, radius_a: Tensor, radius_b: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Which rows of ``a`` (N, D) lie in or on a ball of b, and which rows of ``b`` (M, D) in or on one of a.

    ``radius_a`` (N,), ``radius_b`` (M,): squared, float64. Returns bool (N,) and (M,).
    """
    pairs = Pairs.of(a, b)
    # u lies in the ball of v when depth = u.v - (|v|^2 - r) / 2 reaches |u|^2 / 2; the deepest v decides.
    half_a, half_b = (_half(n, r, pairs) for n, r in ((pairs.norm_a, radius_a), (pairs.norm_b, radius_b)))
    deepest_a, deepest_b = (torch.full_like(half, -torch.inf) for half in (half_a, half_b))
    for rows, columns, product in pairs.tiles(tile):
        depth = (product - half_b[columns]).amax(1)
        deepest_a[rows] = torch.maximum(deepest_a[rows], depth)
        depth = product.sub_(half_a[rows, None]).amax(0)
        deepest_b[columns] = torch.maximum(deepest_b[columns], depth)
    return _decided(pairs, deepest_a, radius_b), _decided(_turned(pairs), deepest_b, radius_a)


def num_balls(a: Tensor, b: Tensor, radius_b: Tensor, tile: int) -> Tensor:
    """In how many balls of ``b``, their rims left out, each row of ``a`` lies: (N,) int64."""
    b, radius_b = b[radius_b.to(b.device) > 0], radius_b[radius_b > 0]
    count = torch.zeros(len(a), dtype=torch.int64, device=radius_b.device)
    if len(b) == 0:
        return count
    pairs = Pairs.of(a, b)
    half_b = _half(pairs.norm_b, radius_b, pairs)
    slack = _slack(pairs, radius_b, torch.float32)
    low, high = ((pairs.norm_a / 2 + sign * slack).to(half_b)[:, None] for sign in (-1, 1))
    possible = torch.zeros_like(count)
    for rows, columns, product in pairs.tiles(tile):
        depth = product.sub_(half_b[columns])
        count[rows] += (depth > high[rows]).sum(1).to(count.device)
        possible[rows] += (depth >= low[rows]).sum(1).to(count.device)
    for again, depth, margin in _again(pairs, radius_b, count != possible):
        row, column = (depth.abs() <= margin).nonzero(as_tuple=True)
        inside = squared_distances(a, b, again[row], column) < radius_b[column]
        count[again] = (depth > margin).sum(1).index_add(0, row, inside.long())
    return count


def _decided(pairs: Pairs, deepest: Tensor, radius_b: Tensor) -> Tensor:
    """Which rows of a lie in a ball of b: those whose depth in float32 does not tell are looked at again."""
    deepest = deepest.double().to(pairs.norm_a.device)
    clear = deepest - pairs.norm_a / 2
    slack = _slack(pairs, radius_b, torch.float32)
    inside = clear > slack
    for rows, depth, margin in _again(pairs, radius_b, clear.abs() <= slack):
        deepest_column = depth.argmax(1)
        sure = (depth.amax(1, keepdim=True) > margin)[:, 0]
        # Among many copies the first is answer enough.
        sure |= squared_distances(pairs.a, pairs.b, rows, deepest_column) <= radius_b[deepest_column]
        row, column = ((depth.abs() <= margin) & ~sure[:, None]).nonzero(as_tuple=True)
        on_rim = squared_distances(pairs.a, pairs.b, rows[row], column) <= radius_b[column]
        sure[row[on_rim]] = True
        inside[rows] = sure
    return inside


def _again(pairs: Pairs, radius_b: Tensor, which: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, depth below the rim of each ball of b, its rounding) in float64, for some of the rows at a time."""
    margin = _slack(pairs, radius_b, torch.float64)
    half_b = (pairs.norm_b - radius_b / pairs.unit) / 2
    for rows, product in pairs.in_float64(which.nonzero()[:, 0]):
        yield rows, product - half_b - pairs.norm_a[rows, None] / 2, margin[rows, None]


def _half(norm: Tensor, radius: Tensor, pairs: Pairs) -> Tensor:
    return ((norm - radius / pairs.unit) / 2).to(pairs.a32)


def _slack(pairs: Pairs, radius_b: Tensor, dtype: torch.dtype) -> Tensor:
    largest = max(float(pairs.norm_b.max()), float(radius_b.max()) / pairs.unit)
    return pairs.slack(dtype, pairs.norm_a, largest)


def _turned(pairs: Pairs) -> Pairs:
    """The same with the sides exchanged."""
    return replace(pairs, a=pairs.b, b=pairs.a, a32=pairs.b32, b32=pairs.a32, norm_a=pairs.norm_b, norm_b=pairs.norm_a)
