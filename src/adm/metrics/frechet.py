"""Frechet distance in whatever features are given, and named after them."""

from __future__ import annotations

from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, Statistics, as_statistics
from adm.metrics._frechet import frechet_distance

__all__ = ["FrechetDistance"]


class FrechetDistance:
    """{"fd_<extractor>": the Frechet distance of the two sides}; smaller is better.

    Each side Features or Statistics. It is "FID" only in the features of the 2015 Inception network, which
    `FID` is for: numbers in other features, or of other numbers of images, are not comparable with published
    ones. ``extractor``: whose main output is to be compared.
    """

    tap = "pool"
    accepts_statistics = True
    needs_reference = True

    def __init__(self, extractor: Extractor | None = None) -> None:
        self.extractor = extractor

    def __call__(self, sample: Features | Statistics, reference: Features | Statistics) -> dict[str, float]:
        name = sample.extractor if self.extractor is None else self.extractor.name
        return {f"fd_{name}": frechet_distance(as_statistics(sample), as_statistics(reference))}
