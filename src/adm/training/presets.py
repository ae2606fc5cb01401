"""Recipes by name: the paper's models as they were trained, and networks that suit small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from adm.checkpoints.model_document import ScheduleConfig
from adm.checkpoints.presets import find_preset, preset_spec
from adm.data import Dataset
from adm.diffusion.model import Mean
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import nearest, one_line
from adm.training.config import (
    JOBS,
    ClassifierTraining,
    DataConfig,
    DiffusionTraining,
    LoopConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerTraining,
)
from adm.training.ema import EMAConfig

__all__ = [
    "PRESETS",
    "ImaginedData",
    "Preset",
    "find_preset_for",
    "preset_config",
    "preset_names",
    "preset_without_data",
    "refuse_unknown_job",
]

NUM_LOOKED_AT = 8
"""Images whose size says whether the data suit a preset."""


@dataclass(frozen=True)
class Preset:
    """A recipe: what it is, and the config of each job that it has, for the data it was made for.

    The data's own channels and classes take the place of those in the configs: see `preset_config`.
    """

    name: str
    what: str
    configs: tuple[TrainConfig, ...]

    @property
    def jobs(self) -> dict[str, TrainConfig]:
        return {config.job: config for config in self.configs}


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


class Described(Protocol):
    """As much of a data set as a preset depends on."""

    @property
    def channels(self) -> int: ...

    @property
    def class_names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class ImaginedData:
    """The data that a preset was made for, where only their description matters; it has no images."""

    channels: int
    class_names: tuple[str, ...]
    num: int = 1_000_000

    def __len__(self) -> int:
        return self.num


def preset_names(job: str) -> list[str]:
    """The presets that have this job."""
    return [name for name, preset in PRESETS.items() if job in preset.jobs]


def find_preset_for(name: str, job: str) -> TrainConfig:
    """The preset's config for this job, for the data it was made for. Raises UsageError, with what there is."""
    refuse_unknown_job(job)
    names = preset_names(job)
    if name not in PRESETS:
        raise UsageError(
            f"there is no preset {one_line(name, 40)!r}{nearest(name, names)} Of {job} there are {', '.join(names)}."
        )
    jobs = PRESETS[name].jobs
    if job not in jobs:
        raise UsageError(
            f"preset {name} is for {' and '.join(jobs)}, not for {job}. Of {job} there are {', '.join(names)}."
        )
    return jobs[job]


def preset_config(
    name: str,
    job: str,
    path: str,
    dataset: Dataset | ImaginedData,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
) -> TrainConfig:
    """The preset's config for these data: their channels and classes, and a batch of no more images than there are.

    image_size: (height, width), only to confirm the preset's, for images that have to be enlarged to it. Raises
    UsageError for another size or smaller images, DataError when a classifier's data have no classes.
    """
    config = find_preset_for(name, job)
    size = config.network.size
    check_size(name, job, path, dataset, size, image_size)
    classes = len(dataset.class_names) or None
    channels = dataset.channels
    if isinstance(config, ClassifierTraining):
        if classes is None:
            raise DataError(f"{path}: no classes; a classifier needs the images of each class in a folder of its own.")
        fitted: TrainConfig = replace(
            config, network=replace(config.network, in_channels=channels, num_classes=classes)
        )
    else:
        network = replace(
            config.network,
            in_channels=channels,
            out_channels=(2 if config.variance == "learned" else 1) * channels,
            low_res_channels=channels if isinstance(config, UpsamplerTraining) else 0,
            num_classes=classes,
        )
        fitted = replace(config, network=network)
    loop = replace(fitted.loop, batch_size=min(fitted.loop.batch_size, len(dataset)), seed=seed)
    return replace(fitted, data=replace(fitted.data, path=path), loop=loop)


def preset_without_data(name: str, job: str, image_size: tuple[int, int] | None = None) -> TrainConfig:
    """The preset's config for the data it was made for, which need not be there. Raises UsageError."""
    network = find_preset_for(name, job).network
    data = ImaginedData(network.in_channels, tuple(str(k) for k in range(network.num_classes or 0)))
    return replace(preset_config(name, job, f"data for {name}", data, image_size), preset=name)


def refuse_unknown_job(job: str) -> None:
    """UsageError, with what there is, for what is no job."""
    if job not in JOBS:
        raise UsageError(f"there is no job {one_line(job, 40)!r}{nearest(job, JOBS)} Choose one of {', '.join(JOBS)}.")


def check_size(
    name: str,
    job: str,
    path: str,
    dataset: Dataset | ImaginedData,
    size: tuple[int, int],
    given: tuple[int, int] | None,
) -> None:
    """Refuse a size that is not the preset's, and images that it would enlarge without being told to."""
    shown = f"{size[0]}x{size[1]}"
    if given is not None and given != size:
        others = [n for n in preset_names(job) if find_preset_for(n, job).network.size == given]
        instead = f"choose preset {' or '.join(others)}" if others else "leave out --preset"
        raise UsageError(
            f"--image-size {given[0]}x{given[1]}: preset {name} is for {shown}. Leave the option out, or {instead}."
        )
    if given is not None or isinstance(dataset, ImaginedData):
        return
    step = max(1, len(dataset) // NUM_LOOKED_AT)
    for i in range(0, len(dataset), step):
        height, width = dataset.image(i).shape[:2]
        if height < size[0] or width < size[1]:
            raise UsageError(
                f"{path}: images of {height}x{width}, but preset {name} is for {shown}. Choose a smaller preset or "
                f"leave out --preset; --image-size {shown} enlarges the images."
            )
