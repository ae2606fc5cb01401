"""Improved precision and recall: fidelity and coverage as two numbers."""

from __future__ import annotations

from typing import Literal

from adm.metrics._balls import covered
from adm.metrics._distances import require_neighbours
from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, named
from adm.metrics._half_distances import covered_in_half, kth_neighbour_in_half
from adm.metrics._neighbours import kth_neighbour
from adm.runtime.errors import UsageError

__all__ = ["PrecisionRecall"]


class PrecisionRecall:
    """{"precision": share of samples on the references' manifold, "recall": of references on the samples'}.

    A manifold is the union of balls around its points, each as wide as the distance to the k-th nearest other
    point of the same set; a point on the rim is inside. Both numbers depend on k and on the two sizes, so compare
    only equal ones.

    ``precision``: "fp16" computes distances as OpenAI's evaluator does, in float16, with which published numbers
    are made; it lifts both numbers by a few thousandths, and features of other extractors may be too large for it.
    "fp32" multiplies in float32 and decides exactly: it equals the definition in float64. ``tile``: rows per
    matrix product, which bounds the memory; in fp32 it changes nothing, in fp16 nothing but the order of
    float32 sums. Raises UsageError when a side has no k other points. Source: Kynkaanniemi et al. 2019, Eqs. 1-2
    and Alg. 1.
    """

    tap = "pool"
    accepts_statistics = False
    needs_reference = True

    def __init__(
        self,
        k: int = 3,
        precision: Literal["fp16", "fp32"] = "fp16",
        tile: int = 1024,
        extractor: Extractor | None = None,
    ) -> None:
        if k < 1 or tile < 1:
            raise UsageError(f"k={k}, tile={tile}: both must be at least 1")
        if precision not in ("fp16", "fp32"):
            raise UsageError(f"precision={precision!r} is unknown: give fp16, as the original, or fp32")
        self.k = k
        self.precision = precision
        self.tile = tile
        self.extractor = extractor

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_neighbours(sample, reference, self.k)
        half = self.precision == "fp16"
        kth, cover = (kth_neighbour_in_half, covered_in_half) if half else (kth_neighbour, covered)
        # The reference comes first: in float16 the order of the sides matters.
        u, v = reference.values, sample.values
        on_sample, on_reference = cover(
            u, v, kth(u, self.k, self.tile), kth(v, self.k, self.tile).to(u.device), self.tile
        )
        scores = {"precision": float(on_reference.double().mean()), "recall": float(on_sample.double().mean())}
        return named(scores, self.extractor)
