"""What a model is, as JSON: enough to build it again without any other input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adm.diffusion.model import DiffusionModel, Mean, NoisyClassifier, Variance
from adm.diffusion.schedule import Schedule, cosine, edm, flow, linear
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime.config import from_dict, to_dict
from adm.runtime.errors import DamagedError, UsageError

__all__ = ["Model", "ScheduleConfig", "build_model", "describe_model", "make_schedule", "set_weights"]

Model = DiffusionModel | NoisyClassifier

ScheduleName = Literal["linear", "cosine", "edm", "flow"]
SCHEDULES: dict[ScheduleName, tuple[Callable[[int], Schedule], int]] = {
    "linear": (linear, 21),
    "cosine": (cosine, 1),
    "edm": (edm, 2),
    "flow": (flow, 1),
}
"""The named forward processes, and the fewest timesteps of each."""


@dataclass(frozen=True)
class ScheduleConfig:
    """A schedule by name and length, or a table of alpha_bar when it has no name.

    name: of the forward process. num_timesteps: T. alpha_bar: the values of a table.
    """

    name: ScheduleName | Literal["table"] = "cosine"
    num_timesteps: int = 1000
    alpha_bar: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        least = 1 if self.name == "table" else SCHEDULES[self.name][1]
        if self.num_timesteps < least:
            raise ValueError(f"num_timesteps is {self.num_timesteps}: must be at least {least} for {self.name}")


@dataclass(frozen=True)
class DiffusionDocument:
    """A DiffusionModel without its weights."""

    kind: Literal["diffusion"]
    network: UNetConfig
    schedule: ScheduleConfig
    mean: Mean
    variance: Variance
    time_scale: float | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ClassifierDocument:
    """A NoisyClassifier without its weights; schedule: None when unknown."""

    kind: Literal["classifier"]
    network: ClassifierConfig
    schedule: ScheduleConfig | None
    time_scale: float | None
    class_names: tuple[str, ...]


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The forward process that the config describes."""
    if config.name == "table":
        if config.alpha_bar is None:
            raise UsageError(f"schedule.alpha_bar is missing. Give the table, or a name: {', '.join(SCHEDULES)}.")
        return Schedule(torch.tensor(config.alpha_bar, dtype=torch.float64))
    return SCHEDULES[config.name][0](config.num_timesteps)


def describe_model(model: Model) -> dict[str, Any]:
    """The model as a JSON-able document; `build_model` makes an equal one of it, but for the weights."""
    network = model.network
    if isinstance(model, DiffusionModel) and isinstance(network, UNet):
        return to_dict(
            DiffusionDocument(
                "diffusion",
                network.config,
                describe_schedule(model.schedule),
                model.mean,
                model.variance,
                model.time_scale,
                model.class_names,
            )
        )
    if isinstance(model, NoisyClassifier) and isinstance(network, EncoderClassifier):
        schedule = None if model.schedule is None else describe_schedule(model.schedule)
        return to_dict(ClassifierDocument("classifier", network.config, schedule, model.time_scale, model.class_names))
    kinds = f"{type(model).__name__} around a {type(network).__name__}"
    raise UsageError(f"a {kinds} cannot be stored. Use the networks of adm.nn, UNet or EncoderClassifier.")


def build_model(document: Any, where: str = "model.json") -> Model:
    """The model of a document, its weights not yet there (on the meta device): `set_weights` brings them.

    Raises DamagedError for what is not a document of ours.
    """
    kind = document.get("kind") if isinstance(document, Mapping) else None
    try:
        if kind == "diffusion":
            return _build_diffusion(from_dict(DiffusionDocument, document, where))
        if kind == "classifier":
            return _build_classifier(from_dict(ClassifierDocument, document, where))
    except UsageError as error:
        raise DamagedError(str(error)) from error
    raise DamagedError(f"{where}: kind is {kind!r}, not diffusion or classifier. Was this file written by adm?")


def _build_diffusion(document: DiffusionDocument) -> DiffusionModel:
    with torch.device("meta"):
        network = UNet(document.network)
    schedule = make_schedule(document.schedule)
    model = DiffusionModel(network, schedule, document.mean, document.variance, document.time_scale)
    model.class_names = document.class_names
    return model


def _build_classifier(document: ClassifierDocument) -> NoisyClassifier:
    with torch.device("meta"):
        network = EncoderClassifier(document.network)
    schedule = None if document.schedule is None else make_schedule(document.schedule)
    model = NoisyClassifier(network, schedule, document.time_scale)
    model.class_names = document.class_names
    return model


def set_weights(model: Model, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give the network its weights, all of them and in their shapes; DamagedError with a summary otherwise."""
    expected = {name: tuple(value.shape) for name, value in model.network.state_dict().items()}
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    wrong = [name for name in expected if name in tensors and tuple(tensors[name].shape) != expected[name]]
    if missing or extra or wrong:
        first = (missing + wrong + extra)[0]
        raise DamagedError(
            f"{where}: the weights do not fit the model: {len(missing)} missing, {len(extra)} unknown, "
            f"{len(wrong)} of another shape, first: {first}. Use the model.json that was saved with them."
        )
    model.network.load_state_dict(dict(tensors), assign=True)


def describe_schedule(schedule: Schedule) -> ScheduleConfig:
    T = schedule.num_timesteps
    for name, (make, least) in SCHEDULES.items():
        if least <= T and torch.equal(make(T).alpha_bar, schedule.alpha_bar):
            return ScheduleConfig(name, T)
    return ScheduleConfig("table", T, tuple(schedule.alpha_bar.tolist()))
