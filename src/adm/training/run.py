"""A run directory: start it, continue it, leave it in order. The same call does whichever is due."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.model_document import describe_model
from adm.data import Batch, Dataset, Loader, grid, save_png
from adm.diffusion.model import DiffusionModel
from adm.runtime import files
from adm.runtime.config import to_dict
from adm.runtime.distributed import World
from adm.runtime.errors import DivergedError, ResourceError, StoppedError, is_out_of_memory
from adm.runtime.text import shown_path
from adm.training._wandb import open_sink
from adm.training.build import check_data, make_loader, new_model
from adm.training.config import ClassifierTraining, TrainConfig, UpsamplerTraining
from adm.training.finetune import Source, check_source, open_source, start_from
from adm.training.images import fingerprint_of, open_held_out, open_training
from adm.training.memory import too_little_memory
from adm.training.preview import preview
from adm.training.resume import refuse_foreign, restore
from adm.training.runlog import RunLog, read_log
from adm.training.snapshots import discard_snapshots, save_snapshot
from adm.training.trainer import StepResult, Trainer
from adm.training.upsampling import preview_upsampler
from adm.training.validation import Validation, draw

__all__ = ["Progress", "train"]


FEW = 200


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step; `notes` are lines worth showing, once each. seconds: of training."""

    step: int
    num_steps: int
    result: StepResult | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Watch:
    """What a caller of `train` wants to hear of it, and how it stops it."""

    on_progress: Callable[[Progress], None]
    stop_requested: Callable[[], bool]
    on_aside: Callable[[str, int, int], None]


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
    world.agree("settings", json.dumps(to_dict(config), sort_keys=True))
    world.agree("images", fingerprint_of(dataset, config))
    checkpoints = out / "checkpoints"
    first = world.rank == 0
    if not checkpoint_format.steps(checkpoints):  # what cannot begin leaves no directory behind
        check_data(config, dataset)
        make_loader(config, dataset, world)
        source = opened(config, source)
    validation = make_validation(config, dataset)
    model = new_model(config, dataset.class_names, device)
    with ExitStack() as stack:
        notes: list[str] = []
        lock = None
        if first:
            refuse_foreign(out)
            lock = stack.enter_context(files.lock(out / ".lock", f"run {shown_path(out)!r}"))
            newest, notes = checkpoint_format.newest_intact(checkpoints, set_aside=True)
            for folder in (out, checkpoints, out / "samples"):
                if folder.is_dir():
                    files.remove_partials(folder)  # what a killed run left
        name = world.from_first(newest.name if first and newest is not None else "")
        newest = checkpoints / name if name else None
        if newest is None:
            check_data(config, dataset)
            source = opened(config, source)
            notes += [] if source is None else start_from(model, source)
        trainer = Trainer(model, config, world)
        if newest is not None:
            notes += restore(trainer, newest, config, dataset)
        run = _Run(trainer, config, out, dataset, validation, watch, world)
        run.report(notes=tuple(notes))
        if newest is not None and trainer.finished and not world.any(first and bool(run.pending())):
            return newest
        if lock is not None:
            files.write_json(out / "config.json", to_dict(config))
            run.lock = lock
            discard_snapshots(out, after=trainer.step)
            sink = open_sink(out, to_dict(config), config.loop.wandb)
            run.log = RunLog(out, trainer.step, config.loop.log_every, lock.check, sink)
            stack.callback(run.log.close)
        return run.loop(make_loader(config, dataset, world))


def make_validation(config: TrainConfig, dataset: Dataset) -> Validation | None:
    """What is measured on the way and at the end.

    A classifier without data to validate on is measured on a few training images at the end: better than not to know at
    which noise it sees anything. The lines say so.
    """
    held_out = open_held_out(config.data, config.network.in_channels)
    if held_out is not None:
        return Validation(config, held_out, dataset)
    if isinstance(config, ClassifierTraining):
        return Validation(config, dataset, dataset, num=FEW)
    return None


def opened(config: TrainConfig, source: Source | None) -> Source | None:
    """The model that a new run of this config begins with, which fits it; None for initial weights."""
    if config.source is None:
        return None
    source = open_source(config.source, config.job) if source is None else source
    check_source(config, source)
    return source


class _Run:
    """The loop and what it writes. lock and log are process 0's."""

    lock: files.Lock | None = None
    log: RunLog | None = None

    def __init__(
        self,
        trainer: Trainer,
        config: TrainConfig,
        out: Path,
        dataset: Dataset,
        validation: Validation | None,
        watch: Watch,
        world: World,
    ) -> None:
        self.trainer, self.config, self.out, self.dataset, self.watch = trainer, config, out, dataset, watch
        self.validation, self.world = validation, world
        self.saved_step = trainer.step if trainer.step else None

    def loop(self, loader: Loader) -> Path:
        trainer, loop = self.trainer, self.config.loop
        if trainer.step:
            for what, work in self.pending().items():
                self.aside(what, work)
        if trainer.finished:
            return self.checkpoint_path
        self.world.phase(f"loading the images of step {trainer.step + 1}")
        for batch in loader.batches(trainer.position):
            self.world.phase(f"step {trainer.step + 1}")
            self.report(self.advance(batch))
            done = trainer.finished
            # Pictures first: a run killed between the two does this step again, and misses none.
            for what, work in self.due_now().items():
                self.aside(what, work)
            if self.snapshot_due():  # before the checkpoint, for the same reason
                self.aside("saving", self.save_snapshot)
            stopped = not done and self.world.any(self.watch.stop_requested())
            if done or stopped or self.due(loop.save_every):
                self.aside("saving", self.save)
            if done:
                break
            if stopped:
                raise StoppedError(f"stopped at step {trainer.step}; run the same command to continue.")
            self.world.phase(f"loading the images of step {trainer.step + 1}")
        return self.checkpoint_path

    @property
    def checkpoint_path(self) -> Path:
        return self.out / "checkpoints" / checkpoint_format.step_name(self.trainer.step)

    def due_now(self) -> dict[str, Callable[[], None]]:
        """What is to be made of this step besides its checkpoint."""
        loop, done = self.config.loop, self.trainer.finished
        works: dict[str, Callable[[], None]] = {}
        wanted = isinstance(self.trainer.model, DiffusionModel) and loop.sample_every is not None
        if wanted and (done or self.due(loop.sample_every)):
            works["sample grid"] = self.save_grid
        regularly = self.config.data.validation is not None and self.due(loop.validate_every)
        if self.validation is not None and (done or regularly):
            works["validation"] = self.validate
        return works

    def pending(self) -> dict[str, Callable[[], None]]:
        """What is due now and not there, since the run was stopped while it was made."""
        works = self.due_now()
        if self.grid_path.exists():
            works.pop("sample grid", None)
        if any(line["step"] == self.trainer.step for line in read_log(self.out / "validation.jsonl")):
            works.pop("validation", None)
        return works

    def due(self, every: int | None) -> bool:
        return every is not None and self.trainer.step % every == 0

    def snapshot_due(self) -> bool:
        """Also at the end, where averages of all of the run are wanted."""
        every = self.config.ema.snapshot_every
        return every is not None and (self.due(every) or self.trainer.finished)

    def advance(self, batch: Batch) -> StepResult:
        try:
            result = self.trainer.advance(batch)
        except DivergedError as error:
            raise DivergedError(f"{error} {self._last_good()}") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            step = self.trainer.step + 1
            raise ResourceError(
                too_little_memory(self.config, step, error, self.trainer.device, self.world.size)
            ) from error
        if self.log is not None:
            self.log.add(result, self.config.loop.batch_size)
        return result

    def report(self, result: StepResult | None = None, notes: tuple[str, ...] = ()) -> None:
        if result is not None and result.skipped is not None:
            notes = (*notes, f"{result.skipped}: skipped, as loop.on_nan allows")
        if self.world.rank == 0:
            step, steps = self.trainer.step, self.config.loop.steps
            self.watch.on_progress(Progress(step, steps, result, notes, self.trainer.seconds))

    def aside(self, what: str, work: Callable[[], None]) -> None:
        """Work of process 0 for which the others wait, and during which no time of training passes."""
        self.world.phase(f"{what} after step {self.trainer.step}")
        if self.log is not None:
            with self.log.paused():
                work()
        self.world.wait(what)

    def save(self) -> None:
        """A checkpoint of this step, then retention."""
        trainer, checkpoints, directory = self.trainer, self.out / "checkpoints", self.checkpoint_path
        assert self.log is not None and self.lock is not None
        self.log.flush(self.config.loop.batch_size)
        if trainer.step == self.saved_step:
            return
        self.lock.check()
        files.make_directory(checkpoints)
        documents = {
            "model": describe_model(trainer.model),
            "config": to_dict(self.config),
            "state": trainer.state() | {"data": fingerprint_of(self.dataset, self.config), "torch": torch.__version__},
        }
        try:
            checkpoint_format.save(directory, tensors=trainer.tensors(), documents=documents)
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self._last_good()}") from None
        self.saved_step = trainer.step
        checkpoint_format.retain(checkpoints, self.config.loop.keep)

    def save_snapshot(self) -> None:
        assert self.lock is not None
        self.lock.check()
        trainer = self.trainer
        try:
            save_snapshot(self.out, trainer.step, trainer.ema, describe_model(trainer.model))
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self._last_good()}") from None

    @property
    def grid_path(self) -> Path:
        return self.out / "samples" / f"{checkpoint_format.step_name(self.trainer.step)}.png"

    def save_grid(self) -> None:
        """Samples of the averaged weights from fixed seeds, to watch while training; given up when asked to stop."""
        model, weights = self.trainer.model, self.trainer.ema.weights
        assert isinstance(model, DiffusionModel)

        def report(done: int, total: int) -> None:
            self.watch.on_aside("sample grid", done, total)
            if self.watch.stop_requested():
                raise StoppedError

        try:
            if isinstance(self.config, UpsamplerTraining):
                shown = self.validation.dataset if self.validation is not None else self.dataset
                picture = preview_upsampler(model, weights, shown, self.config, on_progress=report)
            else:
                images = preview(model, weights, on_progress=report)
                picture = grid(images, int(len(images) ** 0.5), scale=max(1, 32 // images.shape[1]))
        except StoppedError:
            return
        assert self.lock is not None
        self.lock.check()
        files.make_directory(self.grid_path.parent)
        save_png(self.grid_path, picture)
        if self.log is not None:
            self.log.picture(self.grid_path, self.trainer.step)

    def validate(self) -> None:
        """A line of validation.jsonl, its numbers in the log, and their picture."""
        assert self.validation is not None and self.lock is not None and self.log is not None

        def report(done: int, total: int) -> None:
            self.watch.on_aside("validation", done, total)
            if self.watch.stop_requested():
                raise StoppedError

        trainer, before = self.trainer, read_log(self.out / "validation.jsonl")
        try:
            result = self.validation(trainer.model, trainer.ema.weights, report, trainer.step, before)
        except StoppedError:
            return
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self._last_good()}") from None
        self.lock.check()
        self.log.measured(trainer.step, result)
        draw(result, self.out / "validation.png")
        lines = result["lines"] if trainer.finished else [*result["lines"][:1], *result["overfit"]["notes"]]
        self.report(notes=tuple(lines))

    def _last_good(self) -> str:
        if self.saved_step is None:
            return "No checkpoint was saved before."
        return f"The last checkpoint is step {self.saved_step}."
