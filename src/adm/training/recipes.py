"""The table of presets: the paper's models as they were trained, and networks that suit small images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adm.checkpoints.model_document import ScheduleConfig
from adm.checkpoints.presets import find_preset, preset_spec
from adm.diffusion.model import Mean
from adm.nn import ClassifierConfig, UNetConfig
from adm.training.config import (
    ClassifierTraining,
    DataConfig,
    DiffusionTraining,
    LoopConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerTraining,
)
from adm.training.ema import EMAConfig

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A recipe: what it is, and the config of each job that it has, for the data it was made for.

    The data's own channels and classes take the place of those in the configs: `adm.training.presets.preset_config`.
    """

    name: str
    what: str
    configs: tuple[TrainConfig, ...]

    @property
    def jobs(self) -> dict[str, TrainConfig]:
        return {config.job: config for config in self.configs}

    @property
    def label_dropout(self) -> float:
        """The share of images whose label its diffusion model or upsampler is not told; 0 where it has neither."""
        return max(0.0 if isinstance(config, ClassifierTraining) else config.label_dropout for config in self.configs)


def digits8() -> Preset:
    trunk: dict[str, Any] = {
        "image_size": 8,
        "in_channels": 1,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "num_head_channels": 32,
    }
    loop = LoopConfig(steps=5_000, batch_size=64)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=100)
    return small("digits8", "8x8 grey: the built-in digits in minutes on a CPU", trunk, 10, loop, optimizer)


def grey28() -> Preset:
    # 28 halves twice, to 7: three levels.
    trunk: dict[str, Any] = {
        "image_size": 28,
        "in_channels": 1,
        "model_channels": 64,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (14, 7),
        "num_head_channels": 32,
    }
    loop = LoopConfig(steps=30_000, batch_size=128)
    optimizer = OptimizerConfig(lr=5e-4, warmup_steps=500, anneal="linear", anneal_from=0.7)
    return small("grey28", "28x28 grey: handwriting, drawings, clothes; never mirrored", trunk, 10, loop, optimizer)


def small16() -> Preset:
    trunk: dict[str, Any] = {
        "image_size": 16,
        "in_channels": 3,
        "model_channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "num_head_channels": 32,
    }
    loop = LoopConfig(steps=10_000, batch_size=64)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=200, anneal="linear", anneal_from=0.7)
    what = "16x16 photographs: one to two hours of two CPU cores, to see a model of one's own images learn"
    # v: in so short a run a network that returns eps leaves the largest scales, an image's colours, to chance.
    return small("small16", what, trunk, 10, loop, optimizer, flip=None, mean="v")


def small(
    name: str,
    what: str,
    trunk: Mapping[str, Any],
    classes: int,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    flip: bool | None = False,
    mean: Mean = "eps",
) -> Preset:
    """ADM's recipe in small, and a classifier with the same trunk."""
    data = DataConfig("", flip=flip)
    diffusion = DiffusionTraining(
        "diffusion",
        data,
        UNetConfig(out_channels=2 * trunk["in_channels"], num_classes=classes, **trunk),
        optimizer=optimizer,
        loop=loop,
        mean=mean,
        label_dropout=0.1,
    )
    classifier = ClassifierTraining(
        "classifier",
        data,
        ClassifierConfig(num_classes=classes, **trunk),
        optimizer=replace(optimizer, weight_decay=0.05, anneal="linear", anneal_from=0.0),
        loop=replace(loop, steps=loop.steps * 2 // 5),
    )
    return Preset(name, what, (diffusion, classifier))


def cifar32() -> Preset:
    """EDM's parametrization, weights and noise levels: the recipe with the best published results in a short run, where
    a learned variance, which only chains of many steps need, is not worth its loss."""
    trunk: dict[str, Any] = {
        "image_size": 32,
        "model_channels": 96,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16, 8),
        "num_head_channels": 32,
    }
    schedule = ScheduleConfig("edm", 1000)
    # 10 million images; both widths of average that EDM2 recommends, and eight snapshots to choose others from.
    loop = LoopConfig(steps=20_000, batch_size=512, precision="bfloat16", validate_every=2_500, sample_every=2_500)
    optimizer = OptimizerConfig(lr=6e-4, betas=(0.9, 0.99), warmup_steps=500, anneal="linear", anneal_from=0.7)
    diffusion = DiffusionTraining(
        "diffusion",
        DataConfig(""),
        UNetConfig(num_classes=10, **trunk),
        schedule,
        timesteps="log-normal",
        optimizer=optimizer,
        ema=EMAConfig(gamma=6.94, others=(16.97,), snapshot_every=2_500),
        loop=loop,
        mean="edm",
        variance="small",
        loss="simple",
        label_dropout=0.1,
    )
    classifier = ClassifierTraining(
        "classifier",
        DataConfig("", random_crop=True),
        ClassifierConfig(num_classes=10, **trunk | {"model_channels": 64}),
        schedule,
        optimizer=OptimizerConfig(lr=6e-4, weight_decay=0.1, warmup_steps=500, anneal="linear"),
        loop=replace(loop, steps=10_000),
    )
    return Preset("cifar32", "32x32 photographs: 10 million images, for a large GPU", (diffusion, classifier))


def cifar16to32() -> Preset:
    network = UNetConfig(
        image_size=32,
        out_channels=6,
        model_channels=64,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16, 8),
        num_head_channels=32,
        num_classes=10,
        low_res_channels=3,
    )
    upsampler = UpsamplerTraining(
        "upsampler",
        DataConfig(""),
        network,
        optimizer=OptimizerConfig(lr=3e-4, warmup_steps=500, anneal="linear", anneal_from=0.7),
        loop=LoopConfig(steps=30_000, batch_size=128, precision="bfloat16"),
        low_res_size=16,
    )
    return Preset("cifar16-to-32", "upsampler of photographs from 16x16 to 32x32", (upsampler,))


def imagenet(
    size: int,
    batch: int,
    steps: int,
    lr: float,
    classifier_batch: int,
    classifier_steps: int,
    classifier_lr: float,
    decay: float,
) -> Preset:
    """A base model of the paper and its classifier: networks and schedules by the released flags."""
    name = f"openai/imagenet{size}"
    return Preset(
        f"imagenet{size}",
        f"the paper's {size}x{size} model and its classifier",
        (
            released(name, "diffusion", batch, steps, lr),
            released(f"{name}-classifier", "classifier", classifier_batch, classifier_steps, classifier_lr, decay),
        ),
    )


def imagenet_upsampler(low: int, size: int, steps: int) -> Preset:
    config = released(f"openai/imagenet{low}-to-{size}", "upsampler", 256, steps, 1e-4)
    return Preset(f"imagenet{low}-to-{size}", f"the paper's upsampler from {low}x{low} to {size}x{size}", (config,))


def released(name: str, job: str, batch: int, steps: int, lr: float, decay: float = 0.0) -> TrainConfig:
    """As the paper trained it, but in bfloat16 where it used float16 (ADM appendix, README of the released code)."""
    spec = preset_spec(find_preset(name))
    assert spec.noise_schedule is not None and spec.diffusion_steps is not None
    classifies = job == "classifier"
    common: dict[str, Any] = {
        "job": job,
        "data": DataConfig("", random_crop=classifies),
        "network": spec.network,
        "schedule": ScheduleConfig(spec.noise_schedule, spec.diffusion_steps),  # type: ignore[arg-type]
        "time_scale": spec.time_scale,
        "optimizer": OptimizerConfig(
            lr=lr, weight_decay=decay, anneal="linear" if classifies else "constant", clip_norm=None
        ),
        "loop": LoopConfig(
            steps=steps,
            batch_size=batch,
            precision="bfloat16",
            save_every=5_000,
            sample_every=10_000,
            validate_every=10_000,
        ),
    }
    if classifies:  # the released one is not an average; this one's last tenth is trained at a rate near 0
        return ClassifierTraining(**common)
    common |= {"mean": spec.mean, "variance": spec.variance, "ema": EMAConfig(kind="constant", rate=0.9999)}
    if job == "diffusion":
        return DiffusionTraining(**common)
    return UpsamplerTraining(**common, low_res_size=int(name.rpartition("-to-")[0].rpartition("imagenet")[2]))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        digits8(),
        small16(),
        grey28(),
        cifar32(),
        cifar16to32(),
        #        size  batch   steps      lr    classifier: batch, steps, lr, weight decay
        imagenet(64, 2048, 540_000, 3e-4, 1024, 300_000, 6e-4, 0.2),
        imagenet(128, 256, 4_360_000, 1e-4, 256, 300_000, 3e-4, 0.05),
        imagenet(256, 256, 1_980_000, 1e-4, 256, 500_000, 3e-4, 0.05),
        imagenet(512, 256, 1_940_000, 1e-4, 256, 500_000, 3e-4, 0.05),
        imagenet_upsampler(64, 256, 500_000),
        imagenet_upsampler(128, 512, 1_050_000),
    )
}
