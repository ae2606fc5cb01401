"""The side of an evaluation that samples are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.data import ImageSource, open_images, stored_statistics
from adm.metrics._features import Statistics
from adm.metrics._rows import FeatureRows
from adm.runtime.errors import DataError

__all__ = ["Reference", "source_conditions"]


class Reference:
    """The other side: images, statistics, or a file with both."""

    def __init__(self, reference: str | Path | ImageSource) -> None:
        self.source: ImageSource | None = None
        self.stored: dict[str, np.ndarray] = {}
        self.rows: dict[str, FeatureRows] = {}
        if isinstance(reference, str | Path):
            self.name = Path(reference).name
            self.stored = (stored_statistics(reference) or {}) if Path(reference).is_file() else {}
            try:
                self.source = open_images(reference)
            except DataError:
                if not self.stored:
                    raise
        else:
            self.name, self.source = reference.name, reference

    def has_images(self) -> bool:
        return self.source is not None

    def images(self) -> ImageSource:
        assert self.source is not None
        return self.source

    def label(self) -> Tensor | None:
        labels = None if self.source is None else self.source.labels
        return None if labels is None else torch.as_tensor(labels, dtype=torch.int64)

    def stores(self, names: Sequence[str]) -> bool:
        return all(name in self.stored for name in names)

    def statistics(self, names: Sequence[str], extractor: str) -> Statistics:
        mean, cov = (torch.from_numpy(np.asarray(self.stored[name], np.float64)) for name in names)
        return Statistics(mean, cov, None, extractor)

    def conditions(self) -> dict[str, Any]:
        images = {} if self.source is None else source_conditions(self.source)
        return {"name": self.name, "stored_statistics": sorted(self.stored)} | images


def source_conditions(source: ImageSource) -> dict[str, Any]:
    """What is to be known of a set of images, as JSON."""
    return {
        "name": source.name,
        "num": source.num,
        "shape": list(source.shape),
        "sha256": source.sha256,
        "labels": source.labels is not None,
    } | dict(source.conditions)
