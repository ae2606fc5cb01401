"""Averages of any width, made after the training from the few that it stored.

An average of the weights is its profile: how much the weights of each moment count in it. A profile that was not
tracked is combined from stored ones, of other moments and widths, by least squares; the same combination of the stored
weights is then the average. Profiles are the power functions of EDM2 (Karras et al. 2024, section 3.2 and Algorithm 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adm.checkpoints import format as checkpoint_format
from adm.runtime.errors import UsageError
from adm.runtime.files import DamagedDirectoryError
from adm.runtime.text import shown_path
from adm.training.ema import gamma_of_std, std_of_gamma
from adm.training.snapshots import Snapshot, damaged, stored_snapshots

__all__ = ["Fit", "Profile", "Synthesis", "fit_profile", "plan_synthesis", "synthesize"]

REDUNDANT = 1e-13
"""Squared norm of what profiles of norm 1 differ by, below which it is rounding, which must not be blown up."""


@dataclass(frozen=True)
class Profile:
    """(gamma + 1) t^gamma / updates^(gamma + 1) on 0 < t <= updates, and 0 after: what t counts in an average."""

    updates: int
    gamma: float


@dataclass(frozen=True, eq=False)
class Fit:
    """coefficients: of the given profiles, float64, of sum 1. error: the norm of what is missing, of the target's."""

    coefficients: NDArray[np.float64]
    error: float


def fit_profile(target: Profile, stored: Sequence[Profile]) -> Fit:
    """The combination of the stored profiles that is nearest to the target, in the mean square over the run.

    The coefficients add up to 1, so that weights that never change stay as they are (EDM2 Algorithm 3 solves without
    and normalizes). A target that is stored gets the coefficient 1 and all others 0.
    """
    t = np.array([p.updates for p in stored], float) / target.updates
    g = np.array([p.gamma for p in stored], float)
    gram = inner(t[:, None], g[:, None], t, g)
    toward = inner(t, g, np.float64(1), np.float64(target.gamma))
    square = float(inner(np.float64(1), np.float64(target.gamma), np.float64(1), np.float64(target.gamma)))
    # The nearest one, and combinations of differences from it: the sum is 1 whatever is solved for.
    base = int(np.argmin(np.diag(gram) - 2 * toward))
    coefficients = np.zeros(len(stored))
    coefficients[base] = 1
    if stored[base] != target:
        rest = np.delete(np.arange(len(stored)), base)
        differences = gram[np.ix_(rest, rest)] - gram[rest, base][:, None] - gram[rest, base] + gram[base, base]
        right = toward[rest] - gram[rest, base] - toward[base] + gram[base, base]
        coefficients[rest] = solve(differences, right, np.sqrt(np.diag(gram)[rest]))
        coefficients[base] -= coefficients[rest].sum()
    missing = float(coefficients @ gram @ coefficients - 2 * coefficients @ toward) + square
    return Fit(coefficients, math.sqrt(max(missing, 0) / square))


def inner(
    t: NDArray[np.float64] | np.float64,
    g: NDArray[np.float64] | np.float64,
    t_other: NDArray[np.float64] | np.float64,
    g_other: NDArray[np.float64] | np.float64,
) -> NDArray[np.float64]:
    """The integral of the product of two profiles (EDM2 Eq. 151); the one that ends later has the power outside."""
    first, last = np.minimum(t, t_other), np.maximum(t, t_other)
    outside = np.where(t >= t_other, g, g_other)
    return (g + 1) * (g_other + 1) / (g + g_other + 1) * (first / last) ** outside / last


def solve(matrix: NDArray[np.float64], right: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The solution of a positive semidefinite system that is smallest, in units of the scale, where it is free."""
    values, vectors = np.linalg.eigh(matrix / scale[:, None] / scale)
    kept = values > REDUNDANT
    return vectors[:, kept] @ ((vectors[:, kept].T @ (right / scale)) / values[kept]) / scale


@dataclass(frozen=True, eq=False)
class Synthesis:
    """An average that can be made: of weights up to the snapshot `target`, as t^gamma.

    snapshots: all that it may be made of. parts: (snapshot, group, coefficient) of all that it is made of. error: that
    of its profile, as a share.
    """

    target: Snapshot
    gamma: float
    snapshots: tuple[Snapshot, ...]
    parts: tuple[tuple[Snapshot, str, float], ...]
    error: float

    def tensors(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Tensor]:
        """The averaged weights, summed in float64; what is no floating point number is that of the target.

        on_progress: called with (snapshots read, of all). Raises DamagedError, which names the snapshot.
        """
        by_snapshot: dict[Snapshot, dict[str, float]] = {self.target: {}}
        for snapshot, group, coefficient in self.parts:
            by_snapshot.setdefault(snapshot, {})[group] = coefficient
        kinds: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        for done, (snapshot, coefficients) in enumerate(by_snapshot.items()):
            groups = load_groups(snapshot, coefficients or list(self.target.gammas)[:1])
            if not kinds:  # the target comes first
                kinds = next(iter(groups.values()))
                sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in kinds.items()}
            for group, coefficient in coefficients.items():
                if {name: value.shape for name, value in groups[group].items()} != {
                    n: v.shape for n, v in sums.items()
                }:
                    raise damaged(snapshot.directory, f"{group}.safetensors: the weights of another network")
                for name, value in groups[group].items():
                    sums[name].add_(value, alpha=coefficient)
            on_progress(done + 1, len(by_snapshot))
        return {
            name: sums[name].to(value.dtype) if value.is_floating_point() else value for name, value in kinds.items()
        }

    def save(self, directory: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Write it as a new checkpoint directory that `adm.load` reads; UsageError for one that exists."""
        model = load_checkpoint(self.target, ()).documents.get("model")
        provenance = {
            "run": self.target.directory.parents[1].name,
            "step": self.target.step,
            "gamma": self.gamma,
            "std": std_of_gamma(self.gamma),
            "fit_error": self.error,
            "parts": [{"step": s.step, "group": group, "coefficient": c} for s, group, c in self.parts],
        }
        documents = {"model": model, "provenance": provenance}
        checkpoint_format.save(directory, tensors={"ema": self.tensors(on_progress)}, documents=documents)


def load_groups(snapshot: Snapshot, groups: Sequence[str] | Mapping[str, float]) -> dict[str, dict[str, Tensor]]:
    return load_checkpoint(snapshot, tuple(groups)).tensors


def load_checkpoint(snapshot: Snapshot, groups: tuple[str, ...]) -> checkpoint_format.Checkpoint:
    try:
        return checkpoint_format.load(snapshot.directory, groups=groups)
    except DamagedDirectoryError as error:
        raise damaged(snapshot.directory, error.reason) from error


def plan_synthesis(run: Path, gamma: float, step: int | None = None) -> Synthesis:
    """The average of the run up to a step (None: the last that was stored), with weights as t^gamma.

    Reads no weights yet. Raises UsageError when the run has no snapshots or none of that step.
    """
    if not run.is_dir():
        raise UsageError(f"{shown_path(run)}: no such run. Give the directory that adm train wrote.")
    snapshots = [snapshot for snapshot in stored_snapshots(run) if snapshot.updates > 0]
    if not snapshots:
        raise UsageError(
            f"{shown_path(run)}: this run stored no snapshots of its averages. Train with --set ema.snapshot_every=N "
            "(30 of them in a run are good) and --set ema.others=16.97."
        )
    by_step = {snapshot.step: snapshot for snapshot in snapshots}
    step = snapshots[-1].step if step is None else step
    if step not in by_step:
        near = sorted(sorted(by_step, key=lambda stored: abs(stored - step))[:3])
        raise UsageError(
            f"{shown_path(run)}: no snapshot of step {step}. Choose one of the {len(by_step)} that are there, such as "
            f"{', '.join(map(str, near))}."
        )
    target = by_step[step]
    usable = tuple(snapshot for snapshot in snapshots if snapshot.step <= step)
    # The same number of updates twice, where steps were skipped between, is the same average.
    owners = {Profile(s.updates, gamma): (s, group) for s in usable for group, gamma in s.gammas.items()}
    fit = fit_profile(Profile(target.updates, gamma), list(owners))
    chosen = zip(owners.values(), fit.coefficients.tolist(), strict=True)
    parts = tuple((snapshot, group, coefficient) for (snapshot, group), coefficient in chosen if coefficient)
    return Synthesis(target, gamma, usable, parts, fit.error)


def synthesize(
    run: Path, std: float | None = None, step: int | None = None, *, gamma: float | None = None
) -> dict[str, Tensor]:
    """The averaged weights of a run under another width, from its snapshots: std of the run's length, or gamma.

    Raises UsageError as `plan_synthesis`, and ValueError for a width that cannot be.
    """
    if (std is None) == (gamma is None):
        raise ValueError("an average has one width: give std or gamma")
    width = std_of_gamma(float(gamma or 0)) if std is None else std  # refuses a gamma that cannot be
    return plan_synthesis(run, gamma_of_std(width) if gamma is None else float(gamma), step).tensors()
