"""Timestep grids: at which noise levels a chain asks the network.

A grid is a list of timesteps, rising, whole or real; `Chain` takes any. A real t lies between two entries of the
schedule's table: networks were trained on whole ones, but rounding would cost high-order rules their order. Named
grids have T timesteps at most, as many as the network has learned to tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from adm.diffusion.schedule import Schedule, spaced, strided
from adm.runtime.text import nearest, one_line

__all__ = ["GRIDS", "Steps", "karras", "log_snr", "spelled", "timesteps_of"]

Steps = int | str | Sequence[int | float]
"""A number of links, a grid as text ("karras:10", "ddim25", "10,10,15"), or the timesteps themselves."""

LARGEST_RATIO = math.exp(5.1)
"""Where grids over noise levels begin, as the noise-to-signal ratio: the cosine schedule goes on to 2e4 in two steps,
where x is noise alone; the bound is that of DPM-Solver's authors for it, and the linear schedule ends below it."""


def log_snr(schedule: Schedule, num: int) -> list[float]:
    """Timesteps evenly apart in the log of the signal-to-noise ratio (DPM-Solver, Lu et al. 2022, section 3.4)."""
    low, high = _range(schedule, num)
    return _between(schedule, torch.linspace(math.log(low), math.log(high), num, dtype=torch.float64).exp())


def karras(schedule: Schedule, num: int, rho: float = 7.0) -> list[float]:
    """Timesteps evenly apart in sigma^(1 / rho), sigma the noise-to-signal ratio (EDM Eq. 5)."""
    low, high = _range(schedule, num)
    return _between(schedule, torch.linspace(low ** (1 / rho), high ** (1 / rho), num, dtype=torch.float64) ** rho)


def _even(schedule: Schedule, num: int) -> list[int]:
    return spaced(schedule.num_timesteps, num)


def _strided(schedule: Schedule, num: int) -> list[int]:
    return strided(schedule.num_timesteps, num)


GRIDS: Mapping[str, Callable[[Schedule, int], Sequence[int | float]]] = {
    "even": _even,
    "strided": _strided,
    "log-snr": log_snr,
    "karras": karras,
}
"""By the name that they have in text."""


def timesteps_of(schedule: Schedule, steps: str | Sequence[int | float]) -> list[int | float]:
    """The timesteps of a grid as text: NAME:N with a name of GRIDS, ddimN as released, or counts of equal sections,
    10,10,15. Timesteps themselves are passed on. Raises ValueError for what is none of these."""
    if not isinstance(steps, str):
        return _numbers(steps)
    name, colon, number = spelled(steps).partition(":")
    if colon or name in GRIDS:
        if name not in GRIDS:
            choice = ", ".join(GRIDS)
            raise ValueError(f"there is no grid {one_line(name, 40)!r}{nearest(name, GRIDS)} Choose one of: {choice}")
        if not number.isdecimal():
            raise ValueError(f"steps {one_line(steps, 40)!r}: a grid needs its number of links: write {name}:10")
        return list(GRIDS[name](schedule, int(number)))
    if name.startswith("ddim"):
        return list(strided(schedule.num_timesteps, name))
    if not all(part.isdecimal() for part in name.split(",")):
        guess = nearest(name.rstrip("0123456789"), [*GRIDS, "ddim"])
        raise ValueError(
            f"steps {one_line(steps, 40)!r} are no number of links{guess} Write 50, sections 10,10,15, ddim25, "
            f"or a grid such as karras:10 ({', '.join(GRIDS)})"
        )
    return list(spaced(schedule.num_timesteps, name))


def spelled(steps: str) -> str:
    """A grid's text in the one spelling that names it: LOG_SNR: 10 is log-snr:10."""
    return "".join(steps.split()).lower().replace("_", "-")


def _numbers(steps: Sequence[int | float]) -> list[int | float]:
    """Timesteps as numbers of Python's, whatever they came in."""
    try:
        values = np.asarray(steps)
        is_list = values.ndim == 1 and bool(np.isfinite(values).all())
    except (TypeError, ValueError, RuntimeError):
        is_list = False
    if not is_list:
        raise ValueError(
            f"steps {one_line(steps, 60)}: give a number of links, a grid as text (karras:10), or a list of timesteps"
        )
    numbers: list[int | float] = values.tolist()
    return numbers


def _range(schedule: Schedule, num: int) -> tuple[float, float]:
    """(smallest, largest) noise-to-signal ratio of a grid; a single step is taken from the largest."""
    if not 1 <= num <= schedule.num_timesteps:
        raise ValueError(f"cannot take {num} of {schedule.num_timesteps} timesteps: use 1 to {schedule.num_timesteps}")
    table = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()
    top = float(table[table <= LARGEST_RATIO][-1]) if bool((table <= LARGEST_RATIO).any()) else float(table[0])
    return (float(table[0]) if num > 1 else top), top


def _between(schedule: Schedule, ratios: torch.Tensor) -> list[float]:
    """Real timesteps of these ratios; the ends, which are entries of the table, exactly."""
    times = schedule.time_at(ratios)
    near = times.round()
    return torch.where((times - near).abs() < 1e-9, near, times).tolist()
