"""The smallest parts: normalisation, the time embedding, changes of resolution."""

import contextlib
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Downsample", "GroupNorm", "Upsample", "full_precision", "timestep_embedding", "zeroed"]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with statistics in float32 at least; the result has the dtype of the input.

    32 groups, eps 1e-5, as released; channels that 32 does not divide get the largest number of groups
    below it that does.
    """

    def __init__(self, channels: int):
        groups = max(g for g in range(1, 33) if channels % g == 0)
        super().__init__(groups, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        # Half kernels keep the mean and 1/std of a group in half, which is an error of the whole group.
        if x.dtype not in (torch.float16, torch.bfloat16):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Downsample(nn.Module):
    """Half the height and width: a 3x3 convolution with stride 2, or the mean of each 2x2."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(x)


class Upsample(nn.Module):
    """Twice the height and width: each pixel repeated 2x2, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines, then sines, of t at dim/2 frequencies from 1 to almost 1e-4, in float32 at least.

    t: (N,), whole or real; dim: even. Returns (N, dim), float64 if dtype is, else float32.
    f_k = 10000^(-k / (dim/2)): the divisor is dim/2, not dim/2 - 1 (guided-diffusion, nn.py).
    """
    working = torch.float64 if dtype == torch.float64 else torch.float32
    half = dim // 2
    k = torch.arange(half, dtype=working, device=t.device)
    angle = t.to(working)[:, None] * torch.exp(-math.log(10000) * k / half)
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A region that autocast leaves alone, for embeddings and heads, as the released half-precision networks do."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def zeroed(layer: Layer) -> Layer:
    """The same layer, all zeros: what it feeds starts as if it were not there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
