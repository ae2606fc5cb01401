"""Training losses of a diffusion model, and the terms of its variational bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.condition import Condition
from adm.diffusion.loss_weight import WeightConfig, loss_weight
from adm.diffusion.model import DiffusionModel, NetworkOutput
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import expand

__all__ = [
    "Decoder",
    "LossKind",
    "LossTerms",
    "denoising_loss",
    "discretized_gaussian_log_likelihood",
    "mean_per_image",
    "normal_kl",
    "variational_bound",
]

LossKind = Literal["simple", "hybrid", "hybrid_rescaled", "vlb", "vlb_rescaled"]
Decoder = Literal["discrete", "continuous"]


@dataclass(frozen=True, eq=False)
class LossTerms:
    """loss: (N,), one value for each example, not yet weighted; terms: what it is made of, by name, (N,) each."""

    loss: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


def denoising_loss(
    model: DiffusionModel,
    link: Link,
    x0: Tensor,
    eps: Tensor,
    cond: Condition,
    kind: LossKind = "hybrid",
    weight: WeightConfig = WeightConfig(),
    perturbation: Tensor | None = None,
) -> LossTerms:
    """The loss of each image at x_t = q_sample(x0, link.t, eps); `link` comes from the chain over all T timesteps.

    simple: mean squared error of the mean's parametrization (L_simple, DDPM Eq. 14).
    hybrid: simple + vb, where vb reaches the variance alone (L_hybrid, iDDPM Eq. 16; ADM's). vb is in bits/dim, and
        its weight 1 is the paper's 0.001 at T = 1000, since L_vlb is T times the mean of vb.
    hybrid_rescaled: vb * T / 1000 in place of vb (the released rescale_learned_sigmas); the same at T = 1000.
    vlb: vb alone with its full gradient; vlb_rescaled: times T (the released use_kl).
    With a fixed variance the hybrid losses are simple, as released. x0: (N, C, H, W) in [-1, 1]; eps: normals of its
    shape. weight: of the squared error; the term mse is reported without it, vb never has it, and with vlb, which has
    no squared error, it raises ValueError. perturbation: gamma xi with xi ~ N(0, I), added to the eps in x_t, but not
    to the eps in what the network is to find (input perturbation, Ning et al. 2023).
    """
    if kind in ("vlb", "vlb_rescaled") and weight.kind != "none":
        raise ValueError(f"weight {weight.kind} has no squared error to weigh in loss {kind}: use simple or hybrid")
    t = link.t
    x_t = model.schedule.q_sample(x0, t, eps if perturbation is None else eps + perturbation)
    output = model.output(x_t, t, cond)
    T = model.schedule.num_timesteps
    if kind in ("vlb", "vlb_rescaled"):
        vb = variational_bound(model.predict(x_t, t, output), link, x0)
        return LossTerms(vb * T if kind == "vlb_rescaled" else vb, {"vb": vb})
    mse = mean_per_image((output.mean - model.target(x0, t, eps)) ** 2)
    weighted = mse if weight.kind == "none" else loss_weight(weight, model, t, x0) * mse
    if kind == "simple" or output.variance is None:
        return LossTerms(weighted, {"mse": mse})
    frozen = NetworkOutput(output.mean.detach(), output.variance)
    vb = variational_bound(model.predict(x_t, t, frozen), link, x0)
    return LossTerms(weighted + (vb * (T / 1000) if kind == "hybrid_rescaled" else vb), {"mse": mse, "vb": vb})


def variational_bound(
    prediction: Prediction, link: Link, x0: Tensor, decoder: Decoder = "discrete", levels: int = 256
) -> Tensor:
    """One term of the variational bound for each image, bits/dim, (N,) (DDPM Eq. 5, iDDPM Eq. 4-6).

    KL(q(x_s | x_t, x_0) || p(x_s | x_t)), and the decoder's -log p(x_0 | x_t) at the last link. decoder: discrete for
    images of `levels` grey levels in [-1, 1], continuous for a density of x_0 itself.
    """
    x_t = prediction.x_t
    mean = link.mean(prediction.x0, x_t)
    log_var = link.log_var(prediction.var_frac)
    log_var = (expand(log_var, mean) if log_var.ndim == 1 else log_var).expand_as(mean)
    true_log_var = link.log_var(torch.zeros_like(log_var))
    kl = normal_kl(link.mean(x0, x_t), true_log_var, mean, log_var)
    if decoder == "discrete":
        log_likelihood = discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_var, levels)
    else:
        log_likelihood = -0.5 * (math.log(2 * math.pi) + log_var + (x0 - mean) ** 2 * (-log_var).exp())
    last = link.last.to(mean.device)
    return torch.where(last, -mean_per_image(log_likelihood), mean_per_image(kl)) / math.log(2)


def normal_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """KL(N(mean_q, exp log_var_q) || N(mean_p, exp log_var_p)) of each element, in nats."""
    difference = (mean_q - mean_p) ** 2 * (-log_var_p).exp()
    return 0.5 * (-1 + log_var_p - log_var_q + (log_var_q - log_var_p).exp() + difference)


def discretized_gaussian_log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor, levels: int = 256) -> Tensor:
    """log of a Gaussian's mass in the bin of x0, nats per element (DDPM Eq. 13).

    x0: one of `levels` equidistant values in [-1, 1]; the outermost bins reach to infinity. The Gaussian CDF is the
    released code's tanh approximation (within 1.8e-4), on which recorded bits/dim rest.
    """
    half_bin = 1 / (levels - 1)
    inverse_std = (-log_std).exp()
    upper = _approximate_cdf((x0 - mean + half_bin) * inverse_std)
    lower = _approximate_cdf((x0 - mean - half_bin) * inverse_std)
    # The released edge, 0.999 for 256 levels, in units of half a bin: beyond it lies only the outermost level.
    edge = 1 - 0.255 * half_bin
    lowest = upper.clamp(min=1e-12).log()
    highest = (1 - lower).clamp(min=1e-12).log()
    inner = (upper - lower).clamp(min=1e-12).log()
    return torch.where(x0 < -edge, lowest, torch.where(x0 > edge, highest, inner))


def mean_per_image(values: Tensor) -> Tensor:
    """(N, ...) -> (N,)."""
    return values.flatten(1).mean(dim=1)


def _approximate_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
