"""A study's trials, each a variant under a seed: shared out over processes, kept, continued, and made a table of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from adm.runtime import files
from adm.runtime.distributed import World
from adm.runtime.errors import DamagedError, StoppedError
from adm.runtime.text import shown_path

__all__ = ["Summary", "Trial", "run_trials", "summaries", "without"]

Values = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """A variant under a seed. recipe: JSON-able, everything that the result is a function of."""

    variant: str
    seed: int
    recipe: object

    @property
    def key(self) -> str:
        """A name for its files; another recipe has another one."""
        digest = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.variant}-{self.seed}-{digest}"


def without(settings: Mapping[str, object], *names: str) -> dict[str, object]:
    """A study's settings for the recipes of its trials: not those that say which trials there are.

    So a study that is asked for one seed more measures that seed alone.
    """
    return {name: value for name, value in settings.items() if name not in names}


@dataclass(frozen=True)
class Summary:
    """A variant's values over the seeds: mean, standard deviation (None for one seed), and by seed."""

    variant: str
    mean: Mapping[str, float]
    spread: Mapping[str, float | None]
    by_seed: Mapping[int, Values]

    def show(self, name: str, form: str) -> str:
        """ "1.23 ± 0.04", without the deviation for one seed."""
        spread, mean = self.spread[name], format(self.mean[name], form)
        return mean if spread is None else f"{mean} ± {format(spread, form)}"

    def of(self, name: str) -> dict[int, float]:
        """One value by seed."""
        return {seed: values[name] for seed, values in self.by_seed.items()}

    def wins(self, name: str, other: Summary, higher_is_better: bool) -> int:
        """Under how many of the seeds this one is better than the other."""
        sign = 1 if higher_is_better else -1
        return sum(sign * (values[name] - other.by_seed[seed][name]) > 0 for seed, values in self.by_seed.items())


def run_trials(
    trials: Sequence[Trial],
    out: Path,
    measure: Callable[[Trial], Values],
    world: World = World(),
    stop_requested: Callable[[], bool] = lambda: False,
    share_by: Callable[[Trial], object] = lambda trial: trial.key,
) -> list[Values]:
    """The values of each trial, measured now or read from `out` where they were before.

    share_by: trials for which it is the same, such as those that sample one trained model, are one process's. Process r
    of n takes every n-th of these groups, from r; all return all values. A process that is asked to stop finishes its
    trial, the others all of theirs, before all raise StoppedError.
    """
    folder = out / "trials"
    groups = list(dict.fromkeys(share_by(trial) for trial in trials))
    mine = set(groups[world.rank :: world.size])
    stopped = None
    try:
        for trial in trials:
            if share_by(trial) in mine and stored(folder, trial) is None:
                if stop_requested():
                    raise StoppedError("stopped between two trials; run the same command to continue.")
                world.phase(f"trial {trial.key}")
                values = {name: float(value) for name, value in measure(trial).items()}
                files.write_json(path_of(folder, trial), {"recipe": trial.recipe, "values": values})
    except StoppedError as error:
        stopped = error
    world.phase("the trials of the other processes")
    if world.any(stopped is not None):  # where all meet, so that none waits for one that has left
        raise stopped or StoppedError("another process was stopped; run the same command to continue.")
    return [read(folder, trial) for trial in trials]


def read(folder: Path, trial: Trial) -> Values:
    """What another process, or this one, has just stored."""
    values = stored(folder, trial)
    if values is None:
        raise DamagedError(
            f"{shown_path(path_of(folder, trial))}: is missing or unreadable although it was just written. "
            "Check that all processes see the same directory, and run the same command again."
        )
    return values


def stored(folder: Path, trial: Trial) -> Values | None:
    path = path_of(folder, trial)
    if not path.exists():
        return None
    try:
        document = files.read_json(path)
    except DamagedError:
        return None
    values = document.get("values") if isinstance(document, dict) else None
    return values if isinstance(values, dict) else None


def path_of(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial.key}.json"


def summaries(trials: Sequence[Trial], values: Sequence[Values]) -> dict[str, Summary]:
    """By variant, in the order of the trials."""
    found: dict[str, Summary] = {}
    for variant in dict.fromkeys(trial.variant for trial in trials):
        by_seed = {t.seed: v for t, v in zip(trials, values, strict=True) if t.variant == variant}
        columns = {name: [v[name] for v in by_seed.values()] for name in next(iter(by_seed.values()))}
        found[variant] = Summary(
            variant,
            {name: fmean(column) for name, column in columns.items()},
            {name: stdev(column) if len(column) > 1 else None for name, column in columns.items()},
            by_seed,
        )
    return found
