"""What an evaluation compares: samples or the reference, as images, statistics, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.data import ImageSource, NoImagesError, open_images, stored_statistics
from adm.metrics._extractor import Extractor
from adm.metrics._features import Statistics
from adm.metrics._rows import FeatureRows
from adm.runtime import files
from adm.runtime.errors import AdmError, DataError

__all__ = ["STORED", "Side", "source_conditions"]

STORED = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names under which a file keeps the statistics of each of Inception's taps."""


class Side:
    """Images, statistics, or a file with both; and its features, once they are extracted."""

    def __init__(self, images: str | Path | ImageSource) -> None:
        self.source: ImageSource | None = None
        self.stored: dict[str, np.ndarray] = {}
        self.rows: dict[str, FeatureRows] = {}
        self.stored_weights: str | None = None
        if isinstance(images, str | Path):
            self.name = Path(images).name
            self.stored = (stored_statistics(images) or {}) if Path(images).is_file() else {}
            if self.stored:
                self.stored_weights = _weights_of(Path(images))
            try:
                self.source = open_images(images)
            except NoImagesError:
                if not self.stored:
                    raise
        else:
            self.name, self.source = images.name, images

    def has_images(self) -> bool:
        return self.source is not None

    def images(self) -> ImageSource:
        assert self.source is not None
        return self.source

    def label(self) -> Tensor | None:
        labels = None if self.source is None else self.source.labels
        return None if labels is None else torch.as_tensor(labels, dtype=torch.int64)

    def stores(self, tap: str) -> bool:
        """Whether the file holds the statistics of this tap of Inception."""
        return tap in STORED and all(name in self.stored for name in STORED[tap])

    def statistics(self, tap: str, extractor: Extractor) -> Statistics:
        """The stored ones. Raises DataError where they are of another width than the extractor's features."""
        mean, cov = (torch.from_numpy(np.asarray(self.stored[name], np.float64)) for name in STORED[tap])
        width = getattr(extractor, "widths", {}).get(tap, len(mean))
        if len(mean) != width:
            raise DataError(
                f"{self.name} stores {STORED[tap][0]} of {len(mean)} numbers, {extractor.name} has {width}: "
                "its statistics are of something else. Give another file."
            )
        return Statistics(mean, cov, None, f"{extractor.name}.{tap}")

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


def _weights_of(path: Path) -> str | None:
    """The sha256 of the Inception weights with which `adm reference` made the statistics, as the JSON beside says."""
    try:
        said = files.read_json(path.with_suffix(".json"))
    except AdmError:
        return None
    statistics = said.get("statistics") if isinstance(said, dict) else None
    if not isinstance(statistics, dict) or said.get("sha256") != files.sha256_file(path):
        return None
    found = statistics.get("weights_sha256")
    return found if isinstance(found, str) else None
