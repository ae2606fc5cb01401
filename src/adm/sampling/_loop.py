"""The one sampling loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.grids import Steps, timesteps_of
from adm.diffusion.model import Denoiser, fresh
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Schedule, Time, spaced
from adm.sampling._noise import Noise
from adm.sampling._protocol import Sampler

__all__ = ["StepEvent", "sample", "timesteps_for"]


@dataclass(frozen=True, eq=False)
class StepEvent:
    """What `on_step` sees after step i from t to s.

    prediction: what the denoiser returned first, at (x_t, t), or above it where the sampler churns; guidance travels
    with it and is not folded in. None if the sampler did not ask.
    """

    i: int
    t: Tensor
    s: Tensor
    x_t: Tensor
    prediction: Prediction | None
    x_s: Tensor


OnStep = Callable[[StepEvent], Tensor | None]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    chain: Chain,
    sampler: Sampler,
    noise: Noise | None,
    shape: Sequence[int],
    cond: Condition = Condition(),
    x: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Walk the chain from x_T to its end and return x there, (N, C, H, W), in [-1, 1] up to the model's errors.

    noise: `SeededNoise` or `RecordedNoise`; may be None when x is given and the sampler draws nothing. x: where to
    start instead of noise.initial(shape); its dtype is kept. on_step: called after each step with a StepEvent; a
    tensor that it returns takes the place of x_s. Raises ValueError when the chain belongs to another schedule.
    """
    shape = tuple(shape)
    _check(denoiser, chain, cond, shape, x)
    if x is None:
        if noise is None:
            raise ValueError("sampling from nothing: give noise (adm.SeededNoise(range(n))) or a start x")
        x = noise.initial(shape)
    device = getattr(denoiser, "device", None) or x.device
    x, cond = x.to(device), cond.to(device)
    denoiser = fresh(denoiser)
    state = sampler.init()
    for i, link in enumerate(chain):
        seen: list[Prediction] = []

        def denoise(x_t: Tensor, t: Time, seen: list[Prediction] = seen) -> Prediction:
            prediction = denoiser(x_t, t, cond)
            seen.append(prediction)
            return prediction

        def draw(number: int = 0, i: int = i, x_t: Tensor = x) -> Tensor:
            if noise is None:
                raise ValueError("this sampler draws noise: give adm.SeededNoise or adm.RecordedNoise")
            return noise.at(i, shape, number).to(x_t)

        x_s, state = sampler.step(denoise, x, link, draw, state)
        if on_step is not None:
            replaced = on_step(StepEvent(i, link.t, link.s, x, seen[0] if seen else None, x_s))
            x_s = x_s if replaced is None else replaced
        x = x_s
    return x


def timesteps_for(sampler: Sampler, schedule: Schedule, steps: Steps) -> list[int | float]:
    """The timesteps of a chain for this sampler: N means its own grid, or `spaced(T, N)`; all else `timesteps_of`."""
    num = _number(steps)
    if num is None:
        return timesteps_of(schedule, steps)  # type: ignore[arg-type]
    grid = getattr(sampler, "timesteps", None)
    return list(grid(schedule, num) if grid is not None else spaced(schedule.num_timesteps, num))


def _number(steps: Steps) -> int | None:
    """The number of links that is asked for, None for a grid."""
    if isinstance(steps, str):
        return int(steps) if steps.strip().isdecimal() else None
    try:
        return operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check(denoiser: Denoiser, chain: Chain, cond: Condition, shape: tuple[int, ...], x: Tensor | None) -> None:
    schedule = getattr(denoiser, "schedule", None)
    if schedule is not None and not schedule.same_as(chain.schedule):
        raise ValueError("the chain was made for another schedule than the model's: use adm.Chain(model.schedule, ...)")
    if x is not None and tuple(x.shape) != shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, but {shape} was asked for")
    if cond.label is not None and len(cond.label) != shape[0]:
        raise ValueError(f"{len(cond.label)} labels for {shape[0]} images: give one to each")
