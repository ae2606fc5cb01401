"""Files that hold a state dict and nothing else, as models: recognised as a preset, or by what is said of them."""

from __future__ import annotations

import functools
import os
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints import openai, store
from adm.checkpoints.model_document import Model, ScheduleConfig, make_schedule
from adm.checkpoints.openai_fit import silent_about
from adm.checkpoints.openai_shapes import Structure, structure_of
from adm.checkpoints.presets import PRESETS, Preset, class_names, find_preset, preset_spec
from adm.checkpoints.torch_file import read_state_dict
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["Released", "Said", "file_sha256", "model_from_released", "read_as", "read_released"]


@dataclass(frozen=True)
class Said:
    """What the user says of a file. flags: the released ones; like: the preset whose flags it has, but for those."""

    flags: str | Mapping[str, Any] | None = None
    like: str | None = None

    def check(self) -> None:
        """Raises UsageError for what is wrong whatever the file is."""
        if self.flags is not None:
            openai.check_flags(self.flags)
        if self.like is not None:
            find_preset(self.like)

    @property
    def nothing(self) -> bool:
        return self.flags is None and self.like is None


@dataclass(frozen=True, eq=False)
class Released:
    """A file that was read. preset: which one it was recognised as, or said to be like; provenance: as JSON."""

    model: Model
    spec: openai.Spec
    preset: Preset | None
    provenance: dict[str, object]


def read_released(file: str | Path, said: Said = Said()) -> Released:
    """The model in a file of released layout, in eval mode, float32.

    It is a preset when its sha256 was recorded as that by `adm models get`, or when no other preset has its shapes,
    which a warning then says. Raises UsageError, naming what its shapes do not say, when it is none and nothing is
    said of it, and DamagedError when it is damaged, holds numbers that are not finite, or is not what was said.
    """
    said.check()
    file = Path(file)
    state_dict = read_state_dict(file)
    sha256 = file_sha256(file)
    spec, preset, by = identify(file, sha256, state_dict, said)
    provenance: dict[str, object] = {"source": file.name, "sha256": sha256}
    if said.flags is not None:
        provenance["flags"] = said.flags if isinstance(said.flags, str) else dict(said.flags)
    if preset is not None:
        provenance["like" if said.like else "preset"] = preset.name
    if by:
        provenance["recognised_by"] = by
    precisions = {str(value.dtype).removeprefix("torch.") for value in state_dict.values()} - {"float32"}
    if precisions:
        provenance["precision"] = f"{', '.join(sorted(precisions))} in the file, float32 here"
    if spec.new_attention_order:
        provenance["new_attention_order"] = True  # so that it can go back as it was
    model = checked_model(file, state_dict, spec)
    if preset is not None and model.num_classes == len(class_names(preset)):
        model.class_names = class_names(preset)
    return Released(model, spec, preset, provenance)


def read_as(file: Path, spec: openai.Spec) -> Model:
    """The model in a file that is known to be of this spec."""
    return checked_model(file, read_state_dict(file), spec)


def checked_model(file: Path, state_dict: dict[str, Tensor], spec: openai.Spec) -> Model:
    try:
        check_finite(state_dict)
        return move_into_model(state_dict, spec)
    except DamagedError as error:
        raise DamagedError(f"{shown_path(file)}: {error}") from error


def model_from_released(state_dict: Mapping[str, Tensor], spec: openai.Spec) -> Model:
    """The model of a released state dict, in eval mode, float32."""
    return move_into_model(dict(state_dict), spec)


def move_into_model(state_dict: dict[str, Tensor], spec: openai.Spec) -> Model:
    """The model, made of the tensors of the state dict, which is empty afterwards."""
    with torch.device("meta"):
        network = UNet(spec.network) if isinstance(spec.network, UNetConfig) else EncoderClassifier(spec.network)
    weights = openai.move_to_ours(
        state_dict, spec.network, new_attention_order=spec.new_attention_order, dtype=torch.float32
    )
    network.load_state_dict(weights, assign=True)
    schedule = None
    if spec.noise_schedule is not None and spec.diffusion_steps is not None:
        config = ScheduleConfig(spec.noise_schedule, spec.diffusion_steps)  # type: ignore[arg-type]
        schedule = make_schedule(config)
    if isinstance(spec.network, ClassifierConfig):
        return NoisyClassifier(network, schedule, spec.time_scale).eval()
    assert schedule is not None
    return DiffusionModel(network, schedule, spec.mean, spec.variance, spec.time_scale).eval()


def identify(
    file: Path, sha256: str, state_dict: Mapping[str, Tensor], said: Said
) -> tuple[openai.Spec, Preset | None, str | None]:
    """(what the file is, the preset it is or is like, by what it was recognised)."""
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    where = shown_path(file)
    if not said.nothing:
        try:
            return openai.fit(merged(said), shapes), None if said.like is None else find_preset(said.like), None
        except DamagedError as error:
            like = "" if said.like is None else f"is not like {said.like}: "
            raise DamagedError(f"{where}: {like}{error}") from error
    for preset, by in ((store.preset_of_sha256(sha256), "sha256"), (kept_as(file), "name in the cache")):
        if preset is not None:
            return preset_spec(preset), preset, by
    try:
        structures = openai.infer(shapes)
    except DamagedError as error:
        raise DamagedError(f"{where}: {error}") from error
    candidates = presets_of(structures, file.name)
    if len(candidates) != 1:
        raise UsageError(unknown(file, structures[0], candidates))
    preset = candidates[0]
    warnings.warn(
        f"{where} is taken for {preset.name}: no other preset has its shapes. If it is something else, "
        "say how it was made: adm convert with --flags.",
        stacklevel=2,
    )
    return preset_spec(preset), preset, "shapes"


def merged(said: Said) -> dict[str, Any]:
    """The flags of the preset that the file is like, and over them those that were given."""
    flags = {} if said.flags is None else openai.check_flags(said.flags)
    if said.like is None:
        return flags
    preset = find_preset(said.like)
    known = openai.check_flags(preset.flags)
    strange = sorted(name for name in flags if name in ("model_channels", "out_channels", "num_classes", "pool"))
    if strange:
        raise UsageError(f"{strange[0]} is a constructor's keyword, not a flag; leave out --like, or use the flags")
    return known | flags


def kept_as(file: Path) -> Preset | None:
    """The preset under whose name a file lies in the cache, where somebody put it without `adm models get`."""
    if file.parent.resolve() != store.models_directory().resolve():
        return None
    return next((preset for preset in PRESETS.values() if preset.file == file.name), None)


def presets_of(structures: tuple[Structure, ...], name: str, *, but_for_classes: bool = False) -> list[Preset]:
    """The presets with these shapes; first those whose file is called so. but_for_classes: however many those are."""

    def compared(structure: Structure) -> Structure:
        return replace(structure, num_classes=structure.num_classes and 1) if but_for_classes else structure

    wanted = [compared(structure) for structure in structures]
    found = [preset for preset in PRESETS.values() if compared(structure_of(preset_spec(preset))) in wanted]
    return sorted(found, key=lambda preset: preset.file != name)


def unknown(file: Path, structure: Structure, candidates: list[Preset]) -> str:
    """Why a file that nothing is said of is refused, and how to say it."""
    where = shown_path(file)
    convert = f"adm convert {shlex.quote(where)} DST"
    if candidates:
        names = ", ".join(preset.name for preset in candidates)
        return (
            f"{where}: its shapes are those of {len(candidates)} presets ({names}), or of a model of yours. "
            f"Say which: {convert} --like {candidates[0].name}, or give its flags: --flags '...'"
        )
    kin = presets_of((structure,), file.name, but_for_classes=True)
    like = f"--like {kin[0].name} if it was made from that" if kin else "--like PRESET if it was made as one of them"
    return (
        f"{where}: holds {structure}, which is no preset. Say what its shapes do not: "
        f"{convert} --flags '{' '.join(silent_about(structure))}', or {like}"
    )


def check_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Refuses numbers that are not finite: they would make every image black."""
    wrong = [name for name, tensor in state_dict.items() if not is_finite(tensor)]
    if wrong:
        first = state_dict[wrong[0]]
        count = int((~torch.isfinite(first)).sum())
        raise DamagedError(
            f"{len(wrong)} of {len(state_dict)} tensors are not finite, the first is {one_line(wrong[0])} "
            f"({count:,} of {first.numel():,} numbers); take an earlier file of that training"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; a finite sum, which takes a third of the time, says so of nearly every tensor."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return True
    return bool(torch.isfinite(tensor).all())


def file_sha256(file: str | Path) -> str:
    """The file's sha256. Raises DamagedError if another one was recorded beside it by `adm models get`."""
    file = Path(file)
    try:
        status = os.stat(file)
    except OSError as error:
        raise files.explanation(error, "read", file) from error
    sha256 = _sha256(str(file.absolute()), status.st_size, status.st_mtime_ns)
    recorded = store.recorded_sha256(file)
    if recorded is not None and recorded != sha256:
        store.check_recorded(file)  # says so
    return sha256


@functools.lru_cache(maxsize=64)
def _sha256(file: str, num_bytes: int, changed: int) -> str:
    """Kept, because whoever loads a model of gigabytes records its hash next."""
    return files.sha256_file(file)
