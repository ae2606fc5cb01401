"""What a metric compares: rows of features, or their first two moments where those suffice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adm.runtime.errors import UsageError

if TYPE_CHECKING:
    from adm.metrics._extractor import Extractor

__all__ = ["Features", "Metric", "Statistics", "as_statistics", "named", "pixel_features", "require_same_extractor"]

BLOCK_ROWS = 4096
"""Rows that are centred and multiplied at a time: all that is ever held in float64."""


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
        # The extremes carry NaN and infinity with them, without a copy as large as the rows.
        if not torch.isfinite(torch.stack(torch.aminmax(self.values))).all():
            raise UsageError(f"{self.extractor} features contain NaN or infinity: look for broken images or weights")
        for name, column in (("label", self.label), ("predicted", self.predicted)):
            if column is not None and column.shape != (len(self),):
                raise UsageError(
                    f"{name} has shape {tuple(column.shape)}, the features {len(self)} rows: give one each"
                )

    def __len__(self) -> int:
        return self.values.shape[0]

    def without(self, rows: Tensor) -> Features:
        """All rows but those of the index, in their order."""
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[rows.cpu()] = False
        columns = [None if x is None else x[kept.to(x.device)] for x in (self.values, self.label, self.predicted)]
        assert columns[0] is not None
        return Features(columns[0], self.extractor, columns[1], columns[2])

    def statistics(self) -> Statistics:
        """Mean and covariance of the rows, in float64."""
        return Statistics.of(self.values, self.extractor)


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of n rows, float64; of fewer than two rows it is zero.

    ``n`` is None where a file tells the moments and not of how many rows; such statistics cannot be merged.
    Built block by block without keeping the rows: ``reduce(Statistics.merge, blocks)`` or
    ``Statistics.stream``.
    """

    mean: Tensor
    cov: Tensor
    n: int | None
    extractor: str

    @classmethod
    def of(cls, values: Tensor, extractor: str) -> Statistics:
        """Statistics of the rows of ``values`` (N, D), centred before they are squared."""
        return cls.stream(values.split(BLOCK_ROWS), extractor)

    @classmethod
    def stream(cls, blocks: Iterable[Tensor], extractor: str) -> Statistics:
        """Statistics of all rows of all blocks; only one block is held at a time."""
        total: Statistics | None = None
        for block in blocks:
            for rows in block.split(BLOCK_ROWS):
                part = cls._of_block(rows, extractor)
                total = part if total is None else total.merge(part)
        if total is None:
            raise UsageError(f"no {extractor} features to summarise: give at least one block")
        return total

    @classmethod
    def _of_block(cls, values: Tensor, extractor: str) -> Statistics:
        x = _float64(values)
        mean = x.mean(dim=0) if len(x) else x.new_zeros(x.shape[1])
        centred = x - mean
        return cls(mean, centred.T @ centred / max(len(x) - 1, 1), len(x), extractor)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of the rows of both (Chan, Golub & LeVeque 1979), to the last bits of float64."""
        require_same_extractor(self, other)
        num_self, num_other = self._count(), other._count()
        n = num_self + num_other
        if n == 0:
            return self
        shift = other.mean - self.mean
        scatter = self.cov * max(num_self - 1, 0) + other.cov * max(num_other - 1, 0)
        scatter = scatter + torch.outer(shift, shift) * (num_self * num_other / n)
        return Statistics(self.mean + shift * (num_other / n), scatter / max(n - 1, 1), n, self.extractor)

    def without(self, part: Statistics) -> Statistics:
        """Statistics of the other rows, ``part`` being of some of these: the inverse of ``merge``.

        Costs as many digits as the part is larger than the rest. Raises UsageError when nothing is left.
        """
        require_same_extractor(self, part)
        n, num_part = self._count(), part._count()
        rest = n - num_part
        if rest < 1:
            raise UsageError(f"{num_part} of {n} rows taken away leave none: take away fewer")
        shift = (part.mean - self.mean) * (n / rest)
        scatter = self.cov * max(n - 1, 0) - part.cov * max(num_part - 1, 0)
        scatter = scatter - torch.outer(shift, shift) * (num_part * rest / n)
        mean = self.mean - shift * (num_part / n)
        return Statistics(mean, scatter / max(rest - 1, 1), rest, self.extractor)

    def _count(self) -> int:
        if self.n is None:
            raise UsageError(
                f"stored {self.extractor} statistics do not say of how many rows they are: give the images themselves"
            )
        return self.n


class Metric(Protocol):
    """(sample, reference) -> {name: value}. A file of this room holds one, and is found by its name.

    ``tap``: which output of its extractor it reads; where the extractor has none of that name, its first.
    ``extractor``: None for Inception. ``accepts_statistics``: each side may be Statistics instead of Features.
    ``needs_reference``: without it the second side may be None.
    """

    @property
    def tap(self) -> str: ...
    @property
    def extractor(self) -> Extractor | None: ...
    @property
    def accepts_statistics(self) -> bool: ...
    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, sample: Any, reference: Any) -> Mapping[str, float]: ...


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


def named(scores: Mapping[str, float], extractor: Extractor | None) -> dict[str, float]:
    """The scores, their names ending in that of an extractor which was asked for."""
    return dict(scores) if extractor is None else {f"{key}_{extractor.name}": v for key, v in scores.items()}


def pixel_features(images: np.ndarray | Tensor) -> Features:
    """The pixels themselves as features, in grey levels 0..255. ``images``: uint8, (N, H, W, C)."""
    x = image_tensor(images)
    if x.ndim != 4 or x.dtype != torch.uint8:
        raise UsageError(f"pixels of shape {tuple(x.shape)} and {x.dtype}: give uint8 images (N, H, W, C)")
    return Features(x.reshape(len(x), -1).to(torch.float32), "pixels")


def image_tensor(images: np.ndarray | Tensor) -> Tensor:
    """Images as a tensor of its own: torch takes no arrays that are read-only, as data sets hand out, or reversed."""
    return images if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))


def _float64(values: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return (values.cpu() if values.device.type == "mps" else values).detach().to(torch.float64)
