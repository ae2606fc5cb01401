"""From a config to its model and its batches, and what the data must be for it."""

from __future__ import annotations

import torch

from adm.checkpoints.model_document import make_schedule
from adm.data import Dataset, Loader
from adm.data.pack import Pack
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import EncoderClassifier, UNet
from adm.runtime import randomness
from adm.runtime.distributed import World
from adm.runtime.errors import DataError
from adm.runtime.text import one_line
from adm.training.config import ClassifierTraining, TrainConfig

__all__ = ["check_data", "make_loader", "new_model"]


def new_model(
    config: TrainConfig, class_names: tuple[str, ...] = (), device: torch.device | str = "cpu"
) -> DiffusionModel | NoisyClassifier:
    """The config's model with initial weights, which are a function of the seed."""
    schedule = make_schedule(config.schedule)
    model: DiffusionModel | NoisyClassifier
    with randomness.fork(seed=config.loop.seed, stream="initial weights"):
        if isinstance(config, ClassifierTraining):
            model = NoisyClassifier(EncoderClassifier(config.network), schedule, config.time_scale)
        else:
            model = DiffusionModel(UNet(config.network), schedule, config.mean, config.variance, config.time_scale)
    model.class_names = class_names if model.num_classes is not None else ()
    return model.to(device)


def make_loader(config: TrainConfig, dataset: Dataset, world: World = World()) -> Loader:
    return Loader(
        dataset,
        config.network.size,
        config.loop.batch_size,
        config.loop.seed,
        flip=config.data.flip,
        random_crop=config.data.random_crop,
        workers=config.data.workers,
        rank=world.rank,
        world=world.size,
    )


def check_data(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse data that the network was not made for, before anything is written."""
    if dataset.channels != config.network.in_channels:
        raise DataError(
            f"{config.data.path}: images have {dataset.channels} channel(s), the network takes "
            f"{config.network.in_channels}. Set network.in_channels."
        )
    if isinstance(dataset, Pack):
        dataset.check_use(config.network.size, config.data.random_crop)
    classes = config.network.num_classes
    if classes is None:
        return
    if not dataset.class_names:
        raise DataError(f"{config.data.path}: no classes; put the images of each class into a folder of its own.")
    if len(dataset.class_names) > classes:
        raise DataError(
            f"{config.data.path}: {len(dataset.class_names)} classes, but network.num_classes is {classes}. Raise it."
        )
    if isinstance(config, ClassifierTraining) and all(
        dataset.label(i) == dataset.label(0) for i in range(len(dataset))
    ):
        name = one_line(dataset.class_names[dataset.label(0)], 40)
        raise DataError(
            f"{config.data.path}: all images are of one class, {name!r}, and leave a classifier nothing to tell apart. "
            "Add images of another."
        )
