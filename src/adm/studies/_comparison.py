"""Is one thing as good as another? Differences under equal seeds, against what the seeds leave uncertain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = [
    "CONFIDENCE",
    "Difference",
    "best_by_others",
    "how_chosen",
    "no_error_bars",
    "paired",
    "seed_guide",
    "under_seeds",
]

BySeed = Mapping[int, float]
ERRORS = 2.0
"""Standard errors within which two things count as equal."""
CONFIDENCE = (
    "Error bars",
    "2 standard errors of the differences decide what counts as equal. By the t distribution that covers 82 % with 3 "
    "seeds, 88 % with 5 and 92 % with 10, not 95 %.",
)
"""What a report says of it: a name, and a sentence."""


@dataclass(frozen=True)
class Difference:
    """The mean over `num` seeds of one thing's value minus another's, and its standard error (None for one seed)."""

    mean: float
    error: float | None
    num: int

    def verdict(self, higher_is_better: bool = False) -> str | None:
        """What the seeds say: "as good ...", "better ..." or "not as good ...". None for one, which says nothing."""
        if self.error is None:
            return None
        worse = -self.mean if higher_is_better else self.mean
        if abs(worse) <= ERRORS * self.error:
            return "as good within the error bars"
        return "not as good, by more than the error bars" if worse > 0 else "better, by more than the error bars"

    def explain(self, form: str, higher_is_better: bool = False) -> str:
        """ "-0.12 ± 0.05 (standard error): better ...", or "-0.12" for one seed."""
        verdict = self.verdict(higher_is_better)
        return self.show(form) if verdict is None else f"{self.show(form)} (standard error): {verdict}"

    def show(self, form: str = ".2f") -> str:
        """ "-0.12 ± 0.05"."""
        mean = format(self.mean, f"+{form}")
        return mean if self.error is None else f"{mean} ± {format(self.error, form)}"


def paired(ours: BySeed, theirs: BySeed) -> Difference:
    """The difference under equal seeds: what both share in one, such as a lucky training run, is not in its error."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"seeds {sorted(ours)} and {sorted(theirs)} are not the same: compare under equal seeds")
    differences = [ours[seed] - theirs[seed] for seed in ours]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Difference(fmean(differences), error, len(differences))


def best_by_others(candidates: Mapping[str, BySeed]) -> dict[int, str]:
    """For each seed the candidate with the lowest mean over the other seeds.

    The lowest of many means is low by luck too; a choice that has not seen the seed it is judged by is not. With one
    seed there are no others, and the choice is by that one.
    """
    seeds = list(next(iter(candidates.values())))

    def mean_without(seed: int, name: str) -> float:
        return fmean([value for other, value in candidates[name].items() if other != seed or len(seeds) == 1])

    def best(seed: int) -> str:
        return min(candidates, key=lambda name: mean_without(seed, name))

    return {seed: best(seed) for seed in seeds}


def how_chosen(seeds: int) -> str:
    """How `best_by_others` chose by FD, in words for a report."""
    return "chosen for each seed by the FD of the others" if seeds > 1 else "chosen by this very FD, which flatters it"


def under_seeds(seeds: int) -> str:
    """ "3 seeds, each with models of its own"."""
    return f"{seeds} seeds, each with models of its own" if seeds > 1 else "one seed"


def no_error_bars(seeds: int) -> list[str]:
    """What the summary of a report says, once, if it rests on one seed."""
    return [] if seeds > 1 else ["One seed has no error bars: a difference here may have the other sign under another."]


def seed_guide(seeds: int) -> list[tuple[str, str]]:
    """How to read numbers over the seeds, which one seed does not have."""
    spread = ("Mean ± standard deviation", "over the seeds, which change training, initial noise and samples.")
    return [spread, CONFIDENCE] if seeds > 1 else []
