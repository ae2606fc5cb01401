"""What a user says of a run, little or much, as the config of a new run or of one that continues."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.load import fingerprint, locate
from adm.data import Dataset, refuse_within
from adm.runtime import files
from adm.runtime.config import assigned, difference, from_text, override, settings
from adm.runtime.errors import AdmError, DamagedError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.training.config import DataConfig, TrainConfig, parse_config
from adm.training.defaults import default_config, parse_size, typical_config
from adm.training.finetune import Source, check_source, finetune_config, open_source
from adm.training.images import open_training
from adm.training.presets import preset_config
from adm.training.resume import MAY_CHANGE, read_config, refuse_changes

__all__ = ["Plan", "Request", "plan"]


@dataclass(frozen=True)
class Request:
    """What was asked for; None and nothing are left to the run that is there, or to the defaults.

    source: a model to begin with. preset: settings to begin with (`adm.training.presets`). image_size: "64" or "48x64"
    (height x width). labels_from: where the classes come from, as `data.labels_from`. settings: "dotted.name=value" of
    anything else, which win over the other fields.
    """

    job: str
    data: str
    out: Path
    source: str | None = None
    preset: str | None = None
    labels_from: str | None = None
    steps: int | None = None
    batch: int | None = None
    image_size: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()

    def assignments(self) -> tuple[str, ...]:
        """All but source, preset and image_size as settings."""
        named = {
            "data.labels_from": self.labels_from,
            "loop.steps": self.steps,
            "loop.batch_size": self.batch,
            "loop.seed": self.seed,
        }
        return (*(f"{name}={value}" for name, value in named.items() if value is not None), *self.settings)


@dataclass(frozen=True, eq=False)
class Plan:
    """What `train` takes."""

    config: TrainConfig
    dataset: Dataset
    source: Source | None = None


def plan(request: Request, on_images: Callable[[int, int], None] = lambda done, total: None) -> Plan:
    """The config that a request amounts to, with the data, and the model to begin with, open.

    A run that is there is continued as it was set up: what the request says otherwise is applied where a run may
    change (MAY_CHANGE of `adm.training.resume`) and refused, all of it by name, where not. A new run begins with the
    source's network or with the defaults for the data. on_images: called with (files looked at, in all). Raises
    UsageError and DataError.
    """
    if request.source is not None and request.preset is not None:
        raise UsageError("--from and --preset both say what to begin with. Give one of them.")
    before = earlier_config(request.out)
    if before is not None:
        config = continued(request, before)
        return Plan(config, open_training(config.data, config.network.in_channels, on_images))
    if request.source is None:
        dataset = new_images(request, None, on_images)
        size = parse_size(request.image_size)
        config = (
            default_config(request.job, request.data, dataset, size)
            if request.preset is None
            else named_config(request.preset, request, dataset, size)
        )
        return Plan(override(config, request.assignments()), dataset)
    size = parse_size(request.image_size)
    source = open_source(request.source, request.job)
    if source.model.image_shape is not None and size not in (None, source.model.image_shape[1:]):
        height, width = source.model.image_shape[1:]
        raise UsageError(
            f"--image-size {request.image_size}: {one_line(request.source, 60)} makes images of {height}x{width}. "
            "Leave the option out: the data are scaled and cropped to it."
        )
    return plan_from(source, request, on_images)


def plan_from(source: Source, request: Request, on_images: Callable[[int, int], None]) -> Plan:
    """A new run that begins with the source's weights; the data follow its channels."""
    shape = source.model.image_shape
    assert shape is not None, "networks of a checkpoint know their image shape"
    dataset = new_images(request, shape[0], on_images)
    config = finetune_config(source, request.data, dataset)
    given = assigned(config, request.assignments())
    if source.model.schedule is None and "schedule.name" not in given:
        raise UsageError(
            f"{one_line(source.name, 60)} does not know its noise schedule. Say it: --set schedule.name=linear "
            "(and --set schedule.num_timesteps=1000)."
        )
    config = override(config, request.assignments())
    check_source(config, source)
    return Plan(config, dataset, source)


def new_images(request: Request, channels: int | None, on_images: Callable[[int, int], None]) -> Dataset:
    """The images of a new run, read as the request says."""
    given = assigned(typical_config(request.job), request.assignments())
    refuse_within(request.out, request.data, given.get("data.labels_from"), "--out")
    channels = from_text(int, given["network.in_channels"]) if "network.in_channels" in given else channels
    data = DataConfig(
        request.data, given.get("data.labels_from", "auto"), from_text(bool, given.get("data.skip_bad", "false"))
    )
    return open_training(data, channels, on_images)


def earlier_config(out: Path) -> TrainConfig | None:
    """The config of the run in `out`, if it has a checkpoint to continue from.

    That of config.json, which knows what was changed since the newest checkpoint. It has no checksum: where it cannot
    be read, or differs in what defines the run, the checkpoint's own copy counts, and a warning says so.
    """
    checkpoints = out / "checkpoints"
    if not checkpoint_format.steps(checkpoints):
        return None
    path, saved, why = out / "config.json", saved_config(checkpoints), None
    try:
        config = read_config(out)
    except AdmError as error:
        if saved is None:
            return config_of_intact(checkpoints)
        config, why = saved, f"cannot be used ({one_line(error, 160)})" if path.exists() else "is missing"
    if saved is not None:
        wrong = [name for name, *_ in difference(saved, config) if name not in MAY_CHANGE]
        if wrong:
            config, why = saved, f"is not as the run was started ({one_line(', '.join(wrong), 160)})"
    if why is not None:
        warnings.warn(f"{shown_path(path)} {why}: what the newest checkpoint says counts.", stacklevel=2)
    return config


def saved_config(checkpoints: Path) -> TrainConfig | None:
    """The newest config that lies in a checkpoint as it was written; other files there are not read."""
    for step in reversed(checkpoint_format.steps(checkpoints)):
        directory = checkpoints / checkpoint_format.step_name(step)
        with suppress(AdmError, KeyError):
            record = files.read_manifest(directory)["config.json"]
            data = files.read_recorded(directory, "config.json", record)
            return parse_config(files.parse_json(data, directory / "config.json"), shown_path(directory))
    return None


def config_of_intact(checkpoints: Path) -> TrainConfig | None:
    """None where no checkpoint is intact; DamagedError where one is that says something else than we write."""
    newest, _ = checkpoint_format.newest_intact(checkpoints)
    if newest is None:
        return None
    try:
        return parse_config(files.read_json(newest / "config.json"), f"{shown_path(newest)}/config.json")
    except UsageError as error:
        raise DamagedError(str(error)) from error


def continued(request: Request, before: TrainConfig) -> TrainConfig:
    """The run's own config with what the request may change; UsageError names all that it may not."""
    if before.job != request.job:
        raise UsageError(f"{shown_path(request.out)} is a {before.job} run, not {request.job}. Choose another --out.")
    given = assigned(before, request.assignments())
    size = parse_size(request.image_size)
    if size not in (None, before.network.size):
        given = {"network.image_size": request.image_size or ""} | given
    now = settings(before)
    changes = [(name, now[name], value) for name, value in given.items() if now[name] != value]
    if request.preset not in (None, before.preset):
        changes.insert(0, ("preset", before.preset or "none", request.preset or ""))
    if request.source is not None and not is_source(request.source, before):
        changes.insert(0, ("from", before.source or "none", request.source))
    refuse_changes(change for change in changes if change[0] not in MAY_CHANGE)
    return override(replace(before, data=replace(before.data, path=request.data)), request.assignments())


def named_config(preset: str, request: Request, dataset: Dataset, size: tuple[int, int] | None) -> TrainConfig:
    """The preset's settings, fitted to the data; the config says whose they are."""
    return replace(preset_config(preset, request.job, request.data, dataset, size), preset=preset)


def is_source(name: str, config: TrainConfig) -> bool:
    """Whether the name means the model that the run began with, which need not be there any more."""
    if config.source is None or name == config.source:
        return name == config.source
    return fingerprint(locate(name)) == config.source_sha256
