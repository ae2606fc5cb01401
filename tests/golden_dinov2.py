"""Small random DINOv2 networks, whose outputs Meta's code (facebookresearch/dinov2 at b8931f7) recorded.

golden/metrics/dinov2.json holds the shapes of each network (two blocks of width 128, positions for 9 x 9 patches), the
.npz its outputs for RandomState(92).standard_normal((2, 3, h, w)). mlp and gated were built with the released defaults
of networks without registers (interpolate_offset 0.1), registers with those of networks that have some (offset 0,
antialias).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

METRICS = Path(__file__).parent / "golden" / "metrics"
RECORDED = json.loads((METRICS / "dinov2.json").read_text())


def dinov2_weights(case: str) -> dict[str, Tensor]:
    """A state dict by the released names: matrices z / sqrt(fan in), norms and scales 1 + z / 10, biases z / 10."""
    rng = np.random.RandomState(RECORDED["weight_seed"])
    shapes = RECORDED["cases"][case]["keys"]
    weights = {}
    for name in sorted(shapes):
        shape = shapes[name]
        z = rng.standard_normal(shape)
        if name.endswith(".weight") and len(shape) >= 2:
            z = z / math.sqrt(math.prod(shape[1:]))
        elif name.endswith((".weight", "gamma")):
            z = 1 + 0.1 * z
        elif name.endswith(".bias"):
            z = 0.1 * z
        weights[name] = torch.from_numpy(z.astype(np.float32))
    return weights


def dinov2_input(size: str) -> Tensor:
    """The recorded input (2, 3, H, W) of a size such as "56x56"."""
    shape = (2, 3, *(int(side) for side in size.split("x")))
    return torch.from_numpy(np.random.RandomState(92).standard_normal(shape).astype(np.float32))


def dinov2_outputs() -> dict[tuple[str, str], Tensor]:
    """(case, size) -> the class tokens (2, 128)."""
    with np.load(METRICS / "dinov2.npz") as arrays:
        return {tuple(name.split("_")): torch.from_numpy(arrays[name]) for name in arrays.files}
