"""Memorisation: how far the samples are from the images that the model was trained on."""

from __future__ import annotations

from functools import cached_property

from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, named, require_same_extractor
from adm.metrics._nearest_report import NearestReport
from adm.metrics._neighbours import kth_neighbour, nearest, nearest_neighbour
from adm.runtime import lookup
from adm.runtime.errors import UsageError

__all__ = ["NearestDistance"]


class NearestDistance:
    """Distance of each sample to its nearest training image: ``reference`` is the training set.

    {"nearest_train_median": median, "nearest_train_p05": 5th percentile, "nearest_train_copies": share closer
    than ``copy_within``}. The distance is the root mean square difference, for pixels (which are compared unless
    another ``extractor`` is given) in grey levels (0..255). It says little alone: held-out real images measured the
    same way are the yardstick. A model that memorises lies clearly below them. The default of 8 grey levels suits the
    built-in digits, where no held-out one is closer than 10 to a training one.
    """

    tap = "features"
    accepts_statistics = False
    needs_reference = True

    def __init__(self, copy_within: float = 8.0, tile: int = 1024, extractor: Extractor | None = None) -> None:
        if not copy_within >= 0 or tile < 1:
            raise UsageError(f"copy_within={copy_within}, tile={tile}: give a distance from 0 up and at least 1 row")
        self.copy_within = copy_within
        self.tile = tile
        self._asked = extractor

    @cached_property
    def extractor(self) -> Extractor:
        """The one that was asked for, or pixels."""
        pixels: Extractor = lookup.find("metrics.extractors", "pixels")() if self._asked is None else self._asked
        return pixels

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_same_extractor(sample, reference)
        distance, _ = nearest_neighbour(sample.values, reference.values, self.tile)
        scores = {
            "nearest_train_median": float(distance.quantile(0.5)),
            "nearest_train_p05": float(distance.quantile(0.05)),
            "nearest_train_copies": float((distance <= self.copy_within).double().mean()),
        }
        return named(scores, self._asked)

    def report(
        self, sample: Features, reference: Features, held_out: Features | None = None, k: int = 3
    ) -> NearestReport:
        """The k nearest training images of each sample, beside the same distance of images that were not trained on.

        Without ``held_out`` the yardstick is each training image's distance to the nearest other one. Raises
        UsageError for features of other extractors or fewer than k training images.
        """
        for side in (sample, *([] if held_out is None else [held_out])):
            require_same_extractor(side, reference)
        if not 1 <= k <= len(reference) or len(reference) < 2:
            raise UsageError(f"{len(reference)} training images have no {k} nearest: give more of them, or a smaller k")
        distance, index = nearest(sample.values, reference.values, k, self.tile)
        if held_out is None:
            baseline = (kth_neighbour(reference.values, 1, self.tile) / reference.values.shape[1]).sqrt()
        else:
            baseline, _ = nearest_neighbour(held_out.values, reference.values, self.tile)
        return NearestReport(
            distance.cpu(), index.cpu(), baseline.cpu(), held_out is not None, self.copy_within, self.extractor.name
        )
