"""FID: the Frechet distance in Inception's pooled features."""

from __future__ import annotations

from adm.metrics._features import Features, Statistics, as_statistics
from adm.metrics._frechet import frechet_distance

__all__ = ["FID"]


class FID:
    """{"fid": Frechet distance of the two sides in the 2048 pooled features of the 2015 Inception}; less is better.

    Each side Features or Statistics. It falls as the number of images grows, by several units from 10,000 to
    50,000: compare equal numbers, and the same reference. Source: Heusel et al. 2017, Eq. 6.
    """

    tap = "pool"
    extractor = None
    accepts_statistics = True
    needs_reference = True

    def __call__(self, sample: Features | Statistics, reference: Features | Statistics) -> dict[str, float]:
        return {"fid": frechet_distance(as_statistics(sample), as_statistics(reference))}
