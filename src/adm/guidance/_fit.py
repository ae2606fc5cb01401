"""Whether two models may be asked about the same x_t."""

from __future__ import annotations

from adm.diffusion.model import Denoiser
from adm.diffusion.schedule import Schedule

__all__ = ["check_fits"]


def check_fits(name: str, other: object, denoiser: Denoiser) -> None:
    """Raise ValueError if the other, which `name` says what it is, has another schedule or image shape than the model.

    What it does not say (None, or no such attribute) is accepted.
    """
    schedule: Schedule | None = getattr(other, "schedule", None)
    if schedule is not None and not schedule.same_as(denoiser.schedule):
        raise ValueError(
            f"the {name} was trained for another noise schedule ({_described(schedule)}) than the model "
            f"({_described(denoiser.schedule)}): use a {name} that was trained with the model's schedule"
        )
    theirs, ours = getattr(other, "image_shape", None), getattr(denoiser, "image_shape", None)
    if theirs is not None and ours is not None and tuple(theirs) != tuple(ours):
        raise ValueError(
            f"the {name} was trained on images of {_size(theirs)}, the model makes {_size(ours)}: "
            f"use a {name} of the model's size"
        )


def _described(schedule: Schedule) -> str:
    T = schedule.num_timesteps
    return f"T = {T}, alpha_bar = {float(schedule.alpha_bar[T // 2]):.3g} half-way"


def _size(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
