"""A run directory: start it, continue it, leave it in order. The same call does whichever is due."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.model_document import describe_model, make_schedule
from adm.data import Dataset, Loader, grid, open_dataset, save_png
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import EncoderClassifier, UNet
from adm.runtime import files, randomness
from adm.runtime.config import to_dict
from adm.runtime.errors import DataError, DivergedError, StoppedError
from adm.runtime.text import shown_path
from adm.training.config import DiffusionTraining, TrainConfig
from adm.training.finetune import Source, check_source, open_source, start_from
from adm.training.preview import preview
from adm.training.resume import refuse_foreign, restore
from adm.training.runlog import RunLog
from adm.training.trainer import StepResult, Trainer

__all__ = ["Progress", "new_model", "train"]


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step; `notes` are lines worth showing, once each."""

    step: int
    num_steps: int
    result: StepResult | None = None
    notes: tuple[str, ...] = ()


def train(
    config: TrainConfig,
    out: Path,
    device: torch.device | str = "cpu",
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    dataset: Dataset | None = None,
    source: Source | None = None,
    on_grid: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train until `loop.steps`, from the newest intact checkpoint in `out` if there is one; returns its path.

    The result is the same, bit for bit, as of a run that was never interrupted (same machine and versions).
    stop_requested is asked after each step; when true the run is saved and StoppedError raised. dataset and source: the
    data of `data.path` and the model of `source`, if already open; a run with a checkpoint needs no source. on_grid:
    called with (images done, in all) while a sample grid is made. Raises UsageError when `out` holds another run,
    DataError, ResourceError, and DivergedError with nothing bad saved.
    """
    dataset = open_dataset(config.data.path, channels=config.network.in_channels) if dataset is None else dataset
    checkpoints = out / "checkpoints"
    if not checkpoint_format.steps(checkpoints):  # what cannot begin leaves no directory behind
        check_data(config, dataset)
        make_loader(config, dataset)
        source = opened(config, source)
    model = new_model(config, dataset.class_names, device)
    with ExitStack() as stack:
        refuse_foreign(out)
        lock = stack.enter_context(files.lock(out / ".lock", f"run {shown_path(out)!r}"))
        newest, notes = checkpoint_format.newest_intact(checkpoints, set_aside=True)
        for folder in (out, checkpoints, out / "samples"):
            if folder.is_dir():
                files.remove_partials(folder)  # what a killed run left
        if newest is None:
            check_data(config, dataset)
            source = opened(config, source)
            notes += [] if source is None else start_from(model, source)
        trainer = Trainer(model, config)
        if newest is not None:
            notes += restore(trainer, newest, config, dataset)
        on_progress(Progress(trainer.step, config.loop.steps, notes=tuple(notes)))
        if newest is not None and trainer.step >= config.loop.steps:
            return newest
        files.write_json(out / "config.json", to_dict(config))
        log = RunLog(out, trainer.step, config.loop.log_every, lock.check)
        stack.callback(log.close)
        run = _Run(trainer, config, out, lock, dataset, on_grid)
        return run.loop(make_loader(config, dataset), log, on_progress, stop_requested)


def opened(config: TrainConfig, source: Source | None) -> Source | None:
    """The model that a new run of this config begins with, which fits it; None for initial weights."""
    if config.source is None:
        return None
    source = open_source(config.source, config.job) if source is None else source
    check_source(config, source)
    return source


class _Run:
    """The loop and what it writes."""

    def __init__(
        self,
        trainer: Trainer,
        config: TrainConfig,
        out: Path,
        lock: files.Lock,
        dataset: Dataset,
        on_grid: Callable[[int, int], None],
    ) -> None:
        self.trainer, self.config, self.out, self.lock, self.dataset = trainer, config, out, lock, dataset
        self.on_grid = on_grid
        self.saved_step = trainer.step if trainer.step else None

    def loop(
        self,
        loader: Loader,
        log: RunLog,
        on_progress: Callable[[Progress], None],
        stop_requested: Callable[[], bool],
    ) -> Path:
        trainer, loop = self.trainer, self.config.loop
        if trainer.step and trainer.step % loop.sample_every == 0 and not self.grid_path.exists():
            self.save_grid(stop_requested)  # the run was stopped while it was made
        for batch in loader.batches(trainer.position):
            try:
                result = trainer.advance(batch)
            except DivergedError as error:
                raise DivergedError(f"{error} {self._last_good()}") from None
            log.add(result, loop.batch_size)
            on_progress(Progress(trainer.step, loop.steps, result))
            done = trainer.step >= loop.steps
            # The grid first: a run killed between the two does this step again, and misses no grid.
            if done or trainer.step % loop.sample_every == 0:
                with log.paused():
                    self.save_grid(stop_requested)
            stopped = stop_requested() and not done
            if done or stopped or trainer.step % loop.save_every == 0:
                log.flush(loop.batch_size)
                with log.paused():
                    self.save()
            if done:
                break
            if stopped:
                raise StoppedError(f"stopped at step {trainer.step}; run the same command to continue.")
        return self.out / "checkpoints" / checkpoint_format.step_name(trainer.step)

    def save(self) -> None:
        """A checkpoint of this step, then retention."""
        trainer, checkpoints = self.trainer, self.out / "checkpoints"
        directory = checkpoints / checkpoint_format.step_name(trainer.step)
        if trainer.step == self.saved_step:
            return
        self.lock.check()
        files.make_directory(checkpoints)
        documents = {
            "model": describe_model(trainer.model),
            "config": to_dict(self.config),
            "state": trainer.state() | {"data": self.dataset.fingerprint, "torch": torch.__version__},
        }
        try:
            checkpoint_format.save(directory, tensors=trainer.tensors(), documents=documents)
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self._last_good()}") from None
        self.saved_step = trainer.step
        checkpoint_format.retain(checkpoints, self.config.loop.keep)

    @property
    def grid_path(self) -> Path:
        return self.out / "samples" / f"{checkpoint_format.step_name(self.trainer.step)}.png"

    def save_grid(self, stop_requested: Callable[[], bool]) -> None:
        """Samples of the averaged weights from fixed seeds, to watch while training; given up when asked to stop."""
        if not isinstance(self.trainer.model, DiffusionModel):
            return

        def report(done: int, total: int) -> None:
            self.on_grid(done, total)
            if stop_requested():
                raise StoppedError

        try:
            images = preview(self.trainer.model, self.trainer.ema.weights, on_progress=report)
        except StoppedError:
            return
        self.lock.check()
        files.make_directory(self.grid_path.parent)
        columns = int(len(images) ** 0.5)
        save_png(self.grid_path, grid(images, columns, scale=max(1, 32 // images.shape[1])))

    def _last_good(self) -> str:
        if self.saved_step is None:
            return "No checkpoint was saved before."
        return f"The last checkpoint is step {self.saved_step}."


def new_model(
    config: TrainConfig, class_names: tuple[str, ...] = (), device: torch.device | str = "cpu"
) -> DiffusionModel | NoisyClassifier:
    """The config's model with initial weights, which are a function of the seed."""
    schedule = make_schedule(config.schedule)
    model: DiffusionModel | NoisyClassifier
    with randomness.fork(seed=config.loop.seed, stream="initial weights"):
        if isinstance(config, DiffusionTraining):
            model = DiffusionModel(UNet(config.network), schedule, config.mean, config.variance, config.time_scale)
        else:
            model = NoisyClassifier(EncoderClassifier(config.network), schedule, config.time_scale)
    model.class_names = class_names if model.num_classes is not None else ()
    return model.to(device)


def make_loader(config: TrainConfig, dataset: Dataset) -> Loader:
    return Loader(
        dataset,
        config.network.size,
        config.loop.batch_size,
        config.loop.seed,
        flip=config.data.flip,
        random_crop=config.data.random_crop,
        workers=config.data.workers,
    )


def check_data(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse data that the network was not made for, before anything is written."""
    if dataset.channels != config.network.in_channels:
        raise DataError(
            f"{config.data.path}: images have {dataset.channels} channel(s), the network takes "
            f"{config.network.in_channels}. Set network.in_channels."
        )
    classes = config.network.num_classes
    if classes is None:
        return
    if not dataset.class_names:
        raise DataError(f"{config.data.path}: no classes; put the images of each class into a folder of its own.")
    if len(dataset.class_names) > classes:
        raise DataError(
            f"{config.data.path}: {len(dataset.class_names)} classes, but network.num_classes is {classes}. Raise it."
        )
