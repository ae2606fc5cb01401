"""What guidance by a loss does to a trained model: rules, scales and the limit, on digits.

    python benchmarks/loss_guidance.py --out /tmp/loss_guidance

A model of 8x8 digits is trained (about a minute on two cores; one that is there is used again), and its samples are
drawn under two losses that docs/guidance.md has: `darker`, the mean of the image, and the left half of a test digit,
as the summed square of what differs. Each number is the mean over the seeds, after it half the distance between the
largest and the smallest; every seed draws --num images, each with another test digit and its label. grey: mean of the
samples, 0 to 255. known, unknown: root mean square, in units of [-1, 1], of what differs from the test digit, in the
half that the loss sees and in the other one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import adm
from adm.data import Loader
from adm.data.digits import Digits
from adm.training.config import DiffusionTraining
from adm.training.defaults import default_config
from adm.training.run import train

RULES = [
    ("dpm_solver_2m", 8),
    ("dpm_solver_2m", 15),
    ("heun", 10),
    ("ddim", 50),
    ("dpm_solver_sde", 25),
    ("ddpm", 50),
]
LIMITS = (1.0, float("inf"))
DARKER = (-5.0, 0.0, 1.0, 5.0)
INPAINTING = (0.0, 1.0, 10.0, 30.0)
Row = Callable[[str, int, float, float, int], Sequence[float]]


def digits_model(out: Path, steps: int) -> adm.DiffusionModel:
    config = default_config("diffusion", "digits", Digits("train"))
    assert isinstance(config, DiffusionTraining)
    loop = replace(config.loop, steps=steps, batch_size=32, sample_every=None)
    network = replace(config.network, model_channels=16)
    train(replace(config, loop=loop, network=network), out)
    model = adm.load(out)
    assert isinstance(model, adm.DiffusionModel)
    return model


def darker(x0: Tensor) -> Tensor:
    return x0.flatten(1).mean(1)


def greys(model: adm.DiffusionModel, num: int) -> Row:
    def row(sampler: str, steps: int, scale: float, limit: float, seed: int) -> Sequence[float]:
        guidance = adm.LossGuidance(darker, scale, limit)
        drawn = adm.generate(model, None, steps, sampler, seed, guidance, num, batch_size=num)
        return [float(drawn.mean())]

    return row


def errors(model: adm.DiffusionModel, num: int) -> Row:
    test = Loader(Digits("test"), image_size=8, batch_size=num, seed=0).batch(position=0)
    real, labels = test.images, test.label
    known = torch.zeros_like(real)
    known[..., :4] = 1

    def left_half(x0: Tensor) -> Tensor:
        return ((x0 - real) * known).square().flatten(1).sum(1)

    def row(sampler: str, steps: int, scale: float, limit: float, seed: int) -> Sequence[float]:
        guidance = adm.LossGuidance(left_half, scale, limit)
        drawn = adm.generate(model, labels.tolist(), steps, sampler, seed, guidance, batch_size=num)
        error = (torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1 - real).square()
        return [float((error * part).sum().div(part.sum()).sqrt()) for part in (known, 1 - known)]

    return row


def table(title: str, row: Row, scales: Sequence[float], seeds: int, form: str) -> None:
    print(f"\n| {title} | limit | " + " | ".join(f"scale {scale:g}" for scale in scales) + " |")
    print("|---|---|" + "---|" * len(scales), flush=True)
    for sampler, steps in RULES:
        for limit in LIMITS:
            cells = []
            for scale in scales:
                found = np.array([row(sampler, steps, scale, limit, 1000 * seed) for seed in range(seeds)])
                spread = (found.max(0) - found.min(0)) / 2
                cells.append(", ".join(f"{a:{form}} ± {b:{form}}" for a, b in zip(found.mean(0), spread, strict=True)))
            print(f"| `{sampler}`, {steps} | {limit:g} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the model is or will be")
    parser.add_argument("--steps", type=int, default=400, help="of training, 32 digits each")
    parser.add_argument("--seeds", type=int, default=3, help="of the samples")
    parser.add_argument("--num", type=int, default=32, help="samples of each seed")
    given = parser.parse_args()
    model = digits_model(given.out / f"digits-{given.steps}", given.steps)
    print(f"torch {torch.__version__}, {given.steps} steps of training, {given.seeds} seeds of {given.num} images")
    table("darker: grey", greys(model, given.num), DARKER, given.seeds, ".0f")
    table("left half: known, unknown", errors(model, given.num), INPAINTING, given.seeds, ".2f")


if __name__ == "__main__":
    main()
