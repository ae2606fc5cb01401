"""What an upsampler is shown, and pictures of what it makes of it while it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adm.data import Dataset, center_crop, overview, to_model_range, to_uint8
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import DiffusionModel
from adm.guidance import guide
from adm.guidance.clip import Clip
from adm.sampling import SeededNoise, StepEvent, sample
from adm.sampling.ddim import DDIM
from adm.training.config import UpsamplerTraining
from adm.training.preview import PIXELS_AT_ONCE, num_shown, refuse_not_finite

__all__ = ["low_res_of", "preview_upsampler"]

NUM_SHOWN = 8


def low_res_of(x0: Tensor, size: tuple[int, int], noise: float, u: Tensor, z: Tensor) -> Tensor:
    """The image that an upsampler is shown of x0 (N, C, H, W): each pixel the mean of its block, and noise on it.

    size: (height, width), which divide x0's. noise: the largest standard deviation, in units of [-1, 1]; image k gets
    noise * u[k] * z[k], with u (N,) uniform and z (N, C, *size) normal. Nothing is clamped. Raises ValueError.
    Source: ADM section 5 and its code, which averages areas and adds no noise; noise as in CDM (Ho et al. 2021)
    section 4.2, but for the network not being told its level.
    """
    if any(low < 1 or side % low for low, side in zip(size, x0.shape[2:], strict=True)):
        raise ValueError(
            f"low_res size {tuple(size)}: both sides must divide those of the image, {tuple(x0.shape[2:])}"
        )
    low_res = F.interpolate(x0, size, mode="area")
    if not noise:
        return low_res
    return low_res + noise * u.to(x0)[:, None, None, None] * z.to(x0)


@torch.no_grad()
def preview_upsampler(
    model: DiffusionModel,
    weights: Mapping[str, Tensor],
    dataset: Dataset,
    config: UpsamplerTraining,
    num: int | None = None,
    steps: int = 25,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """A picture, uint8 (H, W, C), of three rows: low-res images, what the model makes of them, the true images. It says
    so below each, and of the true ones the class.

    The images are spread evenly over the data set, so over its classes too, and always the same; the low-res ones are
    shown enlarged by whole pixels and carry no noise. weights: the network's, such as the averaged ones. num: None for
    8, or 4 where 8 would keep a CPU busy for minutes; at most as many as there are. steps: about as many, of clipped
    DDIM. on_progress: called after each step with (images done, of num); what it raises ends the work. Raises
    DivergedError when an image is not finite.
    """
    shape = model.image_shape
    assert shape is not None, "networks of a training config know their image shape"
    num = min(len(dataset), min(NUM_SHOWN, num_shown(model, shape)) if num is None else num)
    indices = [k * len(dataset) // num for k in range(num)]
    true = np.stack([center_crop(dataset.image(i), shape[1:]) for i in indices])
    x0 = to_model_range(true)
    low_res = low_res_of(x0, config.low_res, 0.0, torch.zeros(num), torch.zeros(()))
    label = None if model.num_classes is None else torch.tensor(_labels(model, dataset, indices))
    shown = copy.deepcopy(model)
    shown.network.load_state_dict(dict(weights))
    made = _upsampled(shown.eval(), Condition(label=label, low_res=low_res), num, shape, steps, on_progress)
    small = F.interpolate(low_res, shape[1:], mode="nearest")
    rows = np.concatenate([to_uint8(small).numpy(), to_uint8(made).numpy(), true])
    height, width = config.low_res
    names = [f"true {dataset.class_names[y]}" if y >= 0 else "true" for y in map(dataset.label, indices)]
    return overview(rows, [f"input {height}x{width}"] * num + ["upsampled"] * num + names, columns=num)


def _upsampled(
    model: DiffusionModel,
    cond: Condition,
    num: int,
    shape: tuple[int, int, int],
    steps: int,
    on_progress: Callable[[int, int], None],
) -> Tensor:
    """(num, C, H, W) on the CPU; image k from seed k."""
    T = model.schedule.num_timesteps
    # About as many links as asked for; an integer stride exists for any T.
    chain = Chain(model.schedule, range(0, T, max(1, T // steps)))
    size = min(num, max(1, PIXELS_AT_ONCE // (shape[1] * shape[2])))
    blocks = []
    for start in range(0, num, size):
        seeds = range(start, min(start + size, num))

        def report(event: StepEvent, seeds: range = seeds) -> None:
            on_progress(seeds.start + len(seeds) * (event.i + 1) // len(chain), num)

        some = cond[seeds.start : seeds.stop]
        noise = SeededNoise(seeds)
        x = sample(guide(model, Clip()), chain, DDIM(), noise, (len(seeds), *shape), some, on_step=report)
        refuse_not_finite(x)
        blocks.append(x.cpu())
    return torch.cat(blocks)


def _labels(model: DiffusionModel, dataset: Dataset, indices: list[int]) -> list[int]:
    """The model's labels of these images: by the names of their classes where the data set numbers them otherwise."""
    labels = [dataset.label(i) for i in indices]
    if tuple(dataset.class_names) == model.class_names or not model.class_names:
        return labels
    number = {name: k for k, name in enumerate(model.class_names)}
    return [number.get(dataset.class_names[label], -1) if label >= 0 else -1 for label in labels]
