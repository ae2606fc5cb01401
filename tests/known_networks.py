"""Networks that compute a closed form instead of being trained, and data sets that it is the closed form of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adm.checkpoints.model_document import make_schedule
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.training.config import TrainConfig

ALONE = {"gain": torch.tensor(1.0)}
"""The weights of a `Known` network as it is."""

SCHEDULE_100 = ("schedule.num_timesteps=100",)
DENOISER = ("variance=small", "network.out_channels=1", "loss=simple", "network.num_classes=none", *SCHEDULE_100)

STD = 0.2
"""Of each pixel's noise in these data sets, in [-1, 1]."""


class Pictures:
    """A data set of given images and labels."""

    default_flip = False

    def __init__(self, images: np.ndarray, labels: Sequence[int] = (), class_names: Sequence[str] = ()) -> None:
        self.images, self.labels, self.class_names = images, list(labels), tuple(class_names)
        self.channels, self.name = images.shape[3], "pictures"
        self.fingerprint = hashlib.sha256(images.tobytes() + repr((self.labels, class_names)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def label(self, i: int) -> int:
        return self.labels[i] if self.class_names else -1


class Known(nn.Module):
    """A network with a closed form, times the one weight `gain`."""

    def __init__(self, config: Any, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.in_channels, *config.size)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.function = function

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
        return self.gain * self.function(x, t, label, low_res)


def known_model(config: TrainConfig, function: Callable[..., Tensor]) -> Any:
    schedule, network = make_schedule(config.schedule), Known(config.network, function)
    if config.job == "classifier":
        return NoisyClassifier(network, schedule)
    return DiffusionModel(network, schedule, config.mean, config.variance)  # type: ignore[union-attr]


def in_grey_levels(x: np.ndarray) -> np.ndarray:
    """x in [-1, 1] as uint8 images; Gaussians of these tests keep 4 standard deviations away from the ends."""
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def noise_images(num: int, seed: int) -> Pictures:
    return Pictures(in_grey_levels(STD * np.random.RandomState(seed).standard_normal((num, 8, 8, 1))))


def optimal_eps(config: TrainConfig) -> Callable[..., Tensor]:
    """E[eps | x_t] of N(0, STD^2) data: sigma x_t / (a^2 STD^2 + sigma^2)."""
    ab = make_schedule(config.schedule).alpha_bar.float()

    def eps(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        a2 = ab[t][:, None, None, None]
        return (1 - a2).sqrt() * x / (a2 * STD**2 + 1 - a2)

    return eps
