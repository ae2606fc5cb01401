"""The pixels themselves as features."""

from __future__ import annotations

import torch
from torch import Tensor

from adm.metrics._extractor import as_device, checked_images

__all__ = ["PixelExtractor"]


class PixelExtractor:
    """uint8 images -> {"features": (n, H * W * C)}, the grey levels 0..255 in float32; sizes must be equal."""

    taps = ("features",)

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self.device = as_device(device)
        self.name = "pixels"
        self.conditions: dict[str, object] = {"preprocessing": "grey levels 0..255"}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images (n, H, W, C)."""
        images = checked_images(images, channels=(1, 3, 4)).to(self.device)
        return {"features": images.flatten(1).to(torch.float32)}
