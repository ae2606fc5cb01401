"""A run directory: start it, continue it, leave it in order. The same call does whichever is due."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.data import Dataset
from adm.runtime import files
from adm.runtime.config import flat, to_dict
from adm.runtime.distributed import World
from adm.runtime.errors import DamagedError, ResourceError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.training._wandb import open_sink
from adm.training.build import check_data, make_loader, new_model
from adm.training.config import ClassifierTraining, TrainConfig
from adm.training.finetune import Source, check_source, open_source, start_from
from adm.training.gradients import check_portions
from adm.training.images import fingerprint_of, open_held_out, open_training
from adm.training.loop import Progress, RunLoop, Watch
from adm.training.resume import read_config, refuse_foreign, refuse_lost, restore
from adm.training.runlog import RunLog
from adm.training.snapshots import discard_snapshots
from adm.training.trainer import Trainer
from adm.training.validation import Validation

__all__ = ["Progress", "train"]


FEW = 200
"""Training images on which a classifier without held-out ones is measured."""


def train(
    config: TrainConfig,
    out: Path,
    device: torch.device | str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    dataset: Dataset | None = None,
    source: Source | None = None,
    on_aside: Callable[[str, int, int], None] = lambda what, done, total: None,
    world: World = World(),
) -> Path:
    """Train until `loop.steps`, from the newest intact checkpoint in `out` if there is one; returns its path.

    The result is the same, bit for bit, as of a run that was never interrupted (same machine, versions and number of
    processes; `loop.exact`: any number of them). dataset and source: the data of `data.path` and the model of `source`,
    if already open; a run with a checkpoint needs no source. world: the processes of the run, each of which calls this;
    process 0 alone writes and calls on_progress and on_aside. stop_requested is asked after each step; when true in any
    process the run is saved and StoppedError raised. on_aside: called with (what, done, in all) during a sample grid or
    a measurement. Raises UsageError when `out` holds another run, DataError, ResourceError, and DivergedError with
    nothing bad saved.
    """
    watch = Watch(on_progress, stop_requested, on_aside)
    if dataset is None:
        dataset = open_training(config.data, config.network.in_channels)
    check_agreement(config, dataset, world)
    check_portions(config.loop.batch_size, config.loop.microbatch, config.loop.exact, world)
    checkpoints = out / "checkpoints"
    first = world.rank == 0
    if not checkpoint_format.steps(checkpoints):  # what cannot begin leaves no directory behind
        check_data(config, dataset)
        make_loader(config, dataset, world)
        source = opened(config, source)
    validation = make_validation(config, dataset, world)
    model = new_model(config, dataset.class_names, device)
    with ExitStack() as stack:
        notes: list[str] = []
        lock = None
        if first:
            refuse_foreign(out)
            lock = stack.enter_context(files.lock(out / ".lock", f"run {shown_path(out)!r}"))
            newest, notes = newest_checkpoint(checkpoints)
            for folder in (out, checkpoints, out / "samples"):
                if folder.is_dir():
                    files.remove_partials(folder)  # what a killed run left
        name = world.from_first(newest.name if first and newest is not None else "")
        newest = checkpoints / name if name else None
        if newest is None:
            if first:
                notes += refuse_lost(out)
            check_data(config, dataset)
            source = opened(config, source)
            notes += [] if source is None else start_from(model, source)
        trainer = Trainer(model, config, world)
        if newest is not None:
            notes += restore(trainer, newest, config, dataset)
        run = RunLoop(trainer, config, out, dataset, validation, watch, world)
        # Of process 0, whose files they are: others may see them later, or not at all.
        pending = world.from_first(",".join(run.pending() if newest is not None else ()))
        if pending:
            notes.append(f"not there yet, and made now: the {pending.replace(',', ' and the ')} of step {trainer.step}")
        run.report(notes=tuple(notes))
        if lock is not None and newest is not None:
            # A run killed after its last save did not. config.json, which asks for fewer, may be damaged.
            keep = max(config.loop.keep, read_config(newest).loop.keep)
            if len(checkpoint_format.steps(checkpoints)) > keep:
                checkpoint_format.retain(checkpoints, keep)
        if newest is not None and trainer.finished and not pending:
            return newest
        with naming_last(run):
            if lock is not None:
                run.lock = lock
                files.make_directory(checkpoints)  # before the rest: where it is missing, it was removed
                discard_snapshots(out, after=trainer.step)
                sink = open_sink(out, to_dict(config), config.loop.wandb)
                run.log = RunLog(out, trainer.step, config.loop.log_every, lock.check, sink)
                stack.callback(run.log.close)
                files.write_json(out / "config.json", to_dict(config))  # after what an earlier beginning left is gone
            return run.loop(make_loader(config, dataset, world), pending.split(",") if pending else ())


def check_agreement(config: TrainConfig, dataset: Dataset, world: World) -> None:
    """DataError or UsageError, naming what differs, unless all processes see the same images and settings."""
    # The images first: settings follow from them. Where they lie may differ, such as on disks of the machines' own.
    about = f"{len(dataset):,} images in {len(dataset.class_names)} classes, fingerprint"
    world.agree("images", f"{about} {fingerprint_of(dataset, config)}")
    lines = [f"{name}={json.dumps(value)}" for name, value in flat(config).items() if name != "data.path"]
    world.agree("settings", "\n".join(lines), UsageError)


@contextmanager
def naming_last(run: RunLoop) -> Iterator[None]:
    """What the disk refuses says, too, which checkpoint is the last; of what replaced a run, nothing is known."""
    try:
        yield
    except ResourceError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise ResourceError(f"{error} {run.last_good()}") from error.__cause__


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint, None where there never was one, and a line on each newer one, which is set aside.

    Raises DamagedError when all are damaged, with nothing changed: to begin anew is not for a program to decide.
    """
    newest, damaged = checkpoint_format.newest_intact(checkpoints)
    if newest is None and damaged:
        raise DamagedError(
            f"{one_line(damaged[0], 300)} Bring an intact copy of {shown_path(checkpoints)} back, or choose another "
            "--out."
        )
    return checkpoint_format.newest_intact(checkpoints, set_aside=True) if damaged else (newest, damaged)


def make_validation(config: TrainConfig, dataset: Dataset, world: World) -> Validation | None:
    """What is measured on the way and at the end.

    A classifier without data to validate on is measured on a few training images at the end: better than not to know at
    which noise it sees anything. The lines say so.
    """
    held_out = open_held_out(config.data, config.network.in_channels)
    if held_out is not None:
        return Validation(config, held_out, dataset, processes=world.size)
    if isinstance(config, ClassifierTraining):
        return Validation(config, dataset, dataset, num=FEW, processes=world.size)
    return None


def opened(config: TrainConfig, source: Source | None) -> Source | None:
    """The model that a new run of this config begins with, which fits it; None for initial weights."""
    if config.source is None:
        return None
    source = open_source(config.source, config.job) if source is None else source
    check_source(config, source)
    return source
