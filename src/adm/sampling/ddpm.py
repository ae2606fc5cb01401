"""Ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.schedule import Schedule, expand, spaced
from adm.sampling._protocol import Denoise, Draw

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling with the model's own variance (DDPM Alg. 2); guided as in ADM Alg. 1.

    grad_at: where the guidance gradient is evaluated: "x_t" with t, as released, or "mean" with s, as the
    derivation has it (ADM section 4.1). They differ at first order in the step.
    """

    grad_at: Literal["x_t", "mean"] = "x_t"

    def __post_init__(self) -> None:
        if self.grad_at not in ("x_t", "mean"):
            raise ValueError(f"grad_at {self.grad_at!r}: choose x_t (as released) or mean (as in the paper)")

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[int]:
        return spaced(schedule.num_timesteps, num_steps)

    def init(self) -> None:
        return None

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: None) -> tuple[Tensor, None]:
        prediction = denoise(x_t, link.t)
        log_var = link.log_var(prediction.var_frac)
        if log_var.ndim == 1:  # a link for each image, and one fraction for all of them
            log_var = expand(log_var, x_t)
        mean = link.mean(prediction.x0, x_t)
        if prediction.guidance is not None:
            at, time = (x_t, link.t) if self.grad_at == "x_t" else (mean, link.s)
            mean = mean + log_var.exp() * prediction.guidance(at, time)  # ADM Alg. 1
        if link.last.ndim == 0 and bool(link.last):
            return mean, None
        # With a link for each image some may be at their last step: those get no noise.
        return mean + (1 - expand(link.last, x_t)) * (0.5 * log_var).exp() * noise(0), None
