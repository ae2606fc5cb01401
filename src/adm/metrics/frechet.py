"""Frechet distance in whatever features are given, and named after them."""

from __future__ import annotations

from adm.metrics._features import Features, Statistics, as_statistics
from adm.metrics._frechet import frechet_distance

__all__ = ["FrechetDistance"]


class FrechetDistance:
    """{"fd_<extractor>": the Frechet distance of the two sides}; smaller is better.

    Each side Features or Statistics. It is "FID" only in the features of the 2015 Inception network, which
    this is not: numbers in other features, or of other numbers of images, are not comparable with published
    ones.
    """

    def __call__(self, sample: Features | Statistics, reference: Features | Statistics) -> dict[str, float]:
        distance = frechet_distance(as_statistics(sample), as_statistics(reference))
        return {f"fd_{sample.extractor}": distance}
