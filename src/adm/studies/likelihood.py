"""Bits per dimension of a data set, batch by batch, with its conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from adm.data import Dataset, center_crop, class_numbers, to_model_range
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.likelihood import bits_per_dim
from adm.diffusion.model import DiffusionModel
from adm.diffusion.schedule import spaced
from adm.guidance import guide
from adm.guidance.clip import Clip
from adm.runtime.errors import DataError, DivergedError, UsageError
from adm.sampling import SeededNoise

__all__ = ["conditions_line", "measure_likelihood"]


def measure_likelihood(
    model: DiffusionModel,
    dataset: Dataset,
    num: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The variational bound on images of a data set, with x_0 clipped as released.

    num: that many, spread evenly over the data, which may be sorted by class; None for all. steps: links of the chain,
    `spaced`; None for every timestep. Fewer links are another chain, whose bound differs from the model's own. Noise of
    image k comes from seed + k. The standard error is over images. `num_resized` images were not of the model's size
    and were cropped and scaled. Raises DataError, UsageError, and DivergedError where a bound is not finite.
    """
    shape = model.image_shape
    if shape is None:
        raise UsageError("this model's network does not say what images it takes. Use a network with image_shape.")
    if dataset.channels != shape[0]:
        raise DataError(
            f"{dataset.name}: {dataset.channels} channel(s), the model has {shape[0]}. Use its kind of data."
        )
    numbers = class_numbers(dataset, model.class_names, model.num_classes)
    count = len(dataset) if num is None else min(num, len(dataset))
    if count < 1 or batch_size < 1:
        raise UsageError("ask for at least 1 image and a batch of at least 1.")
    chosen = [k * len(dataset) // count for k in range(count)]
    T = model.schedule.num_timesteps
    try:
        chain = Chain(model.schedule, range(T) if steps is None else spaced(T, steps))
    except ValueError as error:
        raise UsageError(f"steps {steps}: {error}.") from error
    clipped = guide(model, Clip())
    totals, terms = [], []
    num_resized = 0
    total_work = count * len(chain)
    for start in range(0, count, batch_size):
        rows = chosen[start : start + batch_size]
        images = [dataset.image(i) for i in rows]
        num_resized += sum(image.shape[:2] != shape[1:] for image in images)
        x0 = to_model_range(np.stack([center_crop(image, shape[1:]) for image in images])).to(model.device)
        label = [numbers[dataset.label(i)] for i in rows] if numbers else None
        cond = Condition() if label is None else Condition(label=torch.tensor(label, device=model.device))
        noise = SeededNoise([seed + i for i in rows])
        done = start * len(chain)
        bits = bits_per_dim(
            clipped,
            chain,
            x0,
            noise,
            cond,
            on_step=lambda i, n=len(rows), d=done: on_progress(d + (i + 1) * n, total_work),  # type: ignore[misc]
        )
        for i, is_finite in zip(rows, bits.total.isfinite().tolist(), strict=True):
            if not is_finite:
                raise DivergedError(f"{dataset.name}: the bound of image {i} is not finite. Take another checkpoint.")
        totals.append(bits.total.cpu())
        terms.append(bits.vb.cpu())
    values = torch.cat(totals).double()
    spread = float(values.std() / count**0.5) if count > 1 else 0.0
    return {
        "bits_per_dim": float(values.mean()),
        "standard_error": spread,
        "num": count,
        "num_available": len(dataset),
        "images": "all" if count == len(dataset) else "spread evenly: image k is number k * num_available // num",
        "num_resized": num_resized,
        "steps": len(chain),
        "timesteps": T,
        "levels": 256,
        "seed": seed,
        "clip": True,
        "terms": torch.cat(terms).double().mean(dim=0).tolist(),
    }


def conditions_line(result: Mapping[str, Any], shape: tuple[int, int, int]) -> str:
    """What the number of `measure_likelihood` is of, in words. shape: the model's (C, H, W)."""
    num, available = result["num"], result["num_available"]
    parts = [f"{num} images" if num == available else f"{num} of {available} images, spread evenly"]
    if result["num_resized"]:
        which = "" if result["num_resized"] == num else f"{result['num_resized']} of them "
        parts.append(f"{which}cropped and scaled to {shape[1]}x{shape[2]}, so not of the data as they are")
    if result["steps"] != result["timesteps"]:
        parts.append(
            f"{result['steps']} of {result['timesteps']} timesteps: another bound than that of all, compare only alike"
        )
    return "; ".join(parts)
