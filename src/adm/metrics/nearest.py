"""Memorisation: how far the samples are from the images that the model was trained on."""

from __future__ import annotations

from adm.metrics._distances import nearest_neighbour
from adm.metrics._features import Features, require_same_extractor
from adm.runtime.errors import UsageError

__all__ = ["NearestDistance"]


class NearestDistance:
    """Distance of each sample to its nearest training image: ``reference`` is the training set.

    {"nearest_train_median": median, "nearest_train_p05": 5th percentile, "nearest_train_copies": share closer
    than ``copy_within``}. The distance is the root mean square difference, for ``pixel_features`` in grey
    levels (0..255). It says little alone: held-out real images measured the same way are the yardstick. A
    model that memorises lies clearly below them. The default of 8 grey levels suits the built-in digits,
    where no held-out one is closer than 10 to a training one.
    """

    def __init__(self, copy_within: float = 8.0, tile: int = 4096) -> None:
        if copy_within < 0 or tile < 1:
            raise UsageError(f"copy_within={copy_within}, tile={tile}: give a distance from 0 up and at least 1 row")
        self.copy_within = copy_within
        self.tile = tile

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_same_extractor(sample, reference)
        distance, _ = nearest_neighbour(sample.values, reference.values, self.tile)
        return {
            "nearest_train_median": float(distance.quantile(0.5)),
            "nearest_train_p05": float(distance.quantile(0.05)),
            "nearest_train_copies": float((distance <= self.copy_within).double().mean()),
        }
