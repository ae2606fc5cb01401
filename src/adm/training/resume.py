"""What a run directory holds already: whether it may be written to, and whether what is asked for continues it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from adm.checkpoints import format as checkpoint_format
from adm.data import Dataset, describe_difference
from adm.runtime import files
from adm.runtime.config import difference
from adm.runtime.errors import AdmError, DamagedError, DataError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.training.config import TrainConfig, parse_config
from adm.training.images import fingerprint_of
from adm.training.runlog import read_log
from adm.training.snapshots import FOLDER as SNAPSHOTS
from adm.training.trainer import Trainer

__all__ = ["MAY_CHANGE", "read_config", "refuse_changes", "refuse_foreign", "refuse_in_use", "refuse_lost", "restore"]

MAY_CHANGE = {
    "data.path",  # the images themselves are recognised by their fingerprint
    "data.labels_from",  # so are the labels
    "data.validation",
    "data.validation_labels_from",
    "data.workers",
    "ema.snapshot_every",
    "loop.keep",
    "loop.log_every",
    "loop.microbatch",
    "loop.minutes",
    "loop.on_nan",
    "loop.sample_every",
    "loop.save_every",
    "loop.steps",
    "loop.validate_every",
    "loop.wandb",
    "optimizer.lr",
    "source",  # it is recognised by source_sha256
}
"""What a continued run may be given anew; everything else defines the run."""


def restore(trainer: Trainer, newest: Path, config: TrainConfig, dataset: Dataset) -> list[str]:
    """Take up a checkpoint, if it belongs to this config and data; returns notes on what has changed."""
    checkpoint = checkpoint_format.load(newest)
    try:
        before = parse_config(checkpoint.documents["config"], f"{shown_path(newest)}/config.json")
    except UsageError as error:
        raise DamagedError(str(error)) from error
    if before.job != config.job:
        raise UsageError(f"{shown_path(newest)} is a {before.job} run, not {config.job}. Choose another --out.")
    changed = difference(before, config)
    refuse_changes((name, old, new) for name, old, new in changed if name not in MAY_CHANGE)
    state = checkpoint.documents["state"]
    if state["data"] != fingerprint_of(dataset, config):
        known = tuple(checkpoint.documents["model"]["class_names"])  # none of an unconditional run
        classes = describe_difference(known, dataset.class_names) if known else ""
        what = "the images are not those that this run was started with" + (f": {classes}" if classes else "")
        raise DataError(f"{config.data.path}: {what}. Bring the data back as they were, or choose another --out.")
    trainer.restore(checkpoint.tensors, state)
    notes = [_done(trainer) if trainer.finished else f"continuing from step {trainer.step}"]
    notes += [f"{name}: {old} -> {new}" for name, old, new in changed]
    if state["torch"] != torch.__version__:
        notes.append(f"torch {state['torch']} -> {torch.__version__}: bit-equality with before is not promised")
    return notes


def _done(trainer: Trainer) -> str:
    """That a run has been trained as far as it is to be, and what goes further."""
    step, loop = trainer.step, trainer.config.loop
    if step < loop.steps:
        return f"done: loop.minutes={loop.minutes:g} are over, at step {step}; more of them train on"
    trained = f"all {step} steps are trained" if step == loop.steps else f"{step} steps are trained, of {loop.steps}"
    return f"done: {trained}; --steps above {step} trains on"


def refuse_changes(changes: Iterable[tuple[str, Any, Any]]) -> None:
    """UsageError that lists (name, as it is, as it was asked for) of what a continued run cannot change."""
    fixed = [f"{name}={one_line(old, 40)}, you asked for {one_line(new, 40)}" for name, old, new in changes]
    if not fixed:
        return
    what = "the option" if len(fixed) == 1 else "these options"
    raise UsageError(
        f"this run was started with {one_line('; '.join(fixed), 420)}. "
        f"Leave {what} out to continue, or choose another --out."
    )


def read_config(run: Path) -> TrainConfig:
    """The config of a run directory."""
    path = run / "config.json"
    return parse_config(files.read_json(path), shown_path(path))


def refuse_foreign(out: Path) -> None:
    """A run starts in a directory that is new, empty, or a run."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{shown_path(out)} is a file. Choose another --out.")
    names = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    if names and not (names & {"checkpoints", "log.jsonl"} or is_run_config(out / "config.json")):
        raise UsageError(f"{shown_path(out)} is not empty and holds no run. Choose another --out.")


def refuse_in_use(out: Path) -> None:
    """ResourceError that names who trains in `out` now; said before images are read, and once more by the lock."""
    path = out / ".lock"
    if path.exists():
        with files.lock(path, f"run {shown_path(out)!r}"):
            pass


def refuse_lost(out: Path) -> list[str]:
    """DamagedError for a run without checkpoints that must have had one, or has copies that somebody kept of it.

    A run that was killed before or in its first save has its directory of checkpoints, made before anything else, has
    come no further than to the step of that save, and has made nothing that comes after it: such a one begins anew. So
    does one whose only checkpoint was removed just after it was saved, which looks the same. Returns a note of it.
    """
    measured = [line["step"] for line in read_log(out / "validation.jsonl")]
    logged = [line["step"] for line in read_log(out / "log.jsonl")]
    step = int(max([*logged, *measured, *checkpoint_format.steps(out / SNAPSHOTS)], default=0))
    if step == 0:
        return []
    saved = step in measured or (out / "samples" / f"{checkpoint_format.step_name(step)}.png").exists()
    try:
        loop = read_config(out).loop
        first_save = min(loop.save_every, loop.steps)
    except AdmError:
        first_save = 0
    if not (out / "checkpoints").is_dir() or step > first_save or (saved and step == first_save):
        raise DamagedError(
            f"{shown_path(out)} came to step {step} and has no checkpoint. Bring {shown_path(out / 'checkpoints')} "
            "back, or choose another --out."
        )
    return [f"no checkpoint is there, and none was saved as far as can be seen: its {step} steps are trained anew"]


def is_run_config(path: Path) -> bool:
    """Whether the file is ours: other programs write a config.json too, which must not be overwritten."""
    try:
        document = files.read_json(path)
    except AdmError:
        return False
    return isinstance(document, Mapping) and "job" in document
