"""sFID: the Frechet distance in features of Inception that still know where in the image they are."""

from __future__ import annotations

from adm.metrics._features import Features, Statistics, as_statistics
from adm.metrics._frechet import frechet_distance

__all__ = ["SpatialFID"]


class SpatialFID:
    """{"sfid": Frechet distance of the two sides in 7 channels of the 17 x 17 map of Inception}; less is better.

    Each side Features or Statistics of 2023 columns: row by row of the map, the channels of a place together. What was
    flattened in another order cannot be compared. Source: Nash et al. 2021; the map and the order are those of OpenAI's
    evaluator.
    """

    tap = "spatial"
    extractor = None
    accepts_statistics = True
    needs_reference = True

    def __call__(self, sample: Features | Statistics, reference: Features | Statistics) -> dict[str, float]:
        return {"sfid": frechet_distance(as_statistics(sample), as_statistics(reference))}
