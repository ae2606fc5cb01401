"""All pairs of rows of two sets: their products fast in float32, with a bound on the rounding, and exactly.

|u - v|^2 = |u|^2 - 2 u.v + |v|^2 makes the distances of a tile one matrix product. What lies clear of a decision by
more than the rounding is decided there; the few other rows are looked at again in float64, and pairs that even that
cannot tell apart are computed by themselves, as the sum of squared differences. So every decision is that of this
sum, and tiles, threads and devices change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.metrics._extractor import exact_float32
from adm.metrics._features import Features, _float64, require_same_extractor
from adm.runtime.errors import UsageError

__all__ = ["Pairs", "require_neighbours", "slices", "squared_distances"]

DEPTH = 2048
"""Columns that one float32 product sums; longer rows are summed piece by piece, which keeps the bound small."""
ELEMENTS = 2**22
"""Numbers of float64 that one step of an exact computation holds."""


def require_neighbours(sample: Features, reference: Features, k: int) -> None:
    """UsageError unless the two sides can be compared and each row has k others on its side."""
    require_same_extractor(sample, reference)
    for side in (sample, reference):
        if len(side) <= k:
            raise UsageError(f"{len(side)} images have no {k} neighbours each: give more, or a smaller k")


def squared_distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|a[i] - b[j]|^2 of the pairs (i, j), each summed by itself in float64; exactly 0 for a copy."""
    out = torch.empty(len(i), dtype=torch.float64, device=i.device)
    rows = max(2, ELEMENTS // a.shape[1])
    for start in range(0, len(i), rows):
        piece = slice(start, start + rows)
        difference = _float64(a[i[piece].to(a.device)]) - _float64(b[j[piece].to(b.device)])
        if len(difference) == 1:  # the sum of a single row might be split among threads, and round differently
            difference = difference.repeat(2, 1)
        out[piece] = difference.square_().sum(1)[: len(i[piece])]
    return out


def slices(n: int, size: int) -> Iterator[slice]:
    """range(n) in pieces of ``size``, the last one short."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass(frozen=True)
class Pairs:
    """The pairs of rows of ``a`` (N, D) and ``b`` (M, D), about a common origin and scaled by a power of two.

    ``a32``, ``b32``: these rows in float32. ``norm_a`` (N,), ``norm_b`` (M,): squared norms, at most 1, float64.
    ``unit``: the squared distance 1, in the features. What is in float64 is on the device of the rows, or on the
    CPU where that has no float64.
    """

    a: Tensor
    b: Tensor
    a32: Tensor
    b32: Tensor
    norm_a: Tensor
    norm_b: Tensor
    origin: Tensor
    scale: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Pairs:
        # A common offset cancels in every difference, but not in the squares, whose rounding it would set.
        same, b = a is b, b.to(a.device)
        origin = _origin(b)
        largest = max(_largest(x, origin) for x in (a, b)) * a.shape[1] ** 0.5
        scale = 2.0 ** -math.frexp(largest)[1]
        b32, norm_b = _prepared(b, origin, scale)
        a32, norm_a = (b32, norm_b) if same else _prepared(a, origin, scale)
        return cls(a, b, a32, b32, norm_a, norm_b, origin, scale)

    @property
    def unit(self) -> float:
        return self.scale**-2

    def slack(self, dtype: torch.dtype, norm: Tensor, largest: float) -> Tensor:
        """By how much u.v - (|v|^2 - r) / 2 may be off |u|^2 / 2 in rounding: (N,) float64.

        ``norm``: |u|^2 of the rows; ``largest``: of all |v|^2 and r. Each sum of n terms, in whatever order, is
        within n eps of the sum of their magnitudes (Higham 2002, section 3.5); to that come the rounding of the
        rows to float32 and of the operations, and in float64 that of the norms and direct sums.
        """
        dim = self.a.shape[1]
        terms = min(dim, DEPTH) + dim / DEPTH if dtype == torch.float32 else 8.0 * dim
        relative = 1.05 * (terms + 32) * torch.finfo(dtype).eps / 2
        return relative * norm.clamp(min=largest)

    def product(self, rows: slice, columns: slice) -> Tensor:
        """a[rows] b[columns]^T in float32."""
        u, v = self.a32[rows], self.b32[columns]
        total = u[:, :DEPTH] @ v[:, :DEPTH].T
        for start in range(DEPTH, u.shape[1], DEPTH):
            total.addmm_(u[:, start : start + DEPTH], v[:, start : start + DEPTH].T)
        return total

    def tiles(self, tile: int, upper: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows of a, rows of b, product) over all pairs; ``upper``: only tiles on or above the diagonal."""
        with exact_float32():
            for rows in slices(len(self.a), tile):
                for columns in slices(len(self.b), tile):
                    if columns.start >= rows.start or not upper:
                        yield rows, columns, self.product(rows, columns)

    def in_float64(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, a[rows] b^T) for the rows of a in ``index`` (n,), some at a time, (n, M) float64."""
        width = max(self.b.shape)
        for some in index.split(max(1, 2 * ELEMENTS // width)) if len(index) else ():
            u = self._centred(self.a[some.to(self.a.device)])
            parts = [u @ self._centred(v).T for v in self.b.split(max(1, ELEMENTS // self.b.shape[1]))]
            yield some, torch.cat(parts, dim=1)

    def _centred(self, x: Tensor) -> Tensor:
        return (_float64(x) - self.origin) * self.scale


def _origin(x: Tensor, num: int = 1024) -> Tensor:
    """About the middle of the rows; any point would do, and the nearer the middle, the smaller the rounding."""
    return _float64(x[:: -(-len(x) // num)]).mean(dim=0)


def _largest(x: Tensor, origin: Tensor) -> float:
    """The largest difference of a coordinate."""
    return max(float((_float64(extreme) - origin).abs().max()) for extreme in (x.amin(dim=0), x.amax(dim=0)))


def _prepared(x: Tensor, origin: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rounded = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    norm = torch.empty(len(x), dtype=torch.float64, device=origin.device)
    for rows in slices(len(x), _piece(x)):
        centred = (_float64(x[rows]) - origin) * scale
        rounded[rows] = centred.to(rounded)
        norm[rows] = centred.square_().sum(1)
    return rounded, norm


def _piece(x: Tensor) -> int:
    return max(1, ELEMENTS // x.shape[1])
