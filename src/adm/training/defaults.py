"""Settings that work for given data, as a start: small networks for small images, ADM's shapes for large ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from adm.checkpoints.model_document import ScheduleConfig
from adm.data import Dataset
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import settings
from adm.runtime.errors import DataError, UsageError
from adm.training.config import (
    ClassifierTraining,
    DataConfig,
    DiffusionTraining,
    LoopConfig,
    OptimizerConfig,
    TrainConfig,
    UpsamplerTraining,
)

__all__ = ["default_config", "parse_size", "typical_config", "usual_settings"]

NUM_SIZES_LOOKED_AT = 64


def default_config(
    job: str, path: str, dataset: Dataset, image_size: tuple[int, int] | None = None, seed: int = 0
) -> TrainConfig:
    """The settings of `adm train` before flags and --set.

    image_size: (height, width); None takes that of the images, if they agree. Raises DataError when they do not.
    """
    size = image_size or common_size(path, dataset)
    square = size[0] if size[0] == size[1] else size
    channels, classes = dataset.channels, len(dataset.class_names) or None
    side = min(size)
    width = 32 if side < 16 else 64 if side < 64 else 128
    trunk = {
        "image_size": square,
        "in_channels": channels,
        "model_channels": width,
        "channel_mult": multipliers(size),
        "num_res_blocks": 1 if side < 32 else 2,
        "attention_resolutions": (4,) if side < 16 else (16, 8) if side < 64 else (32, 16, 8),
        "num_head_channels": 32 if side < 64 else 64,
    }
    batch = min(64, len(dataset))
    schedule = ScheduleConfig("cosine" if side <= 64 else "linear", 1000)
    optimizer = OptimizerConfig(lr=1e-3 if side < 16 else 3e-4 if side <= 64 else 1e-4, warmup_steps=100)
    loop = LoopConfig(steps=5_000 if side < 16 else 100_000, batch_size=batch, seed=seed)
    if job == "diffusion":
        network = UNetConfig(out_channels=2 * channels, num_classes=classes, **trunk)  # type: ignore[arg-type]
        return DiffusionTraining("diffusion", DataConfig(path), network, schedule, optimizer=optimizer, loop=loop)
    if job == "upsampler":
        factor = 4 if side >= 32 and all(length % 4 == 0 for length in size) else 2
        if any(length % factor for length in size):
            raise DataError(f"{path}: {size[0]}x{size[1]} cannot be halved. Choose an even --image-size.")
        low = (size[0] // factor, size[1] // factor)
        network = UNetConfig(out_channels=2 * channels, num_classes=classes, low_res_channels=channels, **trunk)  # type: ignore[arg-type]
        return UpsamplerTraining(
            "upsampler",
            DataConfig(path),
            network,
            schedule,
            optimizer=optimizer,
            loop=loop,
            low_res_size=low[0] if low[0] == low[1] else low,
        )
    if classes is None:
        raise DataError(f"{path}: no classes; a classifier needs the images of each class in a folder of its own.")
    return ClassifierTraining(
        "classifier",
        DataConfig(path, random_crop=side >= 16),
        ClassifierConfig(num_classes=classes, **trunk),  # type: ignore[arg-type]
        schedule,
        optimizer=OptimizerConfig(lr=1e-3 if side < 16 else 3e-4, weight_decay=0.05, warmup_steps=100, anneal="linear"),
        loop=LoopConfig(steps=2_000 if side < 16 else 50_000, batch_size=batch, seed=seed),
    )


@dataclass(frozen=True)
class _Imagined:
    """As much of a data set as the defaults depend on."""

    channels: int
    class_names: tuple[str, ...]
    num: int = 1000

    def __len__(self) -> int:
        return self.num


def typical_config(job: str) -> TrainConfig:
    """The defaults for 64 x 64 images of two classes."""
    return default_config(job, "", _Imagined(3, ("a", "b")), (64, 64))  # type: ignore[arg-type]


def usual_settings(job: str) -> dict[str, str]:
    """Dotted name -> its default, or "(by the data)" where that depends on them."""
    imagined = [
        ((8, 8), _Imagined(1, ("a",), 10)),
        ((32, 32), _Imagined(1, ("a", "b"))),
        ((256, 128), _Imagined(3, ("a",))),
    ]
    for_these = [settings(default_config(job, "", data, size)) for size, data in imagined]  # type: ignore[arg-type]
    usual = settings(typical_config(job))
    return {
        name: value if all(found[name] == value for found in for_these) else "(by the data)"
        for name, value in usual.items()
        if name != "data.path"
    }


def common_size(path: str, dataset: Dataset) -> tuple[int, int]:
    """(height, width) of the images, if those looked at agree."""
    step = max(1, len(dataset) // NUM_SIZES_LOOKED_AT)
    sizes = Counter(dataset.image(i).shape[:2] for i in range(0, len(dataset), step))
    if len(sizes) > 1:
        (height, width), _ = sizes.most_common(1)[0]
        raise DataError(
            f"{path}: images have different sizes (mostly {height}x{width}); say which to train at: --image-size 64."
        )
    height, width = next(iter(sizes))
    return height, width


def multipliers(size: tuple[int, int]) -> tuple[float, ...]:
    """Channel multipliers by size: ADM's for 64 and above; fewer levels when the sides cannot be halved so often."""
    side = min(size)
    table: dict[int, tuple[float, ...]] = {
        512: (0.5, 1, 1, 2, 2, 4, 4),
        256: (1, 1, 2, 2, 4, 4),
        128: (1, 1, 2, 3, 4),
        64: (1, 2, 3, 4),
        32: (1, 2, 2),
        16: (1, 2, 2),
        0: (1, 2),
    }
    wanted = next(mult for least, mult in table.items() if side >= least)
    levels = len(wanted)
    while levels > 1 and any(length % 2 ** (levels - 1) for length in size):
        levels -= 1
    return wanted[:levels]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`64` or `32x48` (height x width) as (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--image-size {text!r}: write one number, or height x width such as 32x48.")
    return int(parts[0]), int(parts[-1])
