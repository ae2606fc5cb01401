"""Squared distances as OpenAI's evaluator computes them: in float16, whose coarse grid its precision and recall show.

Rows and squares are rounded to float16, sums taken in float32 and rounded, and the distance is
``(|u|^2 - 2 u.v) + |v|^2`` in float16, operation by operation: near 500 it is a multiple of 0.5. A block of
10,000 x 10,000 pairs with a distance that is not finite is computed in float32 instead, as a whole. Where squared norms
lie between about 33,000 and 65,000, 2 u.v overflows and yields distance 0, which is finite: the original is silently
wrong there, and so is this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adm.metrics._distances import slices
from adm.metrics._extractor import exact_float32

__all__ = ["covered_in_half", "kth_neighbour_in_half"]

BLOCK = 10_000
LARGEST = 65_504.0


def kth_neighbour_in_half(x: Tensor, k: int, tile: int) -> Tensor:
    """Squared distance of each row of ``x`` (N, D) to its k-th nearest other row: (N,), float32.

    As in the original it is the (k + 1)-th smallest of all distances, the one of the row to itself included.
    """
    best = torch.full((len(x), k + 1), torch.inf, dtype=torch.float32, device=x.device)
    for rows, _, distance in half_distances(x, x, tile):
        value = distance.topk(min(k + 1, distance.shape[1]), dim=1, largest=False).values.float()
        best[rows] = torch.cat([best[rows], value], dim=1).topk(k + 1, dim=1, largest=False).values
    return best.amax(1).clamp_(min=0)


def covered_in_half(a: Tensor, b: Tensor, radius_a: Tensor, radius_b: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Which rows of ``a`` (N, D) lie in or on a ball of b, and which rows of ``b`` (M, D) in or on one of a.

    ``radius_a`` (N,), ``radius_b`` (M,): squared, float32. Returns bool (N,) and (M,).
    """
    beyond_b = torch.full((len(a),), torch.inf, device=a.device)
    beyond_a = torch.full((len(b),), torch.inf, device=a.device)
    # A radius out of a block in float32 lies between two numbers of float16: then it must not be rounded.
    on_grid = all(torch.equal(r.half().float(), r) for r in (radius_a, radius_b))
    for rows, columns, distance in half_distances(a, b.to(a.device), tile):
        d = distance if on_grid else distance.float()
        # A rounded difference has the sign of the difference, and is 0 for equals only.
        beyond = (d - radius_b[columns].to(d.dtype)).amin(1)
        beyond_b[rows] = torch.minimum(beyond_b[rows], beyond.float())
        beyond = d.sub_(radius_a[rows, None].to(d.dtype)).amin(0)
        beyond_a[columns] = torch.minimum(beyond_a[columns], beyond.float())
    return beyond_b <= 0, beyond_a <= 0


def half_distances(a: Tensor, b: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles (rows of a, rows of b, distances), in no promised order; negative where 0 is meant.

    float16, or float32 in blocks that overflow.
    """
    half_a = a.to(torch.float32).half()
    half_b = half_a if a is b else b.to(torch.float32).half()
    norm_a, norm_b = ((x * x).sum(1, dtype=torch.float32).half() for x in (half_a, half_b))
    with exact_float32():
        if _safe(norm_a, norm_b):
            yield from _half_tiles(half_a, half_b, norm_a, norm_b, tile)
            return
        for block_a in slices(len(a), BLOCK):
            for block_b in slices(len(b), BLOCK):
                sides = half_a[block_a], half_b[block_b], norm_a[block_a], norm_b[block_b]
                if all(_finite(distance) for _, _, distance in _half_tiles(*sides, tile)):
                    found = _half_tiles(*sides, tile)
                else:
                    found = _float_tiles(a[block_a].float(), b[block_b].float(), tile)
                for rows, columns, distance in found:
                    yield _moved(rows, block_a), _moved(columns, block_b), distance


def _half_tiles(
    a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor, tile: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    for columns in slices(len(b), tile):
        twice = 2 * b[columns].float()  # exact, and so is every product: only their sum is rounded
        for rows in slices(len(a), tile):
            if a is b and rows.start < columns.start:
                continue
            product = (a[rows].float() @ twice.T).half()
            if a is b and rows != columns:
                yield columns, rows, (norm_a[columns, None] - product.T).add_(norm_b[rows])
            yield rows, columns, (norm_a[rows, None] - product).add_(norm_b[columns])


def _float_tiles(a: Tensor, b: Tensor, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    norm_a, norm_b = a.square().sum(1), b.square().sum(1)
    for columns in slices(len(b), tile):
        for rows in slices(len(a), tile):
            product = a[rows] @ b[columns].T
            yield rows, columns, (norm_a[rows, None] - 2 * product).add_(norm_b[columns])


def _safe(norm_a: Tensor, norm_b: Tensor) -> bool:
    """Whether no pair can overflow: |u|^2 + 2 |u| |v| + |v|^2 stays below the largest float16."""
    u, v = (math.sqrt(float(norm.max())) for norm in (norm_a, norm_b))
    return (u + v) ** 2 < 0.9 * LARGEST


def _finite(distance: Tensor) -> bool:
    # Only -inf becomes a distance, of 0: the clamp comes before the check.
    return bool(torch.isfinite(distance.clamp(min=0)).all())


def _moved(part: slice, whole: slice) -> slice:
    return slice(part.start + whole.start, part.stop + whole.start)
