"""From a model and a few words to images: what `adm sample`, the demo and every study share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adm.checkpoints.load import load, locate
from adm.checkpoints.model_document import Model
from adm.data import to_uint8
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser, DiffusionModel, NoisyClassifier
from adm.guidance import Guidance, guide
from adm.guidance.clip import Clip
from adm.runtime import lookup
from adm.runtime.errors import UsageError
from adm.runtime.randomness import MAX_SEED
from adm.runtime.text import nearest, one_line, shown_path
from adm.sampling import Sampler, SeededNoise, sample, timesteps_for

__all__ = [
    "Batch",
    "Request",
    "batches",
    "check_seeds",
    "generate",
    "load_classifier",
    "load_diffusion",
    "parse_labels",
    "prepare",
]

DEFAULT_STEPS = 50


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that images are a function of, but for the seed and which image it is.

    denoiser: the model under its guidances. classes: names of the classes that labels may name (empty: no names).
    num_classes: how many there are; None if no model here knows classes. is_guided: whether a guidance may ask for
    labels even so. guides: checkpoints of the models that guidances named.
    """

    model: DiffusionModel
    denoiser: Denoiser
    chain: Chain
    sampler: Sampler
    classes: tuple[str, ...]
    num_classes: int | None
    is_guided: bool
    guides: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images index .. index + n: uint8 (n, H, W, C)."""

    index: int
    images: NDArray[np.uint8]


def generate(
    model: str | Path | DiffusionModel,
    labels: Sequence[int | str] | None = None,
    steps: int = DEFAULT_STEPS,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    guidance: Sequence[str | Guidance] = (),
    num: int | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> NDArray[np.uint8]:
    """Images of a model, uint8 (n, H, W, C).

    model: what `adm.load` takes, or a model. labels: class names or numbers, one for each image; n is their number,
    or num, and then they are taken in turn. Image k depends on seed + k. x_0 is clamped to [-1, 1], unless a guidance
    of the stage "clip" is given. Raises UsageError.
    """
    loaded = model if isinstance(model, DiffusionModel) else load_diffusion(model, device)
    request = prepare(loaded, steps, sampler, guidance)
    chosen = resolve_labels(request, labels, num)
    check_seeds(seed, len(chosen))
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: must be at least 1.")
    done = [batch.images for batch in batches(request, chosen, seed, batch_size)]
    return np.concatenate(done)


def prepare(
    model: DiffusionModel,
    steps: int,
    sampler: str | Sampler,
    guidance: Sequence[str | Guidance] = (),
    precision: Literal["float32", "bfloat16"] | None = None,
) -> Request:
    """Build sampler, chain and guidances. Component specs are text as on the command line, or ready objects.

    precision: bfloat16 is autocast around the networks, the guiding ones too; None leaves them as they are. x_0 is
    clamped to [-1, 1], unless a guidance of the stage "clip" is given. Raises UsageError for what does not go
    together.
    """
    rule: Sampler = lookup.build("sampling", sampler) if isinstance(sampler, str) else sampler
    paths: list[Path] = []

    def resolve(annotation: Any, text: str) -> object:
        paths.append(locate(text))
        # What is asked for gradients is a classifier; any other model in a guidance is a denoiser.
        kind = load_classifier if hasattr(annotation, "grad_log_prob") else load_diffusion
        return kind(paths[-1], model.device or "cpu")

    guidances: list[Guidance] = [lookup.build("guidance", g, resolve) if isinstance(g, str) else g for g in guidance]
    models = [model, *(value for g in guidances for value in vars(g).values() if isinstance(value, Model))]
    if not any(getattr(g, "stage", None) == "clip" for g in guidances):
        guidances.append(Clip())
    try:
        chain = Chain(model.schedule, timesteps_for(rule, model.schedule.num_timesteps, steps))
        denoiser = guide(model, *guidances)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    if any(other.schedule is None for other in models):
        warnings.warn(
            "the classifier does not say which noise schedule it was trained for: take care that it is the model's",
            stacklevel=2,
        )
    if precision is not None:
        for other in models:
            other.precision = torch.bfloat16 if precision == "bfloat16" else None
    names, num_classes = _known_classes(models)
    is_guided = any(getattr(g, "stage", None) not in ("clip", "after") for g in guidances)
    return Request(model, denoiser, chain, rule, names, num_classes, is_guided, tuple(paths))


def _known_classes(models: Sequence[DiffusionModel | NoisyClassifier]) -> tuple[tuple[str, ...], int | None]:
    """The class names of these models, and how many classes labels may mean; they must have as many as each other."""
    labelled = [model for model in models if model.num_classes is not None]
    sizes = sorted({model.num_classes for model in labelled if model.num_classes is not None})
    if len(sizes) > 1:
        raise UsageError(f"model and classifier know {' and '.join(map(str, sizes))} classes. Use a pair.")
    names = next((model.class_names for model in labelled if model.class_names), ())
    # A network may have room for more classes than it was trained on.
    return names, (len(names) or sizes[0]) if sizes else None


def batches(
    request: Request,
    labels: Sequence[int],
    seed: int = 0,
    batch_size: int = 16,
    wanted: Callable[[int], bool] = lambda index: True,
    on_step: Callable[[int, int], None] = lambda index, step: None,
) -> Iterator[Batch]:
    """The images, labels[k] from seed + k, in blocks of batch_size that start at multiples of it.

    The last block is filled up with images that are thrown away, so an image's bytes do not depend on how many are
    asked for. wanted(k): blocks without a wanted image are skipped. on_step(index, step) after each step.
    """
    shape = request.model.image_shape
    if shape is None:
        raise UsageError("this model's network does not say what images it makes. Use a network with image_shape.")
    size = min(batch_size, len(labels))
    for start in range(0, len(labels), size):
        count = min(size, len(labels) - start)
        if not any(wanted(k) for k in range(start, start + count)):
            continue
        some = [labels[min(start + i, len(labels) - 1)] for i in range(size)]
        cond = Condition(label=torch.tensor(some)) if max(some) >= 0 else Condition()
        noise = SeededNoise(range(seed + start, seed + start + size))
        x = sample(
            request.denoiser,
            request.chain,
            request.sampler,
            noise,
            (size, *shape),
            cond,
            on_step=lambda event, start=start: on_step(start, event.i),  # type: ignore[misc]
        )
        yield Batch(start, to_uint8(x[:count].cpu()).numpy())


def resolve_labels(request: Request, labels: Sequence[int | str] | None, num: int | None) -> list[int]:
    """One label for each image: those given, in turn; else every class in turn; -1 where nothing has classes."""
    given = [] if labels is None else list(labels)
    if given and request.num_classes is None and not request.is_guided:
        raise UsageError("labels were given, but the model is unconditional and nothing guides it. Add --guidance.")
    if given:
        chosen = [class_number(label, request.classes, request.num_classes) for label in given]
    else:
        chosen = [-1] if request.num_classes is None else list(range(request.num_classes))
    count = num if num is not None else len(given) or 64
    if count < 1:
        raise UsageError(f"{count} images were asked for. Ask for at least 1.")
    return [chosen[k % len(chosen)] for k in range(count)]


def parse_labels(text: str) -> list[str]:
    """`tench,207,cat*3` -> ["tench", "207", "cat", "cat", "cat"]."""
    labels: list[str] = []
    for part in text.split(","):
        name, star, times = part.strip().rpartition("*")
        if star and times.strip().isdecimal():
            labels += [name.strip()] * int(times)
        else:
            labels.append(part.strip())
    if not labels or not all(labels):
        raise UsageError(f"labels {one_line(text)!r}: write names or numbers with commas, such as cat,3,dog*2.")
    return labels


def class_number(label: int | str, names: tuple[str, ...], num_classes: int | None) -> int:
    """The number of a class by its name, or by its number when no class is called so. num_classes: None if unknown."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    rule = "Use whole numbers from 0 up." if num_classes is None else f"Use 0 to {num_classes - 1}."
    if isinstance(label, str) and not label.lstrip("-").isdecimal():
        known = f"The classes are {one_line(', '.join(names), 120)}." if names else rule
        raise UsageError(f"label {one_line(label, 40)!r} is no class{nearest(label, names)} {known}")
    if int(label) < 0 or (num_classes is not None and int(label) >= num_classes):
        raise UsageError(f"label {label} is no class. {rule}")
    return int(label)


def check_seeds(first: int, num: int) -> None:
    """UsageError when the seeds first, first + 1, ... of num images leave what a seed may be."""
    if first < 0 or first + num - 1 > MAX_SEED:
        raise UsageError(f"seed {first}: the seeds of {num} images, counted up from it, must lie in 0..2**64-1.")


def load_diffusion(path: str | Path, device: str | torch.device = "cpu", weights: str = "ema") -> DiffusionModel:
    """`adm.load` for what must be a diffusion model."""
    model = load(path, device, weights)
    if not isinstance(model, DiffusionModel):
        raise UsageError(f"{shown_path(Path(path))} is a classifier. Give a diffusion model.")
    return model


def load_classifier(path: str | Path, device: str | torch.device = "cpu", weights: str = "ema") -> NoisyClassifier:
    """`adm.load` for what must be a noisy classifier."""
    model = load(path, device, weights)
    if not isinstance(model, NoisyClassifier):
        raise UsageError(f"{shown_path(Path(path))} is a diffusion model. Give a classifier.")
    return model
