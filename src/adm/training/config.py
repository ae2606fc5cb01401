"""Everything that defines a training run. What a docstring says of a field is what --help says of the setting."""

from __future__ import annotations

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
from adm.runtime.text import one_line
from adm.training._config_parts import RECORDED, DataConfig, LogNormalConfig, LoopConfig, OptimizerConfig
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
        if self.low_res == self.network.size and not self.low_res_noise:
            raise ValueError(
                f"low_res_size is {self.low_res_size}, the size of the images: nothing is left to find, use a divisor"
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
