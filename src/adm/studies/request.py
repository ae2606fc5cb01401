"""Everything that images are a function of, built of a model and a few words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from adm.checkpoints.load import fingerprint, load, locate
from adm.checkpoints.model_document import Model
from adm.checkpoints.presets import Preset
from adm.diffusion.chain import Chain
from adm.diffusion.grids import Steps
from adm.diffusion.model import Denoiser, DiffusionModel, NoisyClassifier
from adm.guidance import Guidance, guide
from adm.guidance.clip import Clip
from adm.runtime import files, lookup
from adm.runtime.errors import UsageError
from adm.runtime.text import shown_path
from adm.sampling import Sampler
from adm.studies._chains import chain_for, grid_file, grid_name, read_grid
from adm.studies._cost import models_in
from adm.studies._resolve import resolver
from adm.studies.choices import Guidances, as_guidances, check_sampler, choose, default_steps, full_spec
from adm.studies.named_models import (
    Kind,
    as_diffusion,
    as_upsampler,
    load_classifier,
    named_preset,
    read_with_preset,
    refuse_other_kind,
    require_presets,
)

__all__ = ["Request", "prepare", "prepare_named"]

_CHECKS = {"diffusion": as_diffusion, "upsampler": as_upsampler}


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that images are a function of, but for the seed and which image it is.

    denoiser: the model under its guidances. classes: names of the classes that labels may name (empty: no names).
    num_classes: how many there are; None if no model here knows classes. is_guided: whether a guidance may ask for
    labels even so. guides: checkpoints of the models that guidances named. models: the model, and all that guide. grid:
    the name of the chain's, None for the sampler's own. null_label: whether the model is also asked without its label.
    guided_by: each guidance that was given, as its spec or in a word. Of a model that was named: name, the preset's or
    its directory's; checkpoint; preset, if it is one; guidance, in full; said, what was chosen for the user, in a line.
    """

    model: DiffusionModel
    denoiser: Denoiser
    chain: Chain
    sampler: Sampler
    classes: tuple[str, ...]
    num_classes: int | None
    is_guided: bool
    guides: tuple[Path, ...]
    models: tuple[Model, ...] = ()
    grid: str | None = None
    null_label: bool = False
    guided_by: tuple[str, ...] = ()
    name: str = ""
    checkpoint: Path | None = None
    preset: Preset | None = None
    guidance: tuple[str, ...] = ()
    said: str | None = None


def prepare_named(
    model: str | Path,
    steps: Steps | None,
    sampler: str | Sampler,
    guidance: Guidances = (),
    device: str | torch.device = "cpu",
    weights: str = "ema",
    precision: Literal["float32", "bfloat16"] | None = None,
    kind: Kind = "diffusion",
) -> Request:
    """`prepare` for what `adm.load` takes, with what is left open chosen by the preset behind it.

    Before anything is loaded, a preset that is not on this machine is a UsageError that says how to fetch it.
    """
    shown = shown_path(model)
    named = named_preset(model)
    if named is not None:
        refuse_other_kind(named, kind)
        require_presets(model, choose(named, shown, sampler, steps, guidance).guidance)
    checkpoint = locate(model)  # once: a run that is still training soon has a newer one
    loaded, preset = read_with_preset(checkpoint, weights)
    loaded = _CHECKS[kind](loaded, shown).to(device)
    choice = choose(preset, shown, sampler, steps, guidance)
    require_presets(model, choice.guidance)
    request = prepare(loaded, choice.steps, sampler, choice.guidance, precision, kind)
    for note in (_untrained_null_label(request, checkpoint), _other_models_grid(choice.steps, checkpoint, shown)):
        if note is not None:
            warnings.warn(note, stacklevel=2)
    return replace(
        request,
        name=checkpoint.name if named is None else named.name,
        checkpoint=checkpoint,
        preset=preset,
        guidance=tuple(full_spec("guidance", spec) for spec in choice.guidance if isinstance(spec, str)),
        said=choice.said(len(request.chain)),
    )


def _untrained_null_label(request: Request, checkpoint: Path) -> str | None:
    """A note when a run never saw the null label that its guidance asks about."""
    if not request.null_label or not (checkpoint / "config.json").is_file():
        return None
    config = files.read_json(checkpoint / "config.json")
    if not isinstance(config, Mapping) or config.get("label_dropout") != 0:
        return None
    return (
        "the model was trained with label_dropout=0 and has never seen an image without a label, which the guidance "
        "asks about. Train with --set label_dropout=0.1, or give the guidance an unconditional model (model=RUN)"
    )


def _other_models_grid(steps: Steps | None, checkpoint: Path, shown: str) -> str | None:
    """A note when the grid in a file was fitted to other weights."""
    file = grid_file(steps)
    grid = None if file is None else read_grid(file)
    if file is None or grid is None or grid.model_sha256 == fingerprint(checkpoint):
        return None
    return f"the timesteps in {shown_path(file)} were fitted to other weights ({grid.model}) than those of {shown}"


def prepare(
    model: DiffusionModel,
    steps: Steps | None,
    sampler: str | Sampler,
    guidance: Guidances = (),
    precision: Literal["float32", "bfloat16"] | None = None,
    kind: Kind = "diffusion",
) -> Request:
    """Build sampler, chain and guidances. Component specs are text as on the command line, or ready objects.

    steps: as for `generate`; None for `default_steps`. precision: bfloat16 is autocast around the networks, the guiding
    ones too; None leaves them as they are. kind: what the model must be. x_0 is clamped to [-1, 1], unless a guidance
    of the stage "clip" is given, not only inside of another, such as an interval. Raises UsageError for what does not
    go together.
    """
    _CHECKS[kind](model, "the model")
    check_sampler(sampler)
    given = as_guidances(guidance)
    rule: Sampler = lookup.build("sampling", sampler) if isinstance(sampler, str) else sampler
    paths: list[Path] = []

    def load_guide(text: str, classifies: bool) -> Model:
        paths.append(locate(text))
        if classifies:
            return load_classifier(paths[-1], model.device or "cpu", name=text)
        return _CHECKS[kind](load(paths[-1], model.device or "cpu"), shown_path(text))

    resolve = resolver(load_guide)
    guidances: list[Guidance] = [lookup.build("guidance", g, resolve) if isinstance(g, str) else g for g in given]
    models = models_in(model, *guidances)
    _check_schedules(models)
    if precision is not None:  # before guidances wrap the model: some make a second one of it
        for other in models:
            other.precision = torch.bfloat16 if precision == "bfloat16" else None
    # One inside of another, such as an interval, does not bound x_0 everywhere.
    if not any(getattr(g, "stage", None) == "clip" and not _inner(g) for g in guidances):
        guidances.append(Clip())
    steps = default_steps(rule, model.schedule) if steps is None else steps
    chain = chain_for(rule, model.schedule, steps)
    try:
        denoiser = guide(model, *guidances)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    names, num_classes = _known_classes(models)
    is_guided = any(getattr(g, "stage", None) not in ("clip", "after") for g in guidances)
    return Request(
        model,
        denoiser,
        chain,
        rule,
        names,
        num_classes,
        is_guided,
        tuple(paths),
        tuple(models),
        grid_name(rule, chain, steps),
        any(map(_asks_null_label, guidances)),
        tuple(_word_of(g) for g in given),
    )


def _word_of(guidance: str | Guidance) -> str:
    return guidance if isinstance(guidance, str) else getattr(guidance, "__name__", type(guidance).__name__)


def _inner(guidance: object) -> list[object]:
    """The guidances inside of this one."""
    return [value for value in getattr(guidance, "__dict__", {}).values() if hasattr(value, "stage")]


def _asks_null_label(guidance: object) -> bool:
    """Whether this guidance, or one inside of it, contrasts the model with itself without a label."""
    if any(map(_asks_null_label, _inner(guidance))):
        return True
    values = getattr(guidance, "__dict__", {})
    is_contrast = type(guidance).__module__ in ("adm.guidance.classifier_free", "adm.guidance.apg")
    return is_contrast and values.get("model") is None and values.get("weight") != 1


def _check_schedules(models: Sequence[Model]) -> None:
    if any(other.schedule is None for other in models):
        warnings.warn(
            "the classifier does not say which noise schedule it was trained for: take care that it is the model's",
            stacklevel=3,
        )


def _known_classes(models: Sequence[DiffusionModel | NoisyClassifier]) -> tuple[tuple[str, ...], int | None]:
    """The class names of these models, and how many classes labels may mean; they must have as many as each other."""
    labelled = [model for model in models if model.num_classes is not None]
    sizes = sorted({model.num_classes for model in labelled if model.num_classes is not None})
    if len(sizes) > 1:
        raise UsageError(f"model and classifier know {' and '.join(map(str, sizes))} classes. Use a pair.")
    names = next((model.class_names for model in labelled if model.class_names), ())
    # A network may have room for more classes than it was trained on.
    return names, (len(names) or sizes[0]) if sizes else None
