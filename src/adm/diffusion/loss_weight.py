"""How much a squared error counts by the signal-to-noise ratio at which it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adm.diffusion.model import DiffusionModel
from adm.diffusion.schedule import Time

__all__ = ["WeightConfig", "loss_weight"]

GAMMAS = {"min-snr": 5.0, "soft-min-snr": 4.0, "p2": 1.0}
"""The papers' own."""


@dataclass(frozen=True)
class WeightConfig:
    """The weight of the squared error of each image.

    kind: none is the parametrization's own; min-snr (Hang et al. 2023), soft-min-snr (Crowson et al. 2024), p2 (Choi et
    al. 2022). gamma: the bound of the SNR in min-snr and soft-min-snr, or p2's exponent; None for the papers' 5, 4 and
    1. k: of p2.
    """

    kind: Literal["none", "min-snr", "soft-min-snr", "p2"] = "none"
    gamma: float | None = None
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("none", *GAMMAS):
            raise ValueError(f"weight kind {self.kind!r}: choose none, min-snr, soft-min-snr or p2")
        if self.gamma is not None and self.kind == "none":
            raise ValueError(f"gamma is {self.gamma} without a weight: leave it out, or choose min-snr or another kind")
        if self.gamma is not None and not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}: must be above 0, or none for the paper's")
        if self.k != 1 and self.kind != "p2":
            raise ValueError(f"k is {self.k}, which only p2 has: leave it out, or choose p2")
        if not self.k >= 0:
            raise ValueError(f"k is {self.k}: must be 0 or more")


def loss_weight(config: WeightConfig, model: DiffusionModel, t: Time, like: Tensor) -> Tensor:
    """(N,), the factor of the mean squared error of what the model's network returns, for images `like` at t.

    A weight is one of the squared error of x_0, whatever the network returns; an error of the output is one of x_0
    times `DiffusionModel.x0_slope`. Of x_0: min-snr min(SNR, gamma), soft-min-snr SNR gamma / (SNR + gamma), p2
    SNR / (k + SNR)^gamma, where SNR = alpha_bar / (1 - alpha_bar). So of eps they are min(1, gamma / SNR),
    gamma / (SNR + gamma) and 1 / (k + SNR)^gamma; min-snr of v is min(SNR, gamma) / (SNR + 1). none is 1, whatever the
    network returns: with mean="edm" it is EDM's own weighting.
    """
    if config.kind == "none":
        return torch.ones(len(like), dtype=like.dtype, device=like.device)
    snr = torch.exp(torch.logit(model.schedule.alpha_bar_at(torch.as_tensor(t).cpu())))
    gamma = GAMMAS[config.kind] if config.gamma is None else config.gamma
    if config.kind == "min-snr":
        of_x0 = snr.clamp(max=gamma)
    elif config.kind == "soft-min-snr":
        of_x0 = snr * gamma / (snr + gamma)
    else:
        of_x0 = snr / (config.k + snr) ** gamma
    slope = model.x0_slope(torch.as_tensor(t).cpu(), torch.empty(1, dtype=torch.float64)).flatten()
    return (of_x0 * slope**2).to(like.dtype).to(like.device).expand(len(like))
