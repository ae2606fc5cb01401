"""The image resize of TensorFlow 1, as two matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["tf1_resize"]


def tf1_resize(images: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bilinear resize to ``size`` x ``size`` in the grid of TensorFlow 1: out[i] lies at i * in / size.

    ``images`` (N, H, W, C), uint8 or floating, of any size -> (N, size, size, C), in grey levels, neither rounded nor
    clipped. Nothing is averaged: what is larger is sampled with gaps. The usual grid of torch has its pixel centres at
    halves and gives other features. Source: ResizeBilinear with align_corners=False and half_pixel_centers=False.
    """
    n, height, width, channels = images.shape
    x = images.to(dtype)
    if height != size:
        rows = _interpolation(height, size, dtype, images.device)
        x = (rows @ x.reshape(n, height, width * channels)).view(n, size, width, channels)
    if width != size:
        columns = _interpolation(width, size, dtype, images.device)
        x = (x.transpose(2, 3).reshape(-1, width) @ columns.T).view(n, size, channels, size).transpose(2, 3)
    return x


def _interpolation(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size_out, size_in): row i holds the two weights of output i; past the last pixel both fall on it."""
    # TensorFlow takes the ratio and its products in float32, and so do these, whatever the dtype of the image.
    ratio = torch.tensor(size_in, dtype=torch.float32) / torch.tensor(size_out, dtype=torch.float32)
    at = torch.arange(size_out, dtype=torch.float32) * ratio
    lower = at.floor().clamp(max=size_in - 1)
    upper_weight = (at - lower).to(torch.float64)
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    row, lower_index = torch.arange(size_out), lower.long()
    matrix[row, lower_index] += 1 - upper_weight
    matrix[row, (lower_index + 1).clamp(max=size_in - 1)] += upper_weight
    return matrix.to(device=device, dtype=dtype)
