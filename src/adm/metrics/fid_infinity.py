"""FID-infinity: what FID would be of infinitely many samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adm.metrics._features import BLOCK_ROWS, Features, Statistics, as_statistics
from adm.metrics._frechet import frechet_distance
from adm.runtime import randomness
from adm.runtime.errors import UsageError

__all__ = ["FIDInfinity"]


class FIDInfinity:
    """{"fid_infinity": FID extrapolated to infinitely many samples}, the reference as it is.

    FID of N samples exceeds its limit by about c / N, with c a matter of the model. It is measured at
    ``num_points`` evenly spaced N from ``smallest`` (half of all samples, if that is less) to all, each time of rows
    drawn anew, a function of ``seed``; the line through them over 1 / N is read at 0. As noisy as FID at the
    smallest N. Raises UsageError for fewer than 4 samples, or statistics in their place. Source: Chong & Forsyth
    2020, section 4.
    """

    tap = "pool"
    extractor = None
    accepts_statistics = True
    needs_reference = True

    def __init__(self, num_points: int = 15, smallest: int = 5000, seed: int = 0) -> None:
        if num_points < 2 or smallest < 2:
            raise UsageError(f"num_points={num_points}, smallest={smallest}: both must be at least 2")
        self.num_points = num_points
        self.smallest = smallest
        self.seed = seed

    def __call__(self, sample: Features | Statistics, reference: Features | Statistics) -> dict[str, float]:
        if isinstance(sample, Statistics) or len(sample) < 4:
            raise UsageError("FID-infinity takes subsets of the samples: give their features, of at least 4 images")
        there = as_statistics(reference)
        first = min(self.smallest, len(sample) // 2)
        num = torch.linspace(first, len(sample), self.num_points, dtype=torch.float64).round().long()
        fid = [frechet_distance(self._subset(sample, int(n), point), there) for point, n in enumerate(num)]
        x, y = 1 / num.double(), torch.tensor(fid, dtype=torch.float64)
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        return {"fid_infinity": float(y.mean() - slope * x.mean())}

    def leave_one_out(
        self, sample: Features, reference: Features | Statistics, blocks: Sequence[Tensor]
    ) -> list[dict[str, float]]:
        """The scores without the samples of each block (index tensors)."""
        there = as_statistics(reference)
        return [self(sample.without(block), there) for block in blocks]

    def _subset(self, sample: Features, n: int, point: int) -> Statistics:
        order = randomness.permutation(len(sample), seed=self.seed, stream="fid infinity", index=point)[:n]
        rows = order.to(sample.values.device).split(BLOCK_ROWS)
        return Statistics.stream((sample.values[some] for some in rows), sample.extractor)
