"""What is to be told, and drawn, of the training images that are nearest to the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["NearestReport"]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class NearestReport:
    """The nearest training images of N samples.

    ``distance`` (N, k), float64, ascending, root mean square differences in the unit of the features; ``index``
    (N, k), int64: which training images. ``baseline`` (M,): the same distance to the nearest one for real images,
    ``held_out`` ones or else the training images among themselves. ``copy_within``: below it a sample counts as a copy.
    ``extractor``: in whose features.
    """

    distance: Tensor
    index: Tensor
    baseline: Tensor
    held_out: bool
    copy_within: float
    extractor: str = "pixels"

    def quantiles(self, at: Sequence[float] = QUANTILES) -> dict[str, dict[str, float]]:
        """{"p05": {"sample": ..., "real": ..., "ratio": ...}, ...}: a ratio well below 1 is what memorising looks like.

        The ratio is 1 where both are 0 and infinite where only the real images' is.
        """
        table = {}
        for q in at:
            sample, real = float(self.distance[:, 0].quantile(q)), float(self.baseline.quantile(q))
            ratio = sample / real if real > 0 else (1.0 if sample == 0 else float("inf"))
            table[f"p{100 * q:02g}"] = {"sample": sample, "real": real, "ratio": ratio}
        return table

    def copies(self) -> Tensor:
        """The samples that are as near as ``copy_within`` to a training image, the nearest first: indices."""
        order = self.closest(len(self.distance))
        return order[self.distance[order, 0] <= self.copy_within]

    def closest(self, num: int) -> Tensor:
        """The ``num`` samples nearest to a training image, the nearest first: indices (num,)."""
        return self.distance[:, 0].argsort(stable=True)[:num]
