"""Samples to watch while a model trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from adm.data import overview, to_uint8
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import DiffusionModel
from adm.guidance import guide
from adm.guidance.clip import Clip
from adm.runtime.errors import DivergedError
from adm.sampling import SeededNoise, StepEvent, sample
from adm.sampling.ddim import DDIM

__all__ = ["preview", "refuse_not_finite", "with_classes"]

MUCH_FOR_A_CPU = 2e10
"""Parameters times pixels, to which the time of an image is roughly proportional; about two seconds for each image."""

FEW_COLUMNS, MANY_COLUMNS = 6, 12
"""In a row there are as many images as classes, or a multiple of that, if that is about between these."""

PIXELS_AT_ONCE = 8 * 32 * 32
"""A block of a grid: small enough for the memory that training left, and for progress to be seen."""


@torch.no_grad()
def preview(
    model: DiffusionModel,
    weights: Mapping[str, Tensor],
    num: int | None = None,
    steps: int = 25,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """uint8 (num, H, W, C): clipped DDIM samples of the model under other weights, labels in turn.

    num: None for 36, or 4 where that many would keep a CPU busy for minutes. on_progress: called after each step with
    (images done, of num). Raises DivergedError when an image is not finite.
    """
    shown = copy.copy(model)
    shown._modules = dict(model._modules)
    shown.network = copy.deepcopy(model.network)
    shown.network.load_state_dict(dict(weights))
    shown.eval()
    shape = model.image_shape
    assert shape is not None, "networks of a training config know their image shape"
    classes = model.num_classes
    T = model.schedule.num_timesteps
    # About as many links as asked for; an integer stride, as guided DDIM wants them, exists for any T.
    chain = Chain(model.schedule, range(0, T, max(1, T // steps)))
    num = num_shown(model, shape) if num is None else num
    size = min(num, max(1, PIXELS_AT_ONCE // (shape[1] * shape[2])))
    blocks = []
    for start in range(0, num, size):
        seeds = range(start, min(start + size, num))

        def report(event: StepEvent, seeds: range = seeds) -> None:
            on_progress(seeds.start + len(seeds) * (event.i + 1) // len(chain), num)

        cond = Condition() if classes is None else Condition(label=torch.tensor(seeds) % classes)
        x = sample(guide(shown, Clip()), chain, DDIM(), SeededNoise(seeds), (len(seeds), *shape), cond, on_step=report)
        refuse_not_finite(x)
        blocks.append(to_uint8(x.cpu()).numpy())
    return np.concatenate(blocks)


def refuse_not_finite(x: Tensor) -> None:
    """DivergedError when a number in the images is not finite: it would be drawn black or white."""
    if not bool(torch.isfinite(x).all()):
        raise DivergedError(
            "sample grid: an image is not finite, though the weights are, and none is drawn. Lower optimizer.lr, set "
            "loop.precision=float32, or have no grids: loop.sample_every=none."
        )


def with_classes(images: np.ndarray, model: DiffusionModel) -> np.ndarray:
    """One picture, uint8 (H, W, C), of what `preview` has made: the class below each image, and where the classes are
    few the images of one below each other."""
    classes = model.num_classes
    if classes is None:
        return overview(images)
    labels = [k % classes for k in range(len(images))]
    names = [model.class_names[y] if y < len(model.class_names) else str(y) for y in labels]
    columns = min(len(images), classes * max(1, FEW_COLUMNS // classes)) if classes <= MANY_COLUMNS else None
    return overview(images, names, columns)


def num_shown(model: DiffusionModel, shape: tuple[int, int, int]) -> int:
    cost = sum(p.numel() for p in model.parameters()) * shape[1] * shape[2]
    return 4 if cost > MUCH_FOR_A_CPU and model.device == torch.device("cpu") else 36
