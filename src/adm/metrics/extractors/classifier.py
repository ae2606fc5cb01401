"""A noisy classifier of one's own as extractor, asked about images without noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adm.checkpoints.load import fingerprint, load, locate
from adm.data import to_model_range
from adm.diffusion.model import NoisyClassifier
from adm.metrics._extractor import as_device, checked_images, exact_float32, in_batches, marked_name, repeated_grey
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["ClassifierExtractor"]

BATCH_SIZE = 16


class ClassifierExtractor:
    """uint8 images -> {"features": (n, d), "logits": (n, num_classes)} of a noisy classifier at t = 0.

    path: a run, a checkpoint directory, a file or a preset, of which the EMA weights are taken. The features are what
    its last linear layer sees. Images must have the classifier's size; grey ones are repeated as three channels where
    it wants three. A classifier that guided the samples agrees with itself: as a judge of them take another. Raises
    UsageError for a path that holds no classifier, and for images of another size.
    """

    taps = ("features", "logits")

    def __init__(self, path: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.device = as_device(device)
        place = locate(path)
        model = load(place, device=self.device)
        if not isinstance(model, NoisyClassifier):
            raise UsageError(f"{shown_path(place)} holds a diffusion model: give the run of a classifier.")
        self.model = model.requires_grad_(False)
        self.last = [layer for layer in model.network.modules() if isinstance(layer, nn.Linear)][-1]
        sha256 = fingerprint(place)
        self.name = marked_name("classifier", sha256, None)
        self.conditions: dict[str, object] = {
            "weights_sha256": sha256,
            "model": one_line(path),
            "preprocessing": "v / 127.5 - 1, t = 0",
            "precision": "float32",
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images (n, H, W, C) of the classifier's size."""
        checked_images(images)
        shape = self.model.image_shape
        if shape is not None:
            images = repeated_grey(images) if shape[0] == 3 else images
            height, width, channels = images.shape[1:]
            if (channels, height, width) != tuple(shape):
                raise UsageError(
                    f"{self.name} was made for {shape[1]}x{shape[2]} images with {shape[0]} channels, these are "
                    f"{height}x{width} with {channels}: give images of its size, or another classifier."
                )
        with exact_float32():
            return in_batches(self._features, images, BATCH_SIZE, self.device)

    def _features(self, images: Tensor) -> Mapping[str, Tensor]:
        seen: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            logits = self.model(to_model_range(images), 0)
        finally:
            hook.remove()
        return {"features": seen[0], "logits": logits}
