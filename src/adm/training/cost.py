"""What a training run needs before it starts: operations, memory by kind, disk. Counted from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from adm.checkpoints.model_document import make_schedule
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import EncoderClassifier, UNet
from adm.nn.cost import PassCost, pass_cost
from adm.training.config import ClassifierTraining, DataConfig, LoopConfig, OptimizerConfig, TrainConfig
from adm.training.ema import EMAConfig
from adm.training.objectives import Examples, StepNoise
from adm.training.trainer import make_objective

__all__ = ["TrainingCost", "largest_batch", "microbatch_that_fits", "training_cost"]

FLOAT32 = 4


@dataclass(frozen=True)
class TrainingCost:
    """Of one process of a run.

    num_parameters: numbers. forward_flops and step_flops: of one image, in the network and in a training step, as
    `adm.nn.cost` counts them; recomputed activations count again. microbatch: images that go through the network at
    once. All else are bytes: weights, gradients, optimizer (AdamW's two averages), ema (the averaged weights), batch
    (the step's images and noise), activations (what a microbatch keeps for the backward pass), peak (of everything
    that is alive at once; the parts need not be so at the same moment, and what libraries and allocators need is not
    known from shapes), checkpoint (on disk).
    """

    num_parameters: int
    forward_flops: int
    step_flops: int
    microbatch: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    batch: int
    activations: int
    peak: int
    checkpoint: int


def training_cost(config: TrainConfig, processes: int = 1) -> TrainingCost:
    """The cost of this run in each of so many processes. No memory of its size is used."""
    loop = config.loop
    share = -(-loop.batch_size // processes)
    microbatch = min(loop.microbatch or (1 if loop.exact else share), share)
    work = _pass(_shapes(config), microbatch, microbatch < share)
    num = _num_parameters(_shapes(config))
    weights = FLOAT32 * num
    averages = weights * (1 + len(config.ema.others))
    batch = 2 * FLOAT32 * share * config.network.in_channels * config.network.size[0] * config.network.size[1]
    accumulated = weights if microbatch < share else 0
    if loop.exact:  # gradients are added in pairs of pairs, and one of each level waits
        accumulated *= 1 + math.ceil(math.log2(max(1, share // microbatch)))
    # The update itself makes nothing of the weights' size: gradients, AdamW's averages and EMA are all that is there.
    peak = 3 * weights + averages + batch + max(accumulated + work.peak_bytes, weights)
    return TrainingCost(
        num_parameters=num,
        forward_flops=work.forward_flops // microbatch,
        step_flops=work.flops // microbatch,
        microbatch=microbatch,
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        ema=averages,
        batch=batch,
        activations=work.kept_bytes,
        peak=peak,
        checkpoint=3 * weights + averages,
    )


def microbatch_that_fits(config: TrainConfig, available: int, processes: int = 1) -> int | None:
    """The largest microbatch, in passes of equal size, whose peak is at most `available` bytes; None if one image's
    is more. The whole share of a process if that fits."""
    share = -(-config.loop.batch_size // processes)
    if largest_batch(config, available, processes) >= share * processes:
        return share
    parts = replace(config, loop=replace(config.loop, microbatch=1))
    rest = training_cost(parts, processes).peak - _pass(_shapes(config), 1, True).peak_bytes
    most = min(_most_images(config, available - rest, True), share - 1)
    return -(-share // -(-share // most)) if most else None


def largest_batch(config: TrainConfig, available: int, processes: int = 1) -> int:
    """The most images a step, through the network at once, whose peak is at most `available` bytes; 0 if none."""
    cost = training_cost(replace(config, loop=replace(config.loop, batch_size=processes, microbatch=None)), processes)
    resident = cost.weights + cost.optimizer + cost.ema
    if resident + cost.gradients > available:
        return 0
    return processes * _most_images(config, available - resident, False, cost.batch)


def _most_images(config: TrainConfig, budget: int, accumulate: bool, per_image: int = 0) -> int:
    """The most images whose pass, with so many bytes more for each, never has more than the budget alive."""
    two, three = (_pass(_shapes(config), n, accumulate).timeline for n in (2, 3))
    # One image is left out as a measure: of a single one, torch need not copy what it has to copy of several.
    lines = [(b - a, 3 * a - 2 * b) for a, b in zip(two, three, strict=True)]
    growing = [(slope + per_image, base) for slope, base in lines if slope + per_image > 0]
    return max(0, min((budget - base) // slope for slope, base in growing))


def _shapes(config: TrainConfig) -> TrainConfig:
    """The config without what shapes do not depend on, so that equal shapes are counted once."""
    return replace(
        config,
        data=DataConfig(""),
        optimizer=OptimizerConfig(),
        ema=EMAConfig(),
        loop=LoopConfig(precision=config.loop.precision),
        source=None,
        preset=None,
        source_sha256=None,
    )


@lru_cache(maxsize=4)
def _num_parameters(config: TrainConfig) -> int:
    return sum(p.numel() for p in _network(config).parameters())


@lru_cache(maxsize=64)
def _pass(config: TrainConfig, microbatch: int, accumulate: bool) -> PassCost:
    """One pass of a microbatch, as the trainer makes it."""
    schedule = make_schedule(config.schedule)
    network = _network(config).train()
    model: DiffusionModel | NoisyClassifier
    if isinstance(config, ClassifierTraining):
        model = NoisyClassifier(network, schedule, config.time_scale)
    else:
        model = DiffusionModel(network, schedule, config.mean, config.variance, config.time_scale)
    objective = make_objective(model, config)

    def loss() -> Tensor:
        with torch.device("meta"):
            x0 = torch.empty(microbatch, config.network.in_channels, *config.network.size)
            label = torch.empty(microbatch, dtype=torch.long)
            eps = torch.empty_like(x0)
        t = torch.zeros(microbatch, dtype=torch.long)  # timesteps are drawn on the CPU, where the tables are
        return objective(model, Examples(x0, label), StepNoise(t, eps)).loss.sum()

    precision = torch.bfloat16 if config.loop.precision == "bfloat16" else None
    return pass_cost(network, loss, precision, accumulate)


def _network(config: TrainConfig) -> nn.Module:
    with torch.device("meta"):
        return EncoderClassifier(config.network) if config.job == "classifier" else UNet(config.network)
