"""The images of a run, as its config names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from adm.data import Dataset, leaving_out_by, open_dataset
from adm.data.pack import Pack
from adm.training.config import DataConfig, TrainConfig

__all__ = ["fingerprint_of", "open_held_out", "open_training"]

SKIP = "--set data.skip_bad=true"


def open_training(
    data: DataConfig, channels: int | None, on_images: Callable[[int, int], None] | None = None
) -> Dataset:
    """What is trained on. channels: 1, 3, or None for those of the images. on_images: called with (done, in all)."""
    with leaving_out_by(SKIP):
        return open_dataset(data.path, None, channels, on_images, source(data.labels_from), data.skip_bad)


def open_held_out(data: DataConfig, channels: int | None) -> Dataset | None:
    """What is measured on, read the same way; None where there is none."""
    if data.validation is None:
        return None
    with leaving_out_by(SKIP):
        return open_dataset(data.validation, None, channels, None, validation_source(data), data.skip_bad)


def source(labels_from: str) -> str | None:
    """As `open_dataset` takes it."""
    return None if labels_from == "auto" else labels_from


def validation_source(data: DataConfig) -> str | None:
    """Where the classes of the validation data come from.

    A table beside the training data lists their files, and other data do not have them; one that lies within the data
    is looked for within these, too.
    """
    if data.validation_labels_from != "same":
        return source(data.validation_labels_from)
    table = Path(data.labels_from)
    of_training_files = table.suffix.lower() in (".csv", ".json") and os.path.lexists(table)
    return None if of_training_files and data.validation != data.path else source(data.labels_from)


def fingerprint_of(dataset: Dataset, config: TrainConfig) -> str:
    """What a run is recognised by. A pack that gives the same batches as the images it was made of counts as them, so
    that a run begun on a folder continues on its pack."""
    if isinstance(dataset, Pack):
        return dataset.fingerprint_at(config.network.size, config.data.random_crop)
    return dataset.fingerprint
