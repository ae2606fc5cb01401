"""What a metric compares: rows of features, or their first two moments where those suffice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adm.runtime.errors import UsageError

__all__ = ["Features", "Metric", "Statistics", "as_statistics", "pixel_features", "require_same_extractor"]


@dataclass(frozen=True)
class Features:
    """One row of numbers per image, and which extractor they come from.

    ``values``: (N, D), floating. ``label``: (N,) int64, the class that each image was asked to show (or has).
    ``predicted``: (N,) int64, the class that the extractor's own head reads in it. The last two are optional.
    Raises UsageError for other shapes and for values that are not finite.
    """

    values: Tensor
    extractor: str
    label: Tensor | None = None
    predicted: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.is_floating_point() or 0 in self.values.shape:
            raise UsageError(
                f"features of shape {tuple(self.values.shape)} and {self.values.dtype} cannot be compared: "
                "give a floating (N, D) tensor with at least one row and one column"
            )
        if not torch.isfinite(self.values).all():
            raise UsageError(f"{self.extractor} features contain NaN or infinity: look for broken images or weights")
        for name, column in (("label", self.label), ("predicted", self.predicted)):
            if column is not None and column.shape != (len(self),):
                raise UsageError(
                    f"{name} has shape {tuple(column.shape)}, the features {len(self)} rows: give one each"
                )

    def __len__(self) -> int:
        return self.values.shape[0]

    def statistics(self) -> Statistics:
        """Mean and covariance of the rows, in float64."""
        return Statistics.of(self.values, self.extractor)


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of n rows, float64; of fewer than two rows it is zero.

    Built block by block without keeping the rows: ``reduce(Statistics.merge, blocks)`` or
    ``Statistics.stream``.
    """

    mean: Tensor
    cov: Tensor
    n: int
    extractor: str

    @classmethod
    def of(cls, values: Tensor, extractor: str) -> Statistics:
        """Statistics of the rows of ``values`` (N, D), centred before they are squared."""
        x = _float64(values)
        mean = x.mean(dim=0) if len(x) else x.new_zeros(x.shape[1])
        centred = x - mean
        return cls(mean, centred.T @ centred / max(len(x) - 1, 1), len(x), extractor)

    @classmethod
    def stream(cls, blocks: Iterable[Tensor], extractor: str) -> Statistics:
        """Statistics of all rows of all blocks; only one block is held at a time."""
        total: Statistics | None = None
        for block in blocks:
            part = cls.of(block, extractor)
            total = part if total is None else total.merge(part)
        if total is None:
            raise UsageError(f"no {extractor} features to summarise: give at least one block")
        return total

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the rows of both (Chan, Golub & LeVeque 1979), to the last bits of float64."""
        require_same_extractor(self, other)
        n = self.n + other.n
        if n == 0:
            return self
        shift = other.mean - self.mean
        scatter = self.cov * max(self.n - 1, 0) + other.cov * max(other.n - 1, 0)
        scatter = scatter + torch.outer(shift, shift) * (self.n * other.n / n)
        return Statistics(self.mean + shift * (other.n / n), scatter / max(n - 1, 1), n, self.extractor)


class Metric(Protocol):
    """(sample, reference) -> {name: value}. A file of this room holds one, and is found by its name."""

    def __call__(self, sample: Features, reference: Features) -> Mapping[str, float]: ...


def as_statistics(side: Features | Statistics) -> Statistics:
    """The side itself, or the statistics of its rows."""
    return side if isinstance(side, Statistics) else side.statistics()


def require_same_extractor(a: Features | Statistics, b: Features | Statistics) -> None:
    """UsageError unless both sides come from the same extractor and have as many columns."""
    if a.extractor != b.extractor:
        raise UsageError(
            f"features of {a.extractor!r} and {b.extractor!r} cannot be compared: use the same one for both"
        )
    dims = [side.values.shape[1] if isinstance(side, Features) else len(side.mean) for side in (a, b)]
    if dims[0] != dims[1]:
        raise UsageError(f"{a.extractor} features have {dims[0]} and {dims[1]} columns: compare images of one size")


def pixel_features(images: np.ndarray | Tensor) -> Features:
    """The pixels themselves as features, in grey levels 0..255. ``images``: uint8, (N, H, W, C)."""
    x = image_tensor(images)
    if x.ndim != 4 or x.dtype != torch.uint8:
        raise UsageError(f"pixels of shape {tuple(x.shape)} and {x.dtype}: give uint8 images (N, H, W, C)")
    return Features(x.reshape(len(x), -1).to(torch.float32), "pixels")


def image_tensor(images: np.ndarray | Tensor) -> Tensor:
    """Images as a tensor of its own: torch does not take arrays that are read-only, as data sets hand out."""
    return images if isinstance(images, Tensor) else torch.tensor(images)


def _float64(values: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (values.cpu() if values.device.type == "mps" else values).detach().to(torch.float64)
