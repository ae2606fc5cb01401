"""From a model and a few words to images: what `adm sample`, the demo and every study share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adm.checkpoints.load import load
from adm.data import to_uint8
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser, DiffusionModel, NoisyClassifier
from adm.guidance import Guidance, guide
from adm.guidance.classifier import ClassifierGuidance
from adm.guidance.clip import Clip
from adm.runtime import lookup
from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line, shown_path
from adm.sampling import Sampler, SeededNoise, sample, timesteps_for

__all__ = [
    "Batch",
    "Request",
    "batches",
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
    num_classes: how many there are; None if nothing asks for a label.
    """

    model: DiffusionModel
    denoiser: Denoiser
    chain: Chain
    sampler: Sampler
    classes: tuple[str, ...]
    num_classes: int | None


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
    or num, over which they are repeated in turn. Image k depends on seed + k. x_0 is clipped, unless a `clip`
    guidance says otherwise. Raises UsageError.
    """
    loaded = model if isinstance(model, DiffusionModel) else load_diffusion(model, device)
    request = prepare(loaded, steps, sampler, guidance)
    chosen = resolve_labels(request, labels, num)
    done = [batch.images for batch in batches(request, chosen, seed, batch_size)]
    return np.concatenate(done)


def prepare(
    model: DiffusionModel,
    steps: int,
    sampler: str | Sampler,
    guidance: Sequence[str | Guidance] = (),
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Request:
    """Build sampler, chain and guidances. Component specs are text as on the command line, or ready objects.

    precision: bfloat16 is autocast around the networks, the guiding ones too. x_0 is clipped, unless a `clip` is
    among the guidances. Raises UsageError for what does not go together.
    """
    device = model.device
    rule: Sampler = lookup.build("sampling", sampler) if isinstance(sampler, str) else sampler

    def resolve(annotation: Any, text: str) -> object:
        return load(text, device)

    guidances: list[Guidance] = [lookup.build("guidance", g, resolve) if isinstance(g, str) else g for g in guidance]
    if not any(isinstance(g, Clip) and not g.after for g in guidances):
        guidances.append(Clip())
    try:
        chain = Chain(model.schedule, timesteps_for(rule, model.schedule.num_timesteps, steps))
        denoiser = guide(model, *guidances)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    guides = [g.classifier for g in guidances if isinstance(g, ClassifierGuidance)]
    networks: list[DiffusionModel | NoisyClassifier] = [
        model,
        *(guide for guide in guides if isinstance(guide, NoisyClassifier)),
    ]
    for network in networks:
        network.precision = torch.bfloat16 if precision == "bfloat16" else None
    labelled = [network for network in networks if network.num_classes is not None]
    names = next((network.class_names for network in labelled if network.class_names), ())
    sizes = {network.num_classes for network in labelled if network.num_classes is not None}
    if len(sizes) > 1:
        raise UsageError(f"model and classifier know {' and '.join(map(str, sorted(sizes)))} classes. Use a pair.")
    return Request(model, denoiser, chain, rule, names, sizes.pop() if sizes else None)


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
        cond = Condition() if request.num_classes is None else Condition(label=torch.tensor(some))
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
    if request.num_classes is None:
        if labels:
            raise UsageError("labels were given, but the model is unconditional and nothing guides it. Add --guidance.")
        return [-1] * (64 if num is None else num)
    chosen = (
        [class_number(label, request.classes, request.num_classes) for label in labels]
        if labels
        else list(range(request.num_classes))
    )
    count = num if num is not None else len(chosen) if labels else 64
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


def class_number(label: int | str, names: tuple[str, ...], num_classes: int) -> int:
    """The number of a class by its name, or by its number when no class is called so."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, str) and not label.lstrip("-").isdecimal():
        known = f"The classes are {one_line(', '.join(names), 120)}." if names else f"Use 0 to {num_classes - 1}."
        raise UsageError(f"label {one_line(label, 40)!r} is no class{nearest(label, names)} {known}")
    if not 0 <= int(label) < num_classes:
        raise UsageError(f"label {label} is no class: use 0 to {num_classes - 1}.")
    return int(label)


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
