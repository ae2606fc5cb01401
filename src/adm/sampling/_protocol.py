"""What a sampler is: one step rule with explicit state. Read this file to write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time

__all__ = ["Denoise", "Draw", "Sampler", "State", "guided"]

Denoise = Callable[[Tensor, Time], Prediction]
"""(x_t, t) -> Prediction, with the condition already bound."""

Draw = Callable[[int], Tensor]
"""draw -> standard normals of x_t's shape; the same number gives the same tensor within a step."""

State = Any
"""Whatever a rule remembers between steps (a multistep rule: earlier predictions); None if nothing."""


class Sampler(Protocol):
    """A rule for one step of the reverse chain.

    Optional: `timesteps(schedule, num_steps)`, the grid that `--steps N` means for this rule (`diffusion/grids.py`
    has some); without it, `adm.spaced(T, N)`.
    """

    def init(self) -> State:
        """The state before the first step."""
        ...

    def step(self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: State) -> tuple[Tensor, State]:
        """From x_t to x_s along the link. May call `denoise` several times; must not change its arguments."""
        ...


def guided(denoise: Denoise, x_t: Tensor, t: Time) -> Prediction:
    """The prediction with its guidance gradient folded into eps (ADM Alg. 2), as every rule but DDPM's uses it."""
    prediction = denoise(x_t, t)
    return prediction if prediction.guidance is None else prediction.fold(prediction.guidance(x_t, t))
