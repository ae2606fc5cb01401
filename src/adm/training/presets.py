"""A preset by its name, fitted to the data that it is to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from adm.data import Dataset
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import nearest, one_line
from adm.training.config import (
    JOBS,
    ClassifierTraining,
    TrainConfig,
    UpsamplerTraining,
)
from adm.training.recipes import PRESETS, Preset

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
