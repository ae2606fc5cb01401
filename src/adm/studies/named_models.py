"""Models by the names that people give them, as the kind that is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from adm.checkpoints import store
from adm.checkpoints.load import load, load_file
from adm.checkpoints.model_document import Model
from adm.checkpoints.presets import Preset, find_preset, is_preset
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.guidance import Guidance
from adm.runtime import files
from adm.runtime.errors import UsageError
from adm.runtime.text import shown_path
from adm.studies._resolve import words_of

__all__ = [
    "Kind",
    "as_diffusion",
    "as_upsampler",
    "load_classifier",
    "load_diffusion",
    "named_preset",
    "read_with_preset",
    "refuse_other_kind",
    "require_presets",
]

Kind = Literal["diffusion", "upsampler"]
"""What makes images: from noise alone, or from noise and a small image."""


def load_diffusion(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "ema", name: str | Path | None = None
) -> DiffusionModel:
    """`adm.load` for what must be a diffusion model that makes images from noise alone. name: as it was given."""
    preset = named_preset(path)
    if preset is not None:
        refuse_other_kind(preset)
    return as_diffusion(load(path, device, weights), shown_path(path if name is None else name))


def load_classifier(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "ema", name: str | Path | None = None
) -> NoisyClassifier:
    """`adm.load` for what must be a noisy classifier. name: as it was given."""
    model = load(path, device, weights)
    if not isinstance(model, NoisyClassifier):
        shown = shown_path(path if name is None else name)
        raise UsageError(f"{shown} is a diffusion model. Give a classifier.")
    return model


def as_diffusion(model: Model, shown: str) -> DiffusionModel:
    """The model. Raises UsageError if it is a classifier, or an upsampler, which noise alone is not enough for."""
    if not isinstance(model, DiffusionModel):
        raise UsageError(f"{shown} is a classifier. Give a diffusion model.")
    if _enlarges(model):
        raise UsageError(
            f"{shown} is an upsampler: it enlarges small images, and noise alone gives it none. Give a base model, or "
            "small images to adm upsample; from Python, adm.sample takes adm.Condition(low_res=...)."
        )
    return model


def as_upsampler(model: Model, shown: str) -> DiffusionModel:
    """The model. Raises UsageError if it is a classifier, or makes images from noise alone."""
    if not isinstance(model, DiffusionModel):
        raise UsageError(f"{shown} is a classifier. Give an upsampler.")
    if not _enlarges(model):
        raise UsageError(
            f"{shown} makes images from noise alone, with adm sample, and enlarges none. Give an upsampler."
        )
    return model


def _enlarges(model: DiffusionModel) -> bool:
    return bool(getattr(getattr(model.network, "config", None), "low_res_channels", 0))


def refuse_other_kind(preset: Preset, wanted: Kind = "diffusion") -> None:
    """UsageError for a preset that is of another kind, which need not be fetched to know that."""
    if preset.kind == wanted:
        return
    if wanted == "upsampler":
        known = {"diffusion": "makes images from noise alone", "classifier": "is a classifier"}[preset.kind]
        its = "" if preset.upsampler is None else f"; of its images, {preset.upsampler}"
        raise UsageError(f"{preset.name} {known}, and enlarges none. Give an upsampler{its}.")
    if preset.kind == "classifier":
        raise UsageError(
            f"{preset.name} is a classifier. Give a diffusion model, such as {' or '.join(preset.guides)}."
        )
    if preset.kind == "upsampler":
        base = "a base model" if preset.base is None else f"its base, {preset.base}"
        raise UsageError(
            f"{preset.name} is an upsampler: it enlarges small images, and noise alone gives it none. "
            f"Sample {base}, and give adm upsample those."
        )


def named_preset(model: str | Path) -> Preset | None:
    """The preset of this name; None for a path, which comes first where both exist."""
    name = Path(model).as_posix()
    return find_preset(name) if is_preset(name) and not Path(model).exists() else None


def read_with_preset(place: Path, weights: str) -> tuple[Model, Preset | None]:
    """The model at a located path, and the preset that it is: recognised now, or when it was converted."""
    if not place.is_dir():
        released = load_file(place, weights)
        return released.model, released.preset
    model = load(place, weights=weights)
    provenance = place / "provenance.json"
    document = files.read_json(provenance) if provenance.exists() else None
    name = document.get("preset") if isinstance(document, Mapping) else None
    return model, find_preset(name) if isinstance(name, str) and is_preset(name) else None


def require_presets(model: str | Path, guidance: Sequence[str | Guidance] = ()) -> None:
    """UsageError that names every preset among these that is not on this machine, and how to fetch it; DamagedError for
    one that is not whole."""
    names = [str(model)]
    for spec in guidance:
        names += words_of(spec) if isinstance(spec, str) else ()
    presets = [preset for name in dict.fromkeys(names) if (preset := named_preset(name)) is not None]
    states = {preset.name: store.stored(store.artifact(preset)).state for preset in presets}
    missing = [name for name, state in states.items() if state in ("absent", "partial")]
    if missing:
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        commands = "; ".join(f"adm models get {name}" for name in missing)
        raise UsageError(f"{' and '.join(missing)} {are} not on this machine. Fetch {them}: {commands}")
    for preset in presets:
        store.require_file(preset)
