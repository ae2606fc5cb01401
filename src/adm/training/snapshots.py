"""Copies of the averaged weights that a run keeps along its way, for averages of other widths afterwards.

``RUN/snapshots/step-00001200/`` is a checkpoint directory without the optimizer: `adm.load` reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adm.checkpoints import format as checkpoint_format
from adm.runtime import files
from adm.runtime.errors import DamagedError
from adm.runtime.files import DamagedDirectoryError
from adm.runtime.text import shown_path
from adm.training.ema import EMA

__all__ = ["Snapshot", "discard_snapshots", "save_snapshot", "stored_snapshots"]

FOLDER = "snapshots"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One stored copy. updates: how many weights its averages hold. gammas: group of tensors -> gamma."""

    directory: Path
    step: int
    updates: int
    gammas: Mapping[str, float]


def save_snapshot(out: Path, step: int, ema: EMA, model_document: Mapping[str, object]) -> Path:
    """Store all averages of power rule `ema` in the run directory; a copy of this step that is intact stays as it is.

    To be called before the checkpoint of the same step is saved, so that a run killed between the two misses none, and
    by the only writer. Raises what saving a checkpoint does: DivergedError, ResourceError.
    """
    if ema.config.kind != "power":
        raise ValueError("averages of the constant rule cannot be combined afterwards")
    directory = out / FOLDER / checkpoint_format.step_name(step)
    if directory.exists():
        try:
            files.verify_directory(directory)
        except DamagedDirectoryError:
            files.remove(directory)
        else:
            return directory
    tensors = ema.tensors()
    gammas = dict(zip(tensors, ema.config.values, strict=True))
    state = {"step": step, "ema_updates": ema.num_updates, "gammas": gammas}
    checkpoint_format.save(directory, tensors=tensors, documents={"model": model_document, "state": state})
    return directory


def discard_snapshots(out: Path, after: int) -> list[str]:
    """Remove the copies of steps above `after`, and what a killed writer left; returns the names of the copies.

    A run that goes on from step `after` makes them again; where it was given another rate or more minutes, those of the
    future that it left would be mixed with its own. after=0: of a run killed before its first checkpoint. To be called
    by the only writer.
    """
    folder = out / FOLDER
    if not folder.is_dir():
        return []
    files.remove_partials(folder)
    names = [checkpoint_format.step_name(step) for step in checkpoint_format.steps(folder) if step > after]
    for name in reversed(names):
        files.remove(folder / name)
    return names


def stored_snapshots(run: Path) -> list[Snapshot]:
    """The copies in a run directory, oldest first. Their tensors are not read; DamagedError for other damage."""
    folder = run / FOLDER
    return [_read(folder / checkpoint_format.step_name(step), step) for step in checkpoint_format.steps(folder)]


def _read(directory: Path, step: int) -> Snapshot:
    file = "state.json"
    try:
        records = files.read_manifest(directory)
        if file not in records:
            raise DamagedDirectoryError(directory, file, "not part of it")
        state = files.parse_json(files.read_recorded(directory, file, records[file]), directory / file)
    except DamagedDirectoryError as error:
        raise damaged(directory, error.reason) from error
    match state:
        case {"step": int(stated), "ema_updates": int(updates), "gammas": dict(gammas)} if (
            stated == step
            and all(isinstance(gamma, int | float) and gamma >= 0 for gamma in gammas.values())
            and all(f"{group}.safetensors" in records for group in gammas)
        ):
            return Snapshot(directory, step, updates, {group: float(gamma) for group, gamma in gammas.items()})
    raise damaged(directory, f"{file}: not that of a snapshot of this step")


def damaged(directory: Path, reason: str) -> DamagedError:
    """The refusal of one copy."""
    return DamagedError(f"{shown_path(directory)} is damaged ({reason}). Remove it: the others do without.")
