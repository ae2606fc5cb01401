"""A run directory: start it, continue it, leave it in order. The same call does whichever is due."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.model_document import describe_model, make_schedule
from adm.data import Dataset, Loader, grid, open_dataset, save_png, to_uint8
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.guidance import guide
from adm.guidance.clip import Clip
from adm.nn import EncoderClassifier, UNet
from adm.runtime import files, randomness
from adm.runtime.config import difference, from_dict, to_dict
from adm.runtime.errors import AdmError, DamagedError, DataError, DivergedError, StoppedError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.sampling import SeededNoise, sample
from adm.sampling.ddim import DDIM
from adm.training.config import ClassifierTraining, DiffusionTraining, TrainConfig
from adm.training.runlog import RunLog
from adm.training.trainer import StepResult, Trainer

__all__ = ["Progress", "new_model", "read_config", "train"]

MAY_CHANGE = {
    "data.path",  # the images themselves are recognised by their fingerprint
    "data.workers",
    "loop.keep",
    "loop.log_every",
    "loop.microbatch",
    "loop.sample_every",
    "loop.save_every",
    "loop.steps",
    "optimizer.lr",
}
"""What a continued run may be given anew; everything else defines the run."""


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
) -> Path:
    """Train until `loop.steps`, from the newest intact checkpoint in `out` if there is one; returns its path.

    The result is the same, bit for bit, as of a run that was never interrupted (same machine and versions).
    stop_requested is asked after each step; when true the run is saved and StoppedError raised. dataset: the data of
    `data.path`, if already open. Raises UsageError when `out` holds another run, DataError, ResourceError, and
    DivergedError with nothing bad saved.
    """
    dataset = open_dataset(config.data.path) if dataset is None else dataset
    check_data(config, dataset)
    loader = make_loader(config, dataset)
    model = new_model(config, dataset.class_names, device)  # what cannot be built leaves no directory behind
    with ExitStack() as stack:
        checkpoints = out / "checkpoints"
        refuse_foreign(out)
        lock = stack.enter_context(files.lock(out / ".lock", f"run {shown_path(out)!r}"))
        newest, notes = checkpoint_format.newest_intact(checkpoints, set_aside=True)
        for folder in (out, checkpoints, out / "samples"):
            if folder.is_dir():
                files.remove_partials(folder)  # what a killed run left
        trainer = Trainer(model, config)
        if newest is not None:
            notes += restore(trainer, newest, config, dataset)
        on_progress(Progress(trainer.step, config.loop.steps, notes=tuple(notes)))
        if newest is not None and trainer.step >= config.loop.steps:
            return newest
        files.write_json(out / "config.json", to_dict(config))
        log = RunLog(out, trainer.step, config.loop.log_every)
        stack.callback(log.close)
        run = _Run(trainer, config, out, lock, dataset)
        return run.loop(loader, log, on_progress, stop_requested)


class _Run:
    """The loop and what it writes."""

    def __init__(self, trainer: Trainer, config: TrainConfig, out: Path, lock: files.Lock, dataset: Dataset) -> None:
        self.trainer, self.config, self.out, self.lock, self.dataset = trainer, config, out, lock, dataset
        self.saved_step = trainer.step if trainer.step else None

    def loop(
        self,
        loader: Loader,
        log: RunLog,
        on_progress: Callable[[Progress], None],
        stop_requested: Callable[[], bool],
    ) -> Path:
        trainer, loop = self.trainer, self.config.loop
        for batch in loader.batches(trainer.position):
            try:
                result = trainer.advance(batch)
            except DivergedError as error:
                raise DivergedError(f"{error} {self._last_good()}") from None
            log.add(result, loop.batch_size)
            on_progress(Progress(trainer.step, loop.steps, result))
            done = trainer.step >= loop.steps
            stopped = stop_requested() and not done
            # The grid first: a run killed between the two does this step again, and misses no grid.
            if done or trainer.step % loop.sample_every == 0:
                self.save_grid()
            if done or stopped or trainer.step % loop.save_every == 0:
                log.flush(loop.batch_size)
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

    def save_grid(self) -> None:
        """Samples of the averaged weights from fixed seeds, to watch while training."""
        if not isinstance(self.trainer.model, DiffusionModel):
            return
        path = self.out / "samples" / f"{checkpoint_format.step_name(self.trainer.step)}.png"
        files.make_directory(path.parent)
        images = preview(self.trainer.model, self.trainer.ema.weights)
        columns = int(len(images) ** 0.5)
        save_png(path, grid(images, columns, scale=max(1, 32 // images.shape[1])))

    def _last_good(self) -> str:
        if self.saved_step is None:
            return "No checkpoint was saved before."
        return f"The last checkpoint is step {self.saved_step}."


@torch.no_grad()
def preview(model: DiffusionModel, weights: Mapping[str, Tensor], num: int = 36, steps: int = 25) -> np.ndarray:
    """uint8 (num, H, W, C): clipped DDIM samples of the model under other weights, labels in turn."""
    shown = copy.copy(model)
    shown._modules = dict(model._modules)
    shown.network = copy.deepcopy(model.network)
    shown.network.load_state_dict(dict(weights))
    shown.eval()
    shape = model.image_shape
    assert shape is not None, "networks of a training config know their image shape"
    classes = model.num_classes
    cond = Condition() if classes is None else Condition(label=torch.arange(num) % classes)
    T = model.schedule.num_timesteps
    # About as many links as asked for; an integer stride, as guided DDIM wants them, exists for any T.
    chain = Chain(model.schedule, range(0, T, max(1, T // steps)))
    x = sample(guide(shown, Clip()), chain, DDIM(), SeededNoise(range(num)), (num, *shape), cond)
    return to_uint8(x.cpu()).numpy()


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
    fixed = [f"{name}={one_line(old, 40)}, you asked for {one_line(new, 40)}" for name, old, new in changed
             if name not in MAY_CHANGE]  # fmt: skip
    if fixed:
        raise UsageError(
            f"this run was started with {fixed[0]}. Leave the option out to continue, or choose another --out."
        )
    state = checkpoint.documents["state"]
    if state["data"] != dataset.fingerprint:
        raise DataError(
            f"{config.data.path}: the images are not those that this run was started with. "
            "Bring the data back as they were, or choose another --out."
        )
    trainer.restore(checkpoint.tensors, state)
    notes = [f"continuing from step {trainer.step}"]
    notes += [f"{name}: {old} -> {new}" for name, old, new in changed]
    if state["torch"] != torch.__version__:
        notes.append(f"torch {state['torch']} -> {torch.__version__}: bit-equality with before is not promised")
    return notes


def read_config(run: Path) -> TrainConfig:
    """The config of a run directory."""
    path = run / "config.json"
    return parse_config(files.read_json(path), shown_path(path))


def parse_config(document: Any, where: str) -> TrainConfig:
    job = document.get("job") if isinstance(document, Mapping) else None
    if job not in ("diffusion", "classifier"):
        raise UsageError(f"{where}: job is {one_line(job, 40)!r}: must be diffusion or classifier.")
    if job == "diffusion":
        return from_dict(DiffusionTraining, document, where)
    return from_dict(ClassifierTraining, document, where)


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


def refuse_foreign(out: Path) -> None:
    """A run starts in a directory that is new, empty, or a run."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{shown_path(out)} is a file. Choose another --out.")
    names = {entry.name for entry in out.iterdir() if not entry.name.startswith(".")}
    if names and not (names & {"checkpoints", "log.jsonl"} or is_run_config(out / "config.json")):
        raise UsageError(f"{shown_path(out)} is not empty and holds no run. Choose another --out.")


def is_run_config(path: Path) -> bool:
    """Whether the file is ours: other programs write a config.json too, which must not be overwritten."""
    try:
        document = files.read_json(path)
    except AdmError:
        return False
    return isinstance(document, Mapping) and "job" in document
