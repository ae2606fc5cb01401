"""Where the time of a run goes: steps, reading images, checkpoints, sample grids, validation."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from adm.data import Dataset
from adm.data._loader import CACHE_BYTES
from adm.studies._plan_probe import Probe
from adm.training.build import make_loader
from adm.training.config import ClassifierTraining, TrainConfig
from adm.training.images import open_held_out
from adm.training.run import FEW
from adm.training.validation import CLASSIFIER_LEVELS, DENOISING_LEVELS, NUM_IMAGES, Validation

__all__ = ["evaluations", "kept_images", "time_of"]


def time_of(
    config: TrainConfig, step: float, probe: Probe, dataset: Dataset | None, measuring: int
) -> dict[str, float]:
    """Seconds of the whole run by what they are spent on. step: of a step; measuring: evaluations in a validation."""
    loop = config.loop
    reading = 0.0 if dataset is None else reading_seconds(config, dataset)
    waiting = reading if not config.data.workers else max(0.0, reading / config.data.workers - step)
    steps = loop.steps
    if loop.minutes is not None:
        steps = min(steps, math.ceil(60 * loop.minutes / step))
    parts = {"starting": probe.start_seconds, "steps": steps * step}
    once = len(dataset) / loop.batch_size if dataset is not None and kept_images(config, dataset) else steps
    parts["reading images"] = min(steps, once) * waiting
    parts["checkpoints"] = math.ceil(steps / loop.save_every) * probe.save_seconds
    if loop.sample_every is not None and probe.grid_seconds:
        parts["sample grids"] = math.ceil(steps / loop.sample_every) * probe.grid_seconds
    if config.data.validation is not None or isinstance(config, ClassifierTraining):
        times = 1 if config.data.validation is None else math.ceil(steps / loop.validate_every)
        parts["validation"] = times * measuring * probe.validation_seconds
    return parts


def evaluations(config: TrainConfig, dataset: Dataset | None) -> int:
    """Of an image at a noise level, in one measurement by `adm.training.validation.Validation`.

    A classifier without data to validate on is measured on a few training images. Images that are held out are compared
    with as many training images by a denoising loss. Data that are not there yet count as large and held out.
    """
    held_out = dataset if config.data.validation is None else None
    if dataset is not None and config.data.validation is not None:
        held_out = open_held_out(config.data, config.network.in_channels)
        if held_out is not None:
            Validation(config, held_out, dataset)  # refuses what does not fit
    most = FEW if config.data.validation is None else NUM_IMAGES
    num = most if held_out is None else min(len(held_out), most)
    if isinstance(config, ClassifierTraining):
        return num * (CLASSIFIER_LEVELS + 1)
    same = dataset is not None and held_out is not None and held_out.fingerprint == dataset.fingerprint
    return num * DENOISING_LEVELS * (1 if same else 2)


def reading_seconds(config: TrainConfig, dataset: Dataset) -> float:
    """Seconds to read the images of a batch, by some that were not read before."""
    some = min(config.loop.batch_size, len(dataset), 64)
    small = replace(config, loop=replace(config.loop, batch_size=some))
    loader = make_loader(small, dataset)
    loader.batch(0)  # what is imported and opened once
    started = time.monotonic()
    loader.batch(some)
    return (time.monotonic() - started) * config.loop.batch_size / some


def kept_images(config: TrainConfig, dataset: Dataset | None, device: torch.device | None = None) -> int:
    """Bytes of the cropped images that the loader keeps in the processor's memory; none where all would be too many."""
    if dataset is None or config.data.random_crop or (device is not None and device.type != "cpu"):
        return 0
    height, width = config.network.size
    size = len(dataset) * height * width * dataset.channels
    return size if size <= CACHE_BYTES else 0
