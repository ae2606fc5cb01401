"""From a model and a few words to images: what `adm sample`, the demo and every study share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adm.data import to_uint8
from adm.diffusion.condition import Condition
from adm.diffusion.grids import Steps
from adm.diffusion.model import DiffusionModel
from adm.runtime.errors import DivergedError, UsageError
from adm.runtime.randomness import MAX_SEED
from adm.runtime.text import one_line
from adm.sampling import Sampler, SeededNoise, sample
from adm.studies._cost import Cost, counted
from adm.studies.choices import Guidances, choose
from adm.studies.labels import labels_in_turn
from adm.studies.request import Request, prepare, prepare_named

__all__ = ["Batch", "batches", "check_seeds", "generate", "resolve_labels"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images index .. index + n: uint8 (n, H, W, C). cost: of each, in evaluations."""

    index: int
    images: NDArray[np.uint8]
    cost: Cost = field(default_factory=Cost)

    @property
    def indices(self) -> range:
        return range(self.index, self.index + len(self.images))


def generate(
    model: str | Path | DiffusionModel,
    labels: Sequence[int | str] | None = None,
    steps: Steps | None = None,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    guidance: Guidances = (),
    num: int | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> NDArray[np.uint8]:
    """Images of a model, uint8 (n, H, W, C).

    model: what `adm.load` takes, or a model. labels: class names or numbers, one for each image; n is their number,
    or num, and then they are taken in turn. steps: a number of links, a grid ("karras:10", "ddim25", "10,10,15", or
    the .json of one that was fitted) or timesteps; None takes those that were released with a preset for this sampler,
    else 250 of ddpm, 50 of ddim and 25 of others. guidance: a spec or an object, or several; "classifier" alone means
    the preset's classifier and its scale. Image k depends on seed + k. x_0 is clamped to [-1, 1], unless a guidance of
    the stage "clip" is given, not only inside of another. Raises UsageError, and DivergedError where an image is not
    finite.
    """
    if isinstance(model, DiffusionModel):
        choice = choose(None, "a model that is passed as an object", sampler, steps, guidance)
        request = prepare(model, choice.steps, sampler, choice.guidance)
    else:
        request = prepare_named(model, steps, sampler, guidance, device)
    chosen = resolve_labels(request, labels, num)
    check_seeds(seed, len(chosen))
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: must be at least 1.")
    done = [batch.images for batch in batches(request, chosen, seed, batch_size)]
    return np.concatenate(done)


def batches(
    request: Request,
    labels: Sequence[int],
    seed: int = 0,
    batch_size: int = 16,
    wanted: Callable[[int], bool] = lambda index: True,
    on_step: Callable[[int, int], None] = lambda index, step: None,
    low_res: Callable[[range], Tensor] | None = None,
) -> Iterator[Batch]:
    """The images, labels[k] from seed + k, in blocks of batch_size that start at multiples of it.

    The last block is filled up with images that are thrown away, so an image's bytes do not depend on how many are
    asked for. wanted(k): blocks without a wanted image are skipped. on_step(index, step) after each step. low_res: of
    an upsampler, the images range -> (len(range), C, h, w) in [-1, 1] to be enlarged. Raises DivergedError for a block
    with an image that is not finite: none of that block is given.
    """
    shape = request.model.image_shape
    if shape is None:
        raise UsageError("this model's network does not say what images it makes. Use a network with image_shape.")
    size = min(batch_size, len(labels))
    for start in range(0, len(labels), size):
        count = min(size, len(labels) - start)
        if not any(wanted(k) for k in range(start, start + count)):
            continue
        filled = torch.arange(size).clamp(max=count - 1)
        some = torch.tensor(labels[start : start + count])[filled]
        small = None if low_res is None else low_res(range(start, start + count))[filled]
        cond = Condition(label=some if bool((some >= 0).any()) else None, low_res=small)
        noise = SeededNoise(range(seed + start, seed + start + size))
        with counted(request.denoiser, *request.models, images=size) as cost:
            x = sample(
                request.denoiser,
                request.chain,
                request.sampler,
                noise,
                (size, *shape),
                cond,
                on_step=lambda event, start=start: on_step(start, event.i),  # type: ignore[misc]
            )
        x = x[:count].cpu()
        _refuse_not_finite(x, request, start, seed)
        yield Batch(start, to_uint8(x).numpy(), cost)


def _refuse_not_finite(x: Tensor, request: Request, start: int, seed: int) -> None:
    """DivergedError when one of the images start, start + 1, ... is not finite: it would be drawn black or white."""
    bad = [start + k for k, is_finite in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not is_finite]
    if not bad:
        return
    names = one_line(", ".join(request.guided_by), 160)
    is_low = any(model.precision not in (None, torch.float32) for model in request.models)
    remedy = "set precision=float32, or " if is_low else ""
    if names:
        cause = f"made under the guidance {names}"
        remedy += "lower its scale, or leave it out to see whether the network itself makes such images"
    else:
        cause = "made by the network itself, without guidance"
        remedy += "take another checkpoint or sampler"
    raise DivergedError(f"{_numbered(bad, seed)} not finite, {cause}, and not drawn: {remedy}.")


def _numbered(images: Sequence[int], seed: int) -> str:
    """The beginning of a sentence about these images, rising: "images 3 to 5 (seeds 13 to 15) are"."""
    first, last, num = images[0], images[-1], len(images)
    if num == 1:
        return f"image {first} (seed {seed + first}) is"
    if last - first + 1 == num:
        return f"images {first} to {last} (seeds {seed + first} to {seed + last}) are"
    return f"{num} images, the first of them {first} (seed {seed + first}), are"


def resolve_labels(request: Request, labels: Sequence[int | str] | None, num: int | None) -> list[int]:
    """`labels_in_turn` for the classes of a request. Raises UsageError for labels where nothing uses them."""
    given = labels is not None and len(labels) > 0
    if given and request.num_classes is None and not request.is_guided:
        raise UsageError("labels were given, but the model is unconditional and nothing guides it. Add --guidance.")
    return labels_in_turn(labels, num, request.classes, request.num_classes)


def check_seeds(first: int, num: int) -> None:
    """UsageError when the seeds first, first + 1, ... of num images leave what a seed may be."""
    if first < 0 or first + num - 1 > MAX_SEED:
        raise UsageError(f"seed {first}: the seeds of {num} images, counted up from it, must lie in 0..2**64-1.")
