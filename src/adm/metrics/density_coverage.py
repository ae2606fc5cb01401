"""Density and coverage: fidelity and diversity that one outlier does not decide."""

from __future__ import annotations

from adm.metrics._balls import num_balls
from adm.metrics._distances import require_neighbours
from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, named
from adm.metrics._neighbours import kth_neighbour
from adm.runtime.errors import UsageError

__all__ = ["DensityCoverage"]


class DensityCoverage:
    """{"density": in how many balls of the reference a sample lies, over k, "coverage": share of balls that hold one}.

    A ball around each reference point is as wide as the distance to its k-th nearest other one; its rim is outside, as
    the authors' program has it (and unlike precision and recall). Density may pass 1; both are near 1 for equal
    distributions, coverage as 1 - 2^-k. Decided as in float64; ``tile``: rows per matrix product, which changes
    nothing. Raises UsageError when a side has no k other points. Source: Naeem et al. 2020, Eqs. 3-4 and 7.
    """

    tap = "pool"
    accepts_statistics = False
    needs_reference = True

    def __init__(self, k: int = 5, tile: int = 1024, extractor: Extractor | None = None) -> None:
        if k < 1 or tile < 1:
            raise UsageError(f"k={k}, tile={tile}: both must be at least 1")
        self.k = k
        self.tile = tile
        self.extractor = extractor

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_neighbours(sample, reference, self.k)
        radius = kth_neighbour(reference.values, self.k, self.tile)
        density = num_balls(sample.values, reference.values, radius, self.tile).double().mean() / self.k
        nearest = kth_neighbour(reference.values, 1, self.tile, among=sample.values)
        coverage = (nearest < radius).double().mean()
        return named({"density": float(density), "coverage": float(coverage)}, self.extractor)
