"""The weights and images with which the values in golden/metrics/inception.npz were recorded."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

METRICS = Path(__file__).parent / "golden" / "metrics"
SIZES = ["32x32", "64x64", "299x299", "96x160"]


def inception_weights() -> dict[str, Tensor]:
    """A state dict by torchvision's names: 23,850,960 numbers from one frozen stream."""
    recorded = json.loads((METRICS / "inception.json").read_text())
    rng = np.random.RandomState(recorded["weight_seed"])
    weights = {}
    for name in sorted(recorded["keys"]):
        if name.endswith("num_batches_tracked"):
            continue
        shape = recorded["keys"][name]
        z = rng.standard_normal(shape)
        if name.endswith("running_var"):
            z = 0.5 + 0.5 * abs(z)
        elif name.endswith("bn.weight"):
            z = np.ones(shape)
        elif name.endswith("weight"):
            z = z * math.sqrt(2 / math.prod(shape[1:]))
        else:
            z = 0.1 * z
        weights[name] = torch.from_numpy(z.astype(np.float32))
    return weights


def recorded_images(size: str) -> Tensor:
    """The two uint8 images (2, H, W, 3) of a recorded size."""
    height, width = (int(side) for side in size.split("x"))
    rng = np.random.RandomState(40 + SIZES.index(size))
    return torch.from_numpy(rng.randint(0, 256, (2, height, width, 3)).astype(np.uint8))


def recorded_values(size: str) -> dict[str, Tensor]:
    """pool, spatial, logits_unbiased and logits that torch-fidelity's network gave for them."""
    with np.load(METRICS / "inception.npz") as arrays:
        names = [name for name in arrays.files if name.startswith(f"{size}_")]
        return {name.removeprefix(f"{size}_"): torch.from_numpy(arrays[name]) for name in names}


def gathered(images: Tensor, size: int) -> Tensor:
    """The resize to (N, size, size, C) as TensorFlow writes it: from four neighbours of every pixel, in float64."""
    height, width = images.shape[1:3]

    def neighbours(side: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
        at = np.arange(size, dtype=np.float32) * np.float32(np.float32(side) / np.float32(size))
        low = np.floor(at).astype(int).clip(max=side - 1)
        return low, (low + 1).clip(max=side - 1), torch.from_numpy((at - low).astype(np.float64))

    (top, bottom, fy), (left, right, fx) = neighbours(height), neighbours(width)
    x, fx, fy = images.to(torch.float64), fx[None, None, :, None], fy[None, :, None, None]
    upper = x[:, top][:, :, left] + (x[:, top][:, :, right] - x[:, top][:, :, left]) * fx
    lower = x[:, bottom][:, :, left] + (x[:, bottom][:, :, right] - x[:, bottom][:, :, left]) * fx
    return upper + (lower - upper) * fy
