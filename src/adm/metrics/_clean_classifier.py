"""An independent judge of small images: a classifier that has only ever seen clean ones.

It shares nothing with the noisy classifier that guides the sampling (no weights, no noise levels, no
network): what it says about guided samples is a measurement, not the guide's own opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adm.data import to_model_range
from adm.metrics._features import Features, image_tensor
from adm.runtime import randomness
from adm.runtime.errors import DamagedError, UsageError

__all__ = ["CleanClassifier"]

STREAM = "clean classifier"
MIN_SIDE = 8


class CleanClassifier:
    """A small classifier of uint8 images (N, H, W, C), H and W at least 8; also a feature extractor.

    ``fit`` trains one; ``state`` and ``from_state`` carry it through a file. Features are the ``feature_dim``
    activations before the last layer.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 16, feature_dim: int = 64) -> None:
        self.network = Network(channels, num_classes, width, feature_dim).eval()

    @classmethod
    def fit(
        cls,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor,
        num_classes: int,
        *,
        seed: int = 0,
        steps: int = 500,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        on_progress: Callable[[int, float], None] | None = None,
    ) -> CleanClassifier:
        """Train on clean images: a function of the data and ``seed``; global generators stay as they were.

        ``labels``: (N,) integers in [0, num_classes). ``on_progress(step, loss)`` is called after each step.
        """
        x = _model_range(images)
        y = torch.from_numpy(np.array(labels, np.int64))
        _check(x, y, num_classes)
        with randomness.fork(seed=seed, stream=STREAM):
            classifier = cls(x.shape[1], num_classes)
        network = classifier.network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
        for step in range(steps):
            rows = _rows(len(x), step, batch_size, seed)
            logits, _ = network(_augment(x[rows], seed, step))
            loss = F.cross_entropy(logits, y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if on_progress is not None:
                on_progress(step + 1, float(loss.detach()))
        network.eval().requires_grad_(False)
        return classifier

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> CleanClassifier:
        """The classifier that ``state`` was taken from. Raises DamagedError for tensors that are not one."""
        try:
            first, last = state["trunk.0.weight"], state["head.weight"]
            classifier = cls(first.shape[1], last.shape[0], first.shape[0], last.shape[1])
            classifier.network.load_state_dict(dict(state))
        except (KeyError, IndexError, RuntimeError) as error:
            raise DamagedError(
                "these tensors are not a clean classifier's: delete the file and train it again"
            ) from error
        classifier.network.requires_grad_(False)
        return classifier

    def state(self) -> dict[str, Tensor]:
        """All that ``from_state`` needs, as plain tensors."""
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def features(self, images: np.ndarray | Tensor, label: np.ndarray | Tensor | None = None) -> Features:
        """Features of uint8 images, with the predicted classes and, if given, the labels asked for."""
        values, predicted = self._forward(images)
        asked = None if label is None else torch.from_numpy(np.array(label, np.int64))
        return Features(values, "clean_classifier", label=asked, predicted=predicted)

    def predict(self, images: np.ndarray | Tensor) -> Tensor:
        """The most probable class of each uint8 image: (N,) int64."""
        return self._forward(images)[1]

    @torch.no_grad()
    def _forward(self, images: np.ndarray | Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
        parts = [self.network(batch) for batch in _model_range(images).split(batch_size)]
        logits, values = (torch.cat(column) for column in zip(*parts, strict=True))
        return values, logits.argmax(dim=1)


class Network(nn.Module):
    """Two pairs of convolutions, each with a pool behind it; the last leaves 2x2 cells, whatever the size."""

    def __init__(self, channels: int, num_classes: int, width: int, feature_dim: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_convolution(channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.project = nn.Linear(8 * width, feature_dim)
        self.head = nn.Linear(feature_dim, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) in [-1, 1] -> logits (N, num_classes), features (N, feature_dim)."""
        features = F.relu(self.project(self.trunk(x)))
        return self.head(features), features


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()


def _rows(n: int, step: int, batch_size: int, seed: int) -> Tensor:
    """The images of this step: epoch after epoch, each in an order of its own."""
    position = torch.arange(step * batch_size, (step + 1) * batch_size)
    parts = []
    for epoch in range(int(position[0]) // n, int(position[-1]) // n + 1):
        order = randomness.permutation(n, seed=seed, stream=STREAM, step=epoch)
        parts.append(order[position[position // n == epoch] % n])
    return torch.cat(parts)


def _augment(x: Tensor, seed: int, step: int, reach: int = 1, noise: float = 0.1) -> Tensor:
    """Each image moved by up to ``reach`` pixels, the border repeated, and a little noise."""
    n, channels, height, width = x.shape
    padded = F.pad(x, [reach] * 4, mode="replicate")
    offset = randomness.integers((2, n), 2 * reach + 1, seed=seed, stream=f"{STREAM}: shift", step=step)
    rows = (offset[0][:, None] + torch.arange(height))[:, None, :, None]
    columns = (offset[1][:, None] + torch.arange(width))[:, None, None, :]
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows, columns] + noise * randomness.normal(
        x.shape, seed=seed, stream=f"{STREAM}: noise", step=step
    )


def _model_range(images: np.ndarray | Tensor) -> Tensor:
    x = image_tensor(images)
    if x.ndim != 4 or x.dtype != torch.uint8 or min(x.shape[1:3]) < MIN_SIDE:
        raise UsageError(f"{x.dtype} images {tuple(x.shape)}: give uint8 (N, H, W, C), H and W of {MIN_SIDE} or more")
    return to_model_range(x)


def _check(x: Tensor, y: Tensor, num_classes: int) -> None:
    if len(x) == 0 or y.shape != (len(x),):
        raise UsageError(f"{len(x)} images and labels of shape {tuple(y.shape)}: give at least one image, a label each")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise UsageError(f"labels run from {low} to {high}, outside 0..{num_classes - 1}: mend them or num_classes")
