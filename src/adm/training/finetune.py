"""Training that begins with another model's weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints.load import fingerprint, load, locate
from adm.checkpoints.model_document import Model, ScheduleConfig, describe_model
from adm.data import Dataset
from adm.diffusion.model import DiffusionModel
from adm.nn import EncoderClassifier, UNet
from adm.runtime.config import difference, from_dict
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line
from adm.training.config import TrainConfig
from adm.training.defaults import default_config

__all__ = ["Source", "check_source", "finetune_config", "open_source", "start_from"]

SHARE_OF_SCRATCH = 5
"""Fine-tuning takes a fifth of the learning rate and of the steps of training from scratch."""

MAY_DIFFER = {"network.num_classes", "network.dropout", "network.checkpoint_blocks"}
"""Settings of the network that its weights do not depend on, but for those of the classes."""


@dataclass(frozen=True, eq=False)
class Source:
    """A model to begin with: as it was named, the sha256 that identifies its weights, and itself with EMA weights."""

    name: str
    sha256: str
    model: Model


def open_source(name: str, job: str) -> Source:
    """The model of a run, checkpoint directory, preset or recognised file.

    job: diffusion, classifier or upsampler, what it is to be trained as. Raises UsageError when it is another kind.
    """
    path = locate(name)
    model = load(path)  # not of the name: a run may save its next checkpoint meanwhile
    kind = kind_of(model)
    if kind != job:
        article = {"diffusion": "a diffusion model", "classifier": "a classifier", "upsampler": "an upsampler"}[kind]
        raise UsageError(f"{one_line(name, 60)} is {article}: adm train {kind} continues it, not adm train {job}.")
    return Source(name, fingerprint(path), model)


def kind_of(model: Model) -> str:
    """The job that trains such a model."""
    if not isinstance(model, DiffusionModel):
        return "classifier"
    assert isinstance(model.network, UNet)
    return "upsampler" if model.network.config.low_res_channels else "diffusion"


def finetune_config(source: Source, path: str, dataset: Dataset, seed: int = 0) -> TrainConfig:
    """The settings of `adm train --from` before flags and --set: the source's network, schedule and parametrization,
    with the classes of the data, and otherwise the defaults for its size, a fifth of the rate and of the steps.

    A classifier that does not know its schedule gets the default one: see `check_source`.
    """
    model = source.model
    assert isinstance(model.network, UNet | EncoderClassifier)
    config = default_config(kind_of(model), path, dataset, model.network.config.size, seed)
    config = as_the_model(config, model)
    return replace(
        config,
        network=replace(config.network, num_classes=len(dataset.class_names) or None),  # type: ignore[arg-type]
        optimizer=replace(config.optimizer, lr=config.optimizer.lr / SHARE_OF_SCRATCH),
        loop=replace(config.loop, steps=config.loop.steps // SHARE_OF_SCRATCH),
        source=source.name,
        source_sha256=source.sha256,
    )


def check_source(config: TrainConfig, source: Source) -> None:
    """Refuse settings that the source's weights do not fit, all of them by name."""
    if config.source_sha256 != source.sha256:
        raise UsageError(
            f"{one_line(source.name, 60)}: not the weights that the run was set up with (sha256 {source.sha256[:8]}, "
            f"not {str(config.source_sha256)[:8]}). Bring them back, or start a run in another directory."
        )
    fitting = as_the_model(config, source.model)
    wrong = [
        f"{name}={one_line(theirs, 30)}, not {one_line(ours, 30)}"
        for name, theirs, ours in difference(fitting, config)
        if name not in MAY_DIFFER
    ]
    if wrong:
        raise UsageError(
            f"{one_line(source.name, 60)} has {one_line('; '.join(wrong), 300)}. Leave out what says otherwise."
        )


def as_the_model(config: TrainConfig, model: Model) -> TrainConfig:
    """The config with all that the model determines, its classes included."""
    assert isinstance(model.network, UNet | EncoderClassifier)
    fields: dict[str, Any] = {"network": model.network.config, "time_scale": model.time_scale}
    if model.schedule is not None:
        fields["schedule"] = from_dict(ScheduleConfig, describe_model(model)["schedule"])
    if isinstance(model, DiffusionModel):
        fields |= {"mean": model.mean, "variance": model.variance}
    return replace(config, **fields)


@torch.no_grad()
def start_from(model: Model, source: Source) -> list[str]:
    """Give a new model the source's weights; returns lines that say what was loaded, dropped and made new.

    What depends on the classes, a UNet's label table or the last layer of a classifier, follows the names: a class that
    both know keeps its row. Without names, equal counts keep all rows. A new row of a label table is the mean of the
    source's, an average class, and zero where the source has no table, so that training begins at the very function
    that the source computes; a new row of a last layer stays as initialised.
    """
    theirs, ours = source.model.network.state_dict(), model.network.state_dict()
    of_classes = class_tensors(model.network)
    for name, value in ours.items():
        if name not in of_classes:
            value.copy_(theirs[name])
    rows = rows_kept(source.model, model.class_names, model.num_classes or 0)
    for name in of_classes:
        copy_rows(ours[name], theirs.get(name), rows, is_table=isinstance(model.network, UNet))
    num_loaded = len(ours) if all(row is not None for row in rows) else len(ours) - len(of_classes)
    line = f"from {one_line(source.name, 60)} ({source.sha256[:8]}): {num_loaded} of {len(ours)} tensors loaded"
    return [line + said_of_classes(source.model, model, rows)]


def class_tensors(network: torch.nn.Module) -> list[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    assert isinstance(network, UNet | EncoderClassifier)
    classes = network.config.num_classes or 0
    with torch.device("meta"):
        other = type(network)(replace(network.config, num_classes=classes + 1))  # type: ignore[arg-type]
    shapes = {name: value.shape for name, value in other.state_dict().items()}
    return [name for name, value in network.state_dict().items() if shapes[name] != value.shape]


def copy_rows(ours: Tensor, theirs: Tensor | None, rows: list[int | None], is_table: bool) -> None:
    """Row k of `ours` becomes row rows[k] of `theirs`; a new one (None) what `start_from` says."""
    if is_table:
        mean = torch.zeros_like(ours[0]) if theirs is None else theirs.double().mean(dim=0).to(ours.dtype)
        ours.copy_(mean.expand_as(ours))
    for k, row in enumerate(rows):
        if row is not None and theirs is not None:
            ours[k] = theirs[row]


def rows_kept(source: Model, class_names: tuple[str, ...], num_classes: int) -> list[int | None]:
    """For each class of the new model the source's row of the same class, or None."""
    if not source.num_classes:
        return [None] * num_classes
    if not source.class_names:
        return [k if num_classes == source.num_classes else None for k in range(num_classes)]
    return [row_of(name, source.class_names) for name in class_names] + [None] * (num_classes - len(class_names))


def row_of(name: str, class_names: tuple[str, ...]) -> int | None:
    """The one class that the name means; of ImageNet's also by WordNet id and synonym, as its folders are called."""
    from adm.checkpoints import imagenet

    if class_names != imagenet.NAMES:
        return class_names.index(name) if class_names.count(name) == 1 else None
    if name.isdecimal():  # folders that somebody has numbered are not numbered as these
        return None
    try:
        return imagenet.find_class(name)
    except ValueError:
        return None


def said_of_classes(source: Model, model: Model, rows: list[int | None]) -> str:
    """The end of the line: what became of the classes."""
    what = "label table" if isinstance(model.network, UNet) else "last layer"
    before, after = source.num_classes or 0, model.num_classes or 0
    new = [model.class_names[k] if k < len(model.class_names) else str(k) for k, row in enumerate(rows) if row is None]
    if not before and not after:
        return ""
    if not after:
        return f", {what} dropped ({before} classes): unconditional now"
    if not new:
        same = rows == list(range(before))
        return f", {what} kept ({after} classes)" if same else f", {what}: {after} of the {before} classes kept by name"
    if not before:
        return f", {what} new ({after} classes; the source had none): zero, so that all begin as the source"
    if len(new) == after:
        return f", {what} new ({after} classes; the source had {before})"
    return f", {what}: {after - len(new)} classes kept by name, {len(new)} new: {one_line(', '.join(new), 80)}"
