"""Everything that defines a training run. What a docstring says of a field is what --help says of the setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adm.checkpoints.model_document import ScheduleConfig
from adm.diffusion.loss_weight import WeightConfig
from adm.diffusion.losses import LossKind
from adm.diffusion.model import Mean, Variance
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import from_dict
from adm.runtime.errors import UsageError
from adm.runtime.randomness import MAX_SEED
from adm.runtime.text import one_line
from adm.training.ema import EMAConfig

__all__ = [
    "ClassifierTraining",
    "DataConfig",
    "DiffusionTraining",
    "LogNormalConfig",
    "LoopConfig",
    "OptimizerConfig",
    "TrainConfig",
    "UpsamplerTraining",
    "parse_config",
]

RECORDED = {"settable": False}
"""Of fields that --set does not offer."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them.

    path: the data, as after --data. labels_from: where classes come from: folders, prefix (of the file name, up to the
    first underscore), none, or a CSV or JSON file; auto is what the data say. skip_bad: leave unreadable images out
    instead of refusing them. validation: images that are not trained on, to measure with. flip: mirror each image with
    probability 1/2, None for as the data set says. random_crop: ADM's random crop instead of the central one. workers:
    threads that prepare batches ahead.
    """

    path: str = field(metadata=RECORDED)
    labels_from: str = "auto"
    skip_bad: bool = False
    validation: str | None = None
    flip: bool | None = None
    random_crop: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: must be 0 or more")


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


@dataclass(frozen=True)
class Training:
    """What every run has; not used by itself.

    time_scale: the network is given t * time_scale, None for t as it is. timesteps: how training timesteps are drawn.
    source and source_sha256: the model whose weights the run began with, as it was named, and what identifies them
    (`adm.checkpoints.load`); None for a run from scratch. preset: whose settings it began with.
    """

    job: str
    data: DataConfig
    network: UNetConfig | ClassifierConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    time_scale: float | None = None
    timesteps: Literal["uniform", "loss-second-moment", "log-normal"] = "uniform"
    log_normal: LogNormalConfig = field(default_factory=LogNormalConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    preset: str | None = field(default=None, metadata=RECORDED)
    source: str | None = field(default=None, metadata=RECORDED)
    source_sha256: str | None = field(default=None, metadata=RECORDED)

    def __post_init__(self) -> None:
        if (self.source is None) != (self.source_sha256 is None):
            raise ValueError("source and source_sha256 come together: give both (see finetune_config), or none")
        if self.timesteps != "log-normal" and self.log_normal != LogNormalConfig():
            raise ValueError(f"log_normal does nothing with timesteps {self.timesteps}: set timesteps=log-normal too")


@dataclass(frozen=True)
class Denoising(Training):
    """What a diffusion model and an upsampler have in common; not used by itself.

    mean: what the network's first channels are. variance: learned, or fixed. loss: hybrid is ADM's, vlb the bound.
    weight: of the squared error by its signal-to-noise ratio. label_dropout: the share of images whose label is left
    out, which classifier-free guidance needs. input_perturbation: gamma of Ning et al. 2023, noise on the noise that
    the network does not have to find.
    """

    network: UNetConfig
    mean: Mean = "eps"
    variance: Variance = "learned"
    loss: LossKind = "hybrid"
    weight: WeightConfig = field(default_factory=WeightConfig)
    label_dropout: float = 0.0
    input_perturbation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        channels, learned = self.network.in_channels, self.variance == "learned"
        if self.network.out_channels != (2 if learned else 1) * channels:
            raise ValueError(
                f"network.out_channels is {self.network.out_channels}: variance {self.variance} of {channels}-channel "
                f"images needs {2 * channels if learned else channels}"
            )
        if self.loss in ("vlb", "vlb_rescaled") and self.weight.kind != "none":
            raise ValueError(
                f"weight.kind is {self.weight.kind}: the bound (loss {self.loss}) has its own weights, use none"
            )
        if self.mean in ("edm", "flow") and self.time_scale is not None:
            raise ValueError(f"time_scale is {self.time_scale}: mean {self.mean} says itself what t becomes, use none")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}: must be at least 0 and below 1")
        if self.input_perturbation < 0:
            raise ValueError(f"input_perturbation is {self.input_perturbation}: must be 0 or more")


@dataclass(frozen=True)
class DiffusionTraining(Denoising):
    """A run of `adm train diffusion`."""

    job: Literal["diffusion"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network.low_res_channels:
            raise ValueError(f"network.low_res_channels is {self.network.low_res_channels}: must be 0, no upsampler")


@dataclass(frozen=True)
class UpsamplerTraining(Denoising):
    """A run of `adm train upsampler`: the model sees the image, area-averaged to low_res_size, and completes it.

    low_res_size: of the image to upsample, one number or (height, width). low_res_noise: the standard deviation of the
    noise on it is drawn from 0 to this for each image, in units of [-1, 1], so that the model forgives what a base
    model gets wrong (CDM section 4.2; 0 as released).
    """

    job: Literal["upsampler"]
    low_res_size: int | tuple[int, int] = 16
    low_res_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.network.in_channels
        if self.network.low_res_channels != channels:
            raise ValueError(
                f"network.low_res_channels is {self.network.low_res_channels}: an upsampler of {channels}-channel "
                f"images needs {channels}"
            )
        if any(low < 1 or size % low for low, size in zip(self.low_res, self.network.size, strict=True)):
            height, width = self.network.size
            raise ValueError(
                f"low_res_size is {self.low_res_size}: both sides must divide those of the images, {height}x{width}"
            )
        if self.low_res_noise < 0:
            raise ValueError(f"low_res_noise is {self.low_res_noise}: must be 0 or more")

    @property
    def low_res(self) -> tuple[int, int]:
        """(height, width) of the image to upsample."""
        size = self.low_res_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class ClassifierTraining(Training):
    """A run of `adm train classifier`."""

    job: Literal["classifier"]
    network: ClassifierConfig


TrainConfig = DiffusionTraining | ClassifierTraining | UpsamplerTraining
JOBS: dict[str, type[TrainConfig]] = {
    "diffusion": DiffusionTraining,
    "classifier": ClassifierTraining,
    "upsampler": UpsamplerTraining,
}


def parse_config(document: Any, where: str) -> TrainConfig:
    """The config of a config.json. Raises UsageError, which begins with `where`, for what is none."""
    job = document.get("job") if isinstance(document, Mapping) else None
    if job not in JOBS:
        raise UsageError(f"{where}: job is {one_line(job, 40)!r}: must be one of {', '.join(JOBS)}.")
    return from_dict(JOBS[job], document, where)
