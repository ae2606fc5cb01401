"""From what `steps` says to a chain: a number, a grid in words, timesteps, or the file of a grid that was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adm.checkpoints.model_document import ScheduleConfig, describe_schedule, make_schedule
from adm.diffusion.chain import Chain
from adm.diffusion.grids import Steps, spelled
from adm.diffusion.schedule import Schedule
from adm.runtime import files
from adm.runtime.config import from_dict, to_dict
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.sampling import Sampler, timesteps_for

__all__ = ["FittedGrid", "chain_for", "grid_file", "grid_name", "read_grid", "write_grid"]

FITTED = "fitted"


@dataclass(frozen=True)
class FittedGrid:
    """Timesteps that were fitted to a model, rising, and what they are a function of.

    schedule: the model's. model, guidance: by name, as in `request.json`, with the sha256 of their weights. sampler,
    fine, num, seed: the teacher, its links, the images that it made, and the first one's seed.
    """

    kind: Literal["fitted timesteps"]
    timesteps: tuple[float, ...]
    schedule: ScheduleConfig
    model: str
    model_sha256: str
    guidance: tuple[str, ...]
    guidance_sha256: tuple[str, ...]
    sampler: str
    fine: int
    num: int
    seed: int


def grid_file(steps: Steps | None) -> Path | None:
    """The file that `steps` names, if it names one."""
    return Path(steps.strip()) if isinstance(steps, str) and steps.strip().lower().endswith(".json") else None


def read_grid(path: Path) -> FittedGrid:
    """A grid that `write_grid` wrote. Raises UsageError when there is none, and DamagedError for another file."""
    if not path.is_file():
        raise UsageError(f"steps {shown_path(path)}: no such file. Give one that adm study fit_timesteps wrote.")
    document = files.read_json(path)
    if not isinstance(document, Mapping) or document.get("kind") != "fitted timesteps":
        raise DamagedError(f"{shown_path(path)}: no grid of timesteps. Give a file that adm study fit_timesteps wrote.")
    try:
        return from_dict(FittedGrid, document, shown_path(path))
    except UsageError as error:
        raise DamagedError(str(error)) from error


def write_grid(path: Path, grid: FittedGrid) -> None:
    files.write_json(path, to_dict(grid))


def chain_for(sampler: Sampler, schedule: Schedule, steps: Steps) -> Chain:
    """The chain of this many links, of this grid, or of the grid in this file. Raises UsageError for what is none, and
    for a grid that was fitted for another schedule."""
    file = grid_file(steps)
    try:
        if file is None:
            return Chain(schedule, timesteps_for(sampler, schedule, steps))
        grid = read_grid(file)
        if not make_schedule(grid.schedule).same_as(schedule):
            own = describe_schedule(schedule)
            raise UsageError(
                f"steps {shown_path(file)}: fitted to {grid.model}, for another noise schedule "
                f"({_named(grid.schedule)}) than the model's ({_named(own)}). "
                "Fit one to this model with adm study fit_timesteps."
            )
        return Chain(schedule, grid.timesteps)
    except ValueError as error:
        written = one_line(steps, 60) if file is None else shown_path(file)
        said = "" if str(error).startswith("steps ") else f"steps {written}: "
        raise UsageError(f"{said}{error}.") from error


def grid_name(sampler: Sampler, chain: Chain, steps: Steps) -> str | None:
    """What the chain's grid is called; None for the sampler's own, which the number of links says all about."""
    timesteps = chain.timesteps.flip(0).tolist()
    try:
        if timesteps == sorted(timesteps_for(sampler, chain.schedule, len(chain))):
            return None
    except ValueError:  # no grid of its own has this many links
        pass
    if grid_file(steps) is not None:
        return FITTED
    return spelled(steps) if isinstance(steps, str) else "timesteps"


def _named(config: ScheduleConfig) -> str:
    return f"{config.name}, T = {config.num_timesteps}"
