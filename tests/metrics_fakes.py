"""Stand-ins for what an evaluation is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class Projection:
    """An extractor like Inception in its taps: fixed random projections of the pixels."""

    taps = ("pool", "spatial", "logits")

    def __init__(
        self, name: str = "projection", spoilt: Callable[[Tensor], Tensor] = lambda rows: rows, side: int = 4
    ) -> None:
        self.name, self.spoilt = name, spoilt
        self.conditions: dict[str, object] = {"weights_sha256": name}
        self.num_images = 0
        mix = np.random.default_rng(0)
        self.mix = {
            tap: torch.from_numpy(mix.standard_normal((3 * side * side, d)) / 400)
            for tap, d in zip(self.taps, (6, 5, 9), strict=True)
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.num_images += len(images)
        pixels = images.reshape(len(images), -1).double()
        return {tap: self.spoilt(pixels @ mix).float() for tap, mix in self.mix.items()}
