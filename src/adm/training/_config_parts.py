"""The parts of every run's config: data, optimizer, loop. What a docstring says of a field is what --help says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from adm.runtime.randomness import MAX_SEED

__all__ = ["RECORDED", "DataConfig", "LogNormalConfig", "LoopConfig", "OptimizerConfig"]

RECORDED = {"settable": False}
"""Of fields that --set does not offer."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them.

    path: the data, as after --data. labels_from: where classes come from: folders, prefix (of the file name, up to the
    first underscore), none, or a CSV or JSON file; auto is what the data say. skip_bad: leave unreadable images out
    instead of refusing them. validation: images that are not trained on, to measure with. validation_labels_from: where
    their classes come from, in the words of labels_from; same is as labels_from has it, and as the data say where that
    is a table of the training files. flip: mirror each image with probability 1/2, None for as the data set says.
    random_crop: ADM's random crop instead of the central one. workers: threads that prepare batches ahead.
    """

    path: str = field(metadata=RECORDED)
    labels_from: str = "auto"
    skip_bad: bool = False
    validation: str | None = None
    validation_labels_from: str = "same"
    flip: bool | None = None
    random_crop: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: must be 0 or more")
        if self.validation is None and self.validation_labels_from != "same":
            raise ValueError(
                f"validation_labels_from {self.validation_labels_from} does nothing without data.validation: set both"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    lr: the learning rate. weight_decay: decoupled from the gradient. betas: what the two averages keep at each step.
    warmup_steps: the rate rises linearly over the first so many. anneal: the rate after that; linear and cosine end
    at 0. anneal_from: the share of the run before which it stays constant. clip_norm: bound of the gradient's norm, or
    None.
    """

    lr: float = 3e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    anneal: Literal["constant", "linear", "cosine"] = "constant"
    anneal_from: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}: must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}: both must be at least 0 and below 1")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}: must be 0 or more")
        if not 0 <= self.anneal_from < 1:
            raise ValueError(f"anneal_from is {self.anneal_from}: must be at least 0 and below 1")
        if self.anneal_from and self.anneal == "constant":
            raise ValueError(f"anneal_from {self.anneal_from} does nothing with anneal=constant: set anneal=linear too")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}: must be above 0, or none for no bound")

    def lr_at(self, step: int, progress: float) -> float:
        """The rate of step `step`, counted from 0, when `progress` of the run, 0 to 1, lies behind."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = min(1.0, max(0.0, progress - self.anneal_from) / (1 - self.anneal_from))
        if self.anneal == "linear":
            return self.lr * warm * (1 - done)
        if self.anneal == "cosine":
            return self.lr * warm * (1 + math.cos(math.pi * done)) / 2  # Loshchilov & Hutter 2017, Eq. 5
        return self.lr * warm


@dataclass(frozen=True)
class LoopConfig:
    """How long, in what portions, and how often something is written (in steps).

    steps: optimizer steps in all. minutes: train for so long instead, at most `steps` (waiting, saving and pictures do
    not count); rates then follow the clock, and two runs are not equal bit for bit. batch_size: images a step, over all
    processes. microbatch: images that go through the network at once, None for all; the update is the same, but for
    what dropout draws. exact: sum gradients so that the number of processes does not change a bit (slower). seed:
    everything random is a function of it. precision: bfloat16 is autocast around the network. log_every: steps between
    lines of the log. save_every: steps between checkpoints. sample_every: steps between sample grids, None for none.
    validate_every: steps between measurements on data.validation. keep: how many checkpoints stay, 2 at least.
    on_nan: stop, or take up to so many steps out whose gradient is not finite. wandb: log to Weights & Biases too.
    """

    steps: int = 10_000
    minutes: float | None = None
    batch_size: int = 64
    microbatch: int | None = None
    exact: bool = False
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 50
    save_every: int = 1000
    sample_every: int | None = 1000
    validate_every: int = 1000
    keep: int = 3
    on_nan: Literal["stop"] | int = "stop"
    wandb: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "sample_every", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: must be at least 1")
        if self.on_nan != "stop" and self.on_nan < 0:
            raise ValueError(f"on_nan is {self.on_nan}: must be stop, or how many steps may be left out")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}: must be above 0, or none to train for all steps")
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"microbatch is {self.microbatch}: give at least 1, or none for the whole batch")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}: must lie in 0..2**64-1")
        if self.keep < 2:
            raise ValueError(f"keep is {self.keep}: at least 2 checkpoints stay, in case the newest is damaged")


@dataclass(frozen=True)
class LogNormalConfig:
    """Of timesteps=log-normal: log(sigma) is drawn from N(mean, std^2) (EDM Table 1).

    mean: of log(sigma), sigma being the noise-to-signal ratio. std: its standard deviation.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std is {self.std}: must be above 0")
