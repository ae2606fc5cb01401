"""Training runs of a second on generated images, in this process or in a fresh one."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adm.checkpoints.model_document import ScheduleConfig
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import override
from adm.training.config import (
    ClassifierTraining,
    DataConfig,
    DiffusionTraining,
    LoopConfig,
    TrainConfig,
    UpsamplerTraining,
)
from adm.training.run import train
from faults import faults

NETWORK: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 1,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_heads": 1,
    "num_head_channels": None,
}
SCHEDULE = ScheduleConfig("cosine", 10)
PRELOADED = [
    "adm.training.run",
    "tensorboard.summary.writer.record_writer",
    "torch._dynamo",
    "torch.distributed.tensor",
]


class Stripes:
    """Horizontal and vertical stripes in noise, 8 x 8: two classes that a small network tells apart."""

    name = "stripes"
    channels = 1
    class_names = ("horizontal", "vertical")
    default_flip = True

    def __init__(self, num: int = 24, noise: float = 20.0) -> None:
        rng = np.random.RandomState(0)
        self.labels = np.arange(num) % 2
        ramp = np.where(np.arange(8) % 4 < 2, 200.0, 55.0)
        rows = np.stack([np.roll(ramp, rng.randint(4)) for _ in range(num)])
        flat = np.repeat(rows[:, :, None], 8, axis=2)
        images = np.where(self.labels[:, None, None] == 0, flat, flat.transpose(0, 2, 1))
        self.images = (images + noise * rng.standard_normal(images.shape)).clip(0, 255).astype(np.uint8)[..., None]
        self.fingerprint = hashlib.sha256(self.images.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def label(self, i: int) -> int:
        return int(self.labels[i])


def tiny(job: str, *settings: str) -> TrainConfig:
    """Batches of 5 from 24 images, so that epochs end within batches; `settings` as for --set."""
    loop = LoopConfig(steps=20, batch_size=5, log_every=4, save_every=5, sample_every=1000)
    data = DataConfig("stripes")
    if job == "classifier":
        config: TrainConfig = ClassifierTraining(
            "classifier", data, ClassifierConfig(num_classes=2, **NETWORK), SCHEDULE, loop=loop
        )
    elif job == "upsampler":
        network = UNetConfig(out_channels=2, num_classes=2, low_res_channels=1, **NETWORK)
        config = UpsamplerTraining("upsampler", data, network, SCHEDULE, loop=loop, low_res_size=4)
    else:
        network = UNetConfig(out_channels=2, num_classes=2, **NETWORK)
        config = DiffusionTraining("diffusion", data, network, SCHEDULE, loop=loop)
    return override(config, settings)


def run(config: TrainConfig, out: Path, *, stop_at: int | None = None, **options: Any) -> Path:
    """Trains on the stripes; stop_at: the step after which a stop is requested, as Ctrl-C does."""
    torch.set_num_threads(1)
    options.setdefault("dataset", Stripes())
    if stop_at is not None:
        seen: list[int] = []
        options["on_progress"] = lambda progress: seen.append(progress.step)
        options["stop_requested"] = lambda: seen[-1] == stop_at
    return train(config, out, **options)


def run_until_killed(config: TrainConfig, out: Path, operation: int) -> None:
    """Kill -9 at the given operation on the disk."""
    with faults(operation, lambda: os.kill(os.getpid(), signal.SIGKILL)):  # type: ignore[arg-type, return-value]
        run(config, out)


def in_new_process(target: Callable[..., object], *args: object, **kwargs: object) -> int:
    """Calls it in a process that has done nothing before; the exit status, negative for a signal."""
    process = start_process(target, *args, **kwargs)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def start_process(target: Callable[..., object], *args: object, **kwargs: object) -> Any:
    # The server imports once and forks a process for each call: imports, and nothing of this process, are shared.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_exit_by_error, args=(target, args, kwargs))
    process.start()
    return process


def _exit_by_error(target: Callable[..., object], args: Any, kwargs: Any) -> None:
    try:
        target(*args, **kwargs)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        raise SystemExit(error.exit_code) from None


def global_states() -> list[object]:
    """Of the generators of torch, numpy and random."""
    name, keys, *position = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), position]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below the directory, by its name there."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
