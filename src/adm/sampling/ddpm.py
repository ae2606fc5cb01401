"""Ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Schedule, expand, spaced
from adm.sampling._protocol import Denoise, Draw

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (DDPM Alg. 2), with the model's own variance by default; guided as in ADM Alg. 1.

    grad_at: where the guidance gradient is evaluated: "x_t" with t, as released, or "mean" with s, as the
    derivation has it (ADM section 4.1). They differ at first order in the step.
    variance: the "model"'s; or "small", beta_tilde, or "large", beta, in its place (DDPM section 3.2), as released.
    interpolation: how the model's fraction f becomes a variance: "log", as it was trained to and released (iDDPM
    Eq. 15), or "linear", which is right at any number of steps where f was learned at one. There f is about
    Var(x_0 | x_t) / (1 - alpha_bar), which no respacing changes, and beta_tilde + f (beta - beta_tilde) is then the
    variance of q(x_s | x_t).
    """

    grad_at: Literal["x_t", "mean"] = "x_t"
    variance: Literal["model", "small", "large"] = "model"
    interpolation: Literal["log", "linear"] = "log"

    def __post_init__(self) -> None:
        if self.grad_at not in ("x_t", "mean"):
            raise ValueError(f"grad_at {self.grad_at!r}: choose x_t (as released) or mean (as in the paper)")
        if self.variance not in ("model", "small", "large"):
            raise ValueError(f"variance {self.variance!r}: choose model (its own), small or large")
        if self.interpolation not in ("log", "linear"):
            raise ValueError(f"interpolation {self.interpolation!r}: choose log (as released) or linear")
        if self.interpolation == "linear" and self.variance != "model":
            raise ValueError(
                f"interpolation 'linear' is of the model's variance, but variance is {self.variance!r}: leave one out"
            )

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[int]:
        return spaced(schedule.num_timesteps, num_steps)

    def init(self) -> None:
        return None

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: None) -> tuple[Tensor, None]:
        prediction = denoise(x_t, link.t)
        log_var = self._log_var(prediction, link)
        mean = link.mean(prediction.x0, x_t)
        if prediction.guidance is not None:
            at, time = (x_t, link.t) if self.grad_at == "x_t" else (mean, link.s)
            mean = mean + log_var.exp() * prediction.guidance(at, time)  # ADM Alg. 1
        if link.last.ndim == 0 and bool(link.last):
            return mean, None
        # With a link for each image some may be at their last step: those get no noise.
        return mean + (1 - expand(link.last, x_t)) * (0.5 * log_var).exp() * noise(0), None

    def _log_var(self, prediction: Prediction, link: Link) -> Tensor:
        """log Sigma, which broadcasts over x_t."""
        like = prediction.x_t
        if self.variance != "model":
            # Released: "large" too is beta_tilde of the link before at the last step, where beta would blur the image.
            large = torch.zeros_like(link.beta) if self.variance == "small" else 1 - link.last.to(link.beta)
            return link.log_var(expand(large, like))
        f = prediction.var_frac
        if self.interpolation == "log":
            log_var = link.log_var(f)
        else:
            # A network may put f a little below 0, but Sigma is at least beta_tilde, the variance were x_0 known.
            beta, beta_tilde = expand(link.beta, f), expand(link.beta_tilde, f)
            var = beta_tilde + f.clamp(min=0) * (beta - beta_tilde)
            log_var = var.clamp(min=torch.finfo(var.dtype).tiny).log()  # 0 only at the last step, for f = 0
        # A link for each image, and one fraction for all of them, gives (N,).
        return expand(log_var, like) if log_var.ndim == 1 else log_var
