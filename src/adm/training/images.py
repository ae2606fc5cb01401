"""The images of a run, as its config names them."""

from __future__ import annotations

from collections.abc import Callable

from adm.data import Dataset, open_dataset
from adm.data.pack import Pack
from adm.training.config import DataConfig, TrainConfig

__all__ = ["fingerprint_of", "open_held_out", "open_training"]


def open_training(
    data: DataConfig, channels: int | None, on_images: Callable[[int, int], None] | None = None
) -> Dataset:
    """What is trained on. channels: 1, 3, or None for those of the images. on_images: called with (done, in all)."""
    return open_dataset(
        data.path, channels=channels, progress=on_images, labels_from=labels_from(data), skip_bad=data.skip_bad
    )


def open_held_out(data: DataConfig, channels: int | None) -> Dataset | None:
    """What is measured on, read the same way; None where there is none."""
    if data.validation is None:
        return None
    return open_dataset(data.validation, channels=channels, labels_from=labels_from(data), skip_bad=data.skip_bad)


def labels_from(data: DataConfig) -> str | None:
    return None if data.labels_from == "auto" else data.labels_from


def fingerprint_of(dataset: Dataset, config: TrainConfig) -> str:
    """What a run is recognised by. A pack that gives the same batches as the images it was made of counts as them, so
    that a run begun on a folder continues on its pack."""
    if isinstance(dataset, Pack):
        return dataset.fingerprint_at(config.network.size, config.data.random_crop)
    return dataset.fingerprint
