"""Everything that defines a training run. What a docstring says of a field is what --help says of the setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adm.checkpoints.model_document import ScheduleConfig
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
    "LoopConfig",
    "OptimizerConfig",
    "TrainConfig",
    "parse_config",
]

RECORDED = {"settable": False}
"""Of fields that --set does not offer."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them.

    path: the data, as after --data. flip: mirror each image with probability 1/2, None for as the data set says.
    random_crop: ADM's random crop instead of the central one. workers: threads that prepare batches ahead.
    """

    path: str
    flip: bool | None = None
    random_crop: bool = False
    workers: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    lr: the learning rate. weight_decay: decoupled from the gradient. betas: what the two averages keep at each step.
    warmup_steps: the rate rises linearly over the first so many. anneal: the rate after that; linear ends at 0.
    clip_norm: bound of the gradient's norm, or None.
    """

    lr: float = 3e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    anneal: Literal["constant", "linear"] = "constant"
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
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}: must be above 0, or none for no bound")

    def lr_at(self, step: int, num_steps: int) -> float:
        """The rate of step `step`, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.lr * warm * (1 - step / num_steps if self.anneal == "linear" else 1.0)


@dataclass(frozen=True)
class LoopConfig:
    """How long, in what portions, and how often something is written (in steps).

    steps: optimizer steps in all. batch_size: images a step. microbatch: images that go through the network at once,
    None for the whole batch; the update is the same, but for what dropout draws. seed: everything random is a function
    of it. precision: bfloat16 is autocast around the network. log_every: steps between lines of the log. save_every:
    steps between checkpoints. sample_every: steps between sample grids. keep: how many checkpoints stay, 2 at least.
    """

    steps: int = 10_000
    batch_size: int = 64
    microbatch: int | None = None
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 50
    save_every: int = 1000
    sample_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"microbatch is {self.microbatch}: give at least 1, or none for the whole batch")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}: must lie in 0..2**64-1")
        if self.keep < 2:
            raise ValueError(f"keep is {self.keep}: at least 2 checkpoints stay, in case the newest is damaged")


@dataclass(frozen=True)
class Training:
    """What every run has; not used by itself.

    time_scale: the network is given t * time_scale, None for t as it is. timesteps: how training timesteps are drawn.
    source and source_sha256: the model whose weights the run began with, as it was named, and what identifies them
    (`adm.checkpoints.load`); None for a run from scratch.
    """

    job: str
    data: DataConfig
    network: UNetConfig | ClassifierConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    time_scale: float | None = None
    timesteps: Literal["uniform", "loss-second-moment"] = "uniform"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    source: str | None = field(default=None, metadata=RECORDED)
    source_sha256: str | None = field(default=None, metadata=RECORDED)

    def __post_init__(self) -> None:
        if (self.source is None) != (self.source_sha256 is None):
            raise ValueError("source and source_sha256 come together: give both (see finetune_config), or none")


@dataclass(frozen=True)
class DiffusionTraining(Training):
    """A run of `adm train diffusion`.

    mean: what the network's first channels are. variance: learned, or fixed. loss: hybrid is ADM's, vlb the bound.
    """

    job: Literal["diffusion"]
    network: UNetConfig
    mean: Mean = "eps"
    variance: Variance = "learned"
    loss: LossKind = "hybrid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network.low_res_channels:
            raise ValueError(f"network.low_res_channels is {self.network.low_res_channels}: must be 0, no upsampler")
        channels, learned = self.network.in_channels, self.variance == "learned"
        if self.network.out_channels != (2 if learned else 1) * channels:
            raise ValueError(
                f"network.out_channels is {self.network.out_channels}: variance {self.variance} of {channels}-channel "
                f"images needs {2 * channels if learned else channels}"
            )


@dataclass(frozen=True)
class ClassifierTraining(Training):
    """A run of `adm train classifier`."""

    job: Literal["classifier"]
    network: ClassifierConfig


TrainConfig = DiffusionTraining | ClassifierTraining


def parse_config(document: Any, where: str) -> TrainConfig:
    """The config of a config.json. Raises UsageError, which begins with `where`, for what is none."""
    job = document.get("job") if isinstance(document, Mapping) else None
    if job not in ("diffusion", "classifier"):
        raise UsageError(f"{where}: job is {one_line(job, 40)!r}: must be diffusion or classifier.")
    if job == "diffusion":
        return from_dict(DiffusionTraining, document, where)
    return from_dict(ClassifierTraining, document, where)
