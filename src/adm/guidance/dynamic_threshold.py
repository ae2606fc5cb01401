"""Bounding x_0 by its own quantile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.model import Denoiser
from adm.guidance._bounded import Bounded, stage_of
from adm.guidance._protocol import Stage

__all__ = ["DynamicThreshold"]


@dataclass(frozen=True)
class DynamicThreshold:
    """Clamp x_0 to [-s, s] and divide it by s, where s is a quantile of an image's |x_0|, if over 1 (Imagen, Saharia
    et al. 2022, section 2.3); eps follows.

    An image inside [-1, 1] is untouched, and every other is brought inside it. Large guidance then saturates fewer
    pixels than under Clip, which it replaces. For images alone: latents know no such bounds. quantile: which of |x_0|
    the bound s is; 0.995 is the published one of large weights, 1 only rescales. after: bound what the gradient has
    made of x_0, as Clip does.
    """

    quantile: float = 0.995
    after: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile {self.quantile}: choose a share of the pixels between 0 and 1, such as 0.995")

    @property
    def stage(self) -> Stage:
        return stage_of(self.after)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return Bounded(denoiser, self.bound, self.after)

    def bound(self, x0: Tensor) -> Tensor:
        s = _quantile(x0.abs().flatten(1), self.quantile).clamp(min=1).reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-s, s) / s


def _quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of each row, between two values by linear interpolation; rows of any length, unlike torch's."""
    position = share * (values.shape[1] - 1)
    below = math.floor(position)
    largest = values.topk(values.shape[1] - below, dim=1).values
    upper = largest[:, -2] if largest.shape[1] > 1 else largest[:, -1]
    return torch.lerp(largest[:, -1], upper, position - below)
