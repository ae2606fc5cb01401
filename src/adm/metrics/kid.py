"""KID: the squared maximum mean discrepancy, unbiased, in Inception's pooled features."""

from __future__ import annotations

import torch
from torch import Tensor

from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, _float64, named, require_same_extractor
from adm.runtime import randomness
from adm.runtime.errors import UsageError

__all__ = ["KID"]


class KID:
    """{"kid": mean over subsets of the unbiased MMD^2 under the kernel (x.y / D + 1)^3, "kid_std": their spread}.

    Sets that are no larger than a subset are compared whole, and have no spread.

    Its expectation does not depend on the number of images, so it serves where there are too few for FID, and around
    0 it may be negative. ``num_subsets`` subsets of ``subset_size`` rows are drawn from each side without
    replacement, a function of ``seed``; of a side with fewer rows all are taken. In float64. Raises UsageError for
    fewer than two images a side. Source: Binkowski et al. 2018, section 4 and Eq. 4 of its appendix on MMD.
    """

    tap = "pool"
    accepts_statistics = False
    needs_reference = True

    def __init__(
        self, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0, extractor: Extractor | None = None
    ) -> None:
        if num_subsets < 1 or subset_size < 2:
            raise UsageError(f"num_subsets={num_subsets}, subset_size={subset_size}: give at least 1 and 2")
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.seed = seed
        self.extractor = extractor

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_same_extractor(sample, reference)
        if min(len(sample), len(reference)) < 2:
            raise UsageError("KID compares pairs of images on each side: give at least 2 a side")
        whole = max(len(sample), len(reference)) <= self.subset_size
        distances = torch.tensor(
            [
                unbiased_mmd(self._subset(sample, "sample", i), self._subset(reference, "reference", i))
                for i in range(1 if whole else self.num_subsets)
            ],
            dtype=torch.float64,
        )
        scores = {"kid": float(distances.mean())}
        if len(distances) > 1:
            scores["kid_std"] = float(distances.std(correction=0))
        return named(scores, self.extractor)

    def _subset(self, side: Features, stream: str, index: int) -> Tensor:
        n = len(side)
        if n <= self.subset_size:
            return _float64(side.values)
        order = randomness.permutation(n, seed=self.seed, stream=f"kid: {stream}", index=index)
        return _float64(side.values[order[: self.subset_size].to(side.values.device)])


def unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """MMD^2 of rows x (m, D) and y (n, D): a row is not compared with itself."""
    y = y.to(x.device)
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y))]
    return float(within[0] + within[1] - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
