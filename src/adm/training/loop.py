"""The steps of a run, and what is written on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.model_document import describe_model
from adm.data import Batch, Dataset, Loader, save_png
from adm.diffusion.model import DiffusionModel
from adm.runtime import files
from adm.runtime.config import to_dict
from adm.runtime.distributed import World
from adm.runtime.errors import DamagedError, DivergedError, ResourceError, StoppedError, is_out_of_memory
from adm.runtime.files import DamagedDirectoryError
from adm.runtime.text import shown_path
from adm.training._guidance_advice import naming_run
from adm.training.config import TrainConfig, UpsamplerTraining
from adm.training.images import fingerprint_of
from adm.training.memory import too_little_memory
from adm.training.preview import preview, with_classes
from adm.training.runlog import RunLog, read_log
from adm.training.snapshots import save_snapshot
from adm.training.trainer import StepResult, Trainer
from adm.training.upsampling import preview_upsampler
from adm.training.validation import Validation, draw

__all__ = ["Progress", "RunLoop", "Watch"]


PHASE = 60
"""Characters of a phase that the other processes say."""


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


class RunLoop:
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
        self.given_up: list[str] = []
        self.saved_step = trainer.step if trainer.step else None

    def loop(self, loader: Loader, pending: Sequence[str]) -> Path:
        trainer, loop = self.trainer, self.config.loop
        self.asides(pending)
        self.world.phase(f"loading the images of step {trainer.step + 1}")
        for batch in () if trainer.finished else loader.batches(trainer.position, self.named):
            self.world.phase(f"step {trainer.step + 1}")
            self.report(self.advance(batch))
            if self.snapshot_due():  # before the checkpoint: a run killed between the two does this step again
                self.aside("saving", self.save_snapshot)
            if trainer.finished or self.due(loop.save_every):
                self.aside("saving", self.save)
            self.asides(self.due_now())  # after it: what fails here, or is given up, costs no step
            if trainer.finished:
                break
            if self.world.any(self.watch.stop_requested()):
                self.aside("saving", self.save)
                raise StoppedError(f"stopped at step {trainer.step}; run the same command to continue.")
            self.world.phase(f"loading the images of step {trainer.step + 1}")
        if self.world.any(bool(self.given_up)):
            raise StoppedError(
                f"stopped when step {trainer.step}, the last, was saved; run the same command for the "
                f"{' and the '.join(self.given_up) or 'rest'}."
            )
        return self.checkpoint_path

    @property
    def checkpoint_path(self) -> Path:
        return self.out / "checkpoints" / checkpoint_format.step_name(self.trainer.step)

    def due_now(self) -> list[str]:
        """What is to be made of this step besides its checkpoint."""
        loop, done = self.config.loop, self.trainer.finished
        names = []
        wanted = isinstance(self.trainer.model, DiffusionModel) and loop.sample_every is not None
        if wanted and (done or self.due(loop.sample_every)):
            names.append("sample grid")
        regularly = self.config.data.validation is not None and self.due(loop.validate_every)
        if self.validation is not None and (done or regularly):
            names.append("validation")
        return names

    def pending(self) -> list[str]:
        """What is due now and not there, since the run was stopped while it was made."""
        there = {"sample grid"} if self.grid_path.exists() else set()
        step, held_out = self.trainer.step, self.validation is not None and self.validation.held_out
        lines = read_log(self.out / "validation.jsonl")
        if any(line["step"] == step and line.get("held_out") == held_out for line in lines):
            there.add("validation")
        return [name for name in self.due_now() if name not in there]

    def asides(self, names: Iterable[str]) -> None:
        for name in names:
            self.aside(name, {"sample grid": self.save_grid, "validation": self.validate}[name])

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
            raise DivergedError(f"{error} {self.last_good()}") from None
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

    def named(self, line: str) -> None:
        """The image that this process waits for, said while it waits; of other processes the first one says it."""
        name = line.partition(" has not been read")[0].rpartition(" of ")[0] or line
        self.world.phase(name if len(name) <= PHASE else f"image …{name[len(name) - PHASE + 7 :]}")
        self.report(notes=(line,))

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
            raise DivergedError(f"step {trainer.step}: {error} {self.last_good()}") from None
        before, self.saved_step = self.saved_step, trainer.step
        try:
            checkpoint_format.retain(checkpoints, self.config.loop.keep)
        except DamagedDirectoryError as error:
            self.saved_step = before
            then = f"run the same command again: it goes on from step {before}."
            if before is None:
                then = f"choose another --out. {self.last_good()}"
            raise DamagedError(
                f"{shown_path(directory)} was written and reads back damaged ({error.reason}). Check the disk and the "
                f"memory, then {then}"
            ) from error

    def save_snapshot(self) -> None:
        assert self.lock is not None
        self.lock.check()
        trainer = self.trainer
        try:
            save_snapshot(self.out, trainer.step, trainer.ema, describe_model(trainer.model))
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self.last_good()}") from None

    @property
    def grid_path(self) -> Path:
        return self.out / "samples" / f"{checkpoint_format.step_name(self.trainer.step)}.png"

    def save_grid(self) -> None:
        """Samples of the averaged weights from fixed seeds, to watch while training; given up when asked to stop."""
        trainer = self.trainer
        model, weights = trainer.model, trainer.ema.weights
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
                picture = with_classes(images, model)
        except StoppedError:
            self.given_up.append("sample grid")
            return
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self.last_good()}") from None
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
            self.given_up.append("validation")
            return
        except DivergedError as error:
            raise DivergedError(f"step {trainer.step}: {error} {self.last_good()}") from None
        self.lock.check()
        self.log.measured(trainer.step, result)
        draw(result, self.out / "validation.png")
        lines = result["lines"] if trainer.finished else [*result["lines"][:1], *result["overfit"]["notes"]]
        self.report(notes=tuple(naming_run(line, self.out) for line in lines))

    def last_good(self) -> str:
        """Where the run would go on."""
        if self.saved_step is None:
            return "No checkpoint was saved before."
        return f"The last checkpoint is step {self.saved_step}."
