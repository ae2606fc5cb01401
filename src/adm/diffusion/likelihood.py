"""How many bits a model needs for an image: the variational bound, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.losses import Decoder, mean_per_image, normal_kl, variational_bound
from adm.diffusion.model import Denoiser

__all__ = ["BitsPerDim", "bits_per_dim"]


class _NoiseAt(Protocol):
    def at(self, i: int, shape: tuple[int, ...], draw: int = 0) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Bits per dimension of each image; columns follow the chain, from its largest t down.

    total, prior: (N,); vb: (N, len(chain)), the terms of the bound; x0_mse, eps_mse: (N, len(chain)), the mean
    squared errors of x_0 and of eps.
    """

    total: Tensor
    prior: Tensor
    vb: Tensor
    x0_mse: Tensor
    eps_mse: Tensor


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser,
    chain: Chain,
    x0: Tensor,
    noise: _NoiseAt,
    cond: Condition = Condition(),
    decoder: Decoder = "discrete",
    levels: int = 256,
    on_step: Callable[[int], None] | None = None,
) -> BitsPerDim:
    """The variational bound on -log2 p(x0) / dimensions, DDPM Eq. 5, with one noise draw for each link.

    x0: (N, C, H, W) in [-1, 1] with `levels` grey levels (the discrete decoder). The released numbers are for a
    clipped model, `adm.guide(model, adm.Clip())`; eps then follows from the clipped x_0. A guidance gradient is not
    part of the bound. on_step(i) is called after link i.
    """
    vb, x0_mse, eps_mse = [], [], []
    for i, link in enumerate(chain):
        eps = noise.at(i, tuple(x0.shape)).to(x0)
        x_t = chain.schedule.q_sample(x0, link.t, eps)
        prediction = denoiser(x_t, link.t, cond)
        vb.append(variational_bound(prediction, link, x0, decoder, levels))
        x0_mse.append(mean_per_image((prediction.x0 - x0) ** 2))
        eps_mse.append(mean_per_image((prediction.eps - eps) ** 2))
        if on_step is not None:
            on_step(i)
    prior = _prior(chain, x0)
    terms = torch.stack(vb, dim=1)
    return BitsPerDim(terms.sum(dim=1) + prior, prior, terms, torch.stack(x0_mse, 1), torch.stack(eps_mse, 1))


def _prior(chain: Chain, x0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)), bits/dim, (N,): not learned, and small when alpha_bar_T is."""
    alpha, sigma = chain.schedule.alpha_sigma(chain[0].t, x0)
    zero = torch.zeros_like(x0)
    return mean_per_image(normal_kl(alpha * x0, (2 * sigma.log()).expand_as(x0), zero, zero)) / math.log(2)
