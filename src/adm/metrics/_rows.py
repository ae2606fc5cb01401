"""Features of a sequence of images, tap by tap, in the order of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from adm.metrics._extractor import Extractor
from adm.metrics._features import Features, image_tensor
from adm.runtime.errors import DataError

__all__ = ["FeatureRows"]


class FeatureRows:
    """The rows of some taps of one extractor, on the CPU, as many as images were added."""

    def __init__(self, extractor: Extractor, taps: Sequence[str]) -> None:
        self.extractor = extractor
        self.num = 0
        self._chunks: dict[str, list[Tensor]] = {tap: [] for tap in taps}

    @property
    def taps(self) -> list[str]:
        return list(self._chunks)

    def extract(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        """The wanted taps of uint8 images (n, H, W, C). Raises DataError for a value that is not finite."""
        found = self.extractor(image_tensor(images))
        rows = {tap: found[tap].detach().cpu() for tap in self._chunks}
        for tap, values in rows.items():
            if not bool(torch.isfinite(values).all()):
                raise DataError(
                    f"{self.extractor.name}: {tap} features of an image are NaN or infinite. Check the weights file."
                )
        return rows

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """The rows of the next images."""
        for tap, chunks in self._chunks.items():
            chunks.append(rows[tap])
        self.num += len(next(iter(rows.values())))

    def values(self, tap: str) -> Tensor:
        """(num, d); made one piece of, without ever holding two copies of all rows."""
        chunks = self._chunks[tap]
        if len(chunks) != 1:
            whole = torch.empty((self.num, chunks[0].shape[1]), dtype=chunks[0].dtype)
            start = 0
            while chunks:
                chunk = chunks.pop(0)
                whole[start : start + len(chunk)] = chunk
                start += len(chunk)
            chunks.append(whole)
        return chunks[0]

    def features(self, tap: str, label: Tensor | None) -> Features:
        """The rows as a side of a metric; the class with the largest logit is what the extractor reads."""
        values = self.values(tap)
        predicted = values.argmax(dim=1) if tap == "logits" else None
        return Features(values, f"{self.extractor.name}.{tap}", label=label, predicted=predicted)
