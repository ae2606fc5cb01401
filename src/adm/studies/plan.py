"""What training will need and how long it will take, before it starts: from shapes, and from a few steps of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from adm.data import Dataset
from adm.runtime.device import available_memory
from adm.runtime.distributed import World
from adm.runtime.errors import UsageError
from adm.runtime.memory import container_left
from adm.runtime.text import num_bytes
from adm.studies._plan_probe import STEPS, WARM_UP, Probe, ProbeFailed, probe_training
from adm.studies._plan_time import evaluations, kept_images, time_of
from adm.training.build import check_data, make_loader
from adm.training.config import ClassifierTraining, TrainConfig
from adm.training.cost import TrainingCost, largest_batch, microbatch_that_fits, training_cost
from adm.training.gradients import check_portions

__all__ = ["TrainingPlan", "headline", "memory_left", "plan_training"]

USABLE = 0.9
"""Of the memory that is left: allocators lose some in pieces that are too small."""

PATIENCE = 60.0
"""Seconds that the steps of one probe may take."""

TRIES = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What is known of a run before it starts.

    processes: of the run; memory and images at once are those of each. cost: by shapes. available: bytes that the
    device has left, None where it does not say. fits: the microbatch that does, all of a step's images if that is it,
    None if not even one image does. largest: the most images a step that would go through the network at once. memory:
    bytes that the run takes, as measured, or scaled from what was measured; None without a probe. step_seconds: of a
    whole batch. parts: seconds in all, by what for; empty without a probe. disk: bytes in all. notes: what is worth
    knowing, a line each.
    """

    config: TrainConfig
    device: torch.device
    cost: TrainingCost
    available: int | None
    fits: int | None
    largest: int | None
    disk: int
    memory: int | None = None
    step_seconds: float | None = None
    probe: Probe | None = None
    parts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    processes: int = 1

    @property
    def images_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.config.loop.batch_size / self.step_seconds


def headline(config: TrainConfig, device: torch.device, processes: int = 1) -> list[str]:
    """The first lines of a run: what is trained, and what each process will need, by shapes alone."""
    height, width = config.network.size
    classes, loop = config.network.num_classes, config.loop
    kind = "unconditional" if classes is None else f"{classes} classes"
    cost = training_cost(config, processes)
    length = f"{loop.steps} steps" if loop.minutes is None else f"{loop.minutes:g} minutes"
    many = f", {processes} processes" if processes > 1 else ""
    dropout = 0.0 if classes is None or isinstance(config, ClassifierTraining) else config.label_dropout
    unlabelled = f"label dropout {dropout:g}, " if dropout else ""
    return [
        f"{config.job}: {height}x{width}, {config.network.in_channels} channel(s), {kind}, "
        f"{cost.num_parameters / 1e6:.2f}M parameters, batch {loop.batch_size}, {length}, "
        f"learning rate {config.optimizer.lr:g}, {unlabelled}on {device}{many}",
        f"{flops(cost.forward_flops)} to evaluate an image, {flops(cost.step_flops * loop.batch_size)} a step; "
        f"about {num_bytes(cost.peak)} of memory with {cost.microbatch} image(s) at once "
        f"(weights {num_bytes(cost.weights)}, gradients {num_bytes(cost.gradients)}, "
        f"AdamW {num_bytes(cost.optimizer)}, EMA {num_bytes(cost.ema)}, activations {num_bytes(cost.activations)}); "
        f"{num_bytes(cost.checkpoint)} a checkpoint",
    ]


def plan_training(
    config: TrainConfig,
    device: torch.device,
    dataset: Dataset | None = None,
    out: Path | None = None,
    probe: bool = True,
    on_stage: Callable[[str], None] = lambda what: None,
    processes: int = 1,
) -> TrainingPlan:
    """The plan of a run on this device, or in several processes with a device like this one each.

    Of several processes one is planned, with its share of the batch; what they exchange takes no time here. dataset:
    the run's, open; None if there is none yet, and then the time to read images is not known. out: the run's directory,
    whose disk is timed. probe: run a few steps of the real size (or of what a minute allows, and then scale what was
    measured) in another process; without it only shapes speak. on_stage: called with what is being done. Raises
    UsageError for a batch that does not split, DataError for data that the run would refuse.
    """
    share = share_of(config, processes)
    if dataset is not None:
        world = World(size=processes)
        check_data(config, dataset)
        make_loader(config, dataset, world)
        check_portions(config.loop.batch_size, config.loop.microbatch, config.loop.exact, world)
    if processes != 1:
        own = scaled(config, share, config.loop.microbatch)
        plan = plan_training(own, device, dataset, out, probe, on_stage)
        cost = training_cost(config, processes)
        note = (
            f"each of {processes} processes takes {own.loop.batch_size} image(s) of a step, on a device like this one; "
            f"the {num_bytes(cost.gradients)} of gradients that they exchange take time that is not in this"
        )
        return noted(replace(plan, config=config, cost=cost, processes=processes), note)
    available = memory_left(device)
    budget = None if available is None else int(USABLE * available)
    cost = training_cost(config)
    plan = TrainingPlan(config, device, cost, available, None, None, disk_of(config, cost, dataset))
    fits = cost.microbatch if budget is None or cost.peak <= budget else microbatch_that_fits(config, budget)
    plan = replace(plan, fits=fits, largest=None if budget is None else largest_batch(config, budget))
    if not probe:
        return plan
    if fits is None:
        assert available is not None
        needed = training_cost(scaled(config, 1)).peak
        return noted(
            plan,
            f"no step was tried: with one image it would take about {num_bytes(needed)}, and {device} has "
            f"{num_bytes(available)} left",
        )
    try:
        return measured(plan, out, dataset, on_stage)
    except ProbeFailed as error:
        return noted(plan, f"no step could be measured: {error}")


def measured(
    plan: TrainingPlan, out: Path | None, dataset: Dataset | None, on_stage: Callable[[str], None]
) -> TrainingPlan:
    """The plan with what two probes say: a small one, then the real size, or as much of it as a minute allows."""
    config, device = plan.config, plan.device
    wanted = config.loop.batch_size
    assert plan.fits is not None
    few = max(1, min(8, wanted // 4, plan.fits))
    measuring = evaluations(config, dataset)  # before anything is tried: the validation data may not be there
    on_stage(f"trying {WARM_UP + STEPS} steps with {few} image(s)")
    small = probe_training(scaled(config, few), device, PATIENCE / 2, out)
    fits = plan.fits
    for attempt in range(TRIES):
        tried = affordable(small.step_seconds / few, few, wanted, fits)
        used = scaled(config, tried, min(fits, tried) if fits < wanted else None)
        on_stage(
            f"trying {WARM_UP + STEPS} steps with {tried} image(s)" + (f", {fits} at once" if fits < tried else "")
        )
        try:
            large = probe_training(used, device, PATIENCE, out, extras=True)
            break
        except ProbeFailed as error:
            if not error.out_of_memory or fits == 1 or attempt == TRIES - 1:
                raise
            fits = max(1, fits // 2)
    ruler = Ruler.of(scaled(config, few), small, used, large)
    step = large.step_seconds
    notes: list[str] = []
    if tried < wanted:
        slope = (large.step_seconds - small.step_seconds) / (tried - few) if tried > few else large.step_seconds / tried
        step = large.step_seconds + max(0.0, slope) * (wanted - tried)
        notes.append(f"time and memory of a step are scaled from steps of {few} and {tried} images")
    plan = replace(plan, probe=large, step_seconds=step, notes=tuple(notes))
    if plan.available is not None:
        budget = ruler.shapes(int(USABLE * plan.available) - large.base)
        plan = replace(plan, fits=microbatch_that_fits(config, budget), largest=largest_batch(config, budget))
        if plan.fits is not None:
            plan = checked(plan, ruler, large.step_seconds / tried, out, on_stage)
    whole = config if plan.fits is None or plan.fits >= plan.cost.microbatch else scaled(config, wanted, plan.fits)
    memory = ruler.real(training_cost(whole).peak) + large.base + kept_images(config, dataset, device)
    on_stage("reading images")
    return replace(plan, memory=memory, parts=time_of(config, step, large, dataset, measuring))


@dataclass(frozen=True)
class Ruler:
    """Bytes as shapes say them to bytes as they were measured, by the line through two measurements."""

    shape: int
    measured: int
    slope: float

    @staticmethod
    def of(small: TrainConfig, first: Probe, large: TrainConfig, second: Probe) -> Ruler:
        a, b = training_cost(small).peak, training_cost(large).peak
        if first.reserved is None or second.reserved is None:
            return Ruler(0, 0, 1.0)
        # Libraries need room beside the tensors, but not less than nothing, nor several times as much.
        slope = (second.reserved - first.reserved) / (b - a) if b > a else 1.0
        return Ruler(b, second.reserved, min(2.0, max(1.0, slope)))

    def real(self, shape: int) -> int:
        return round(self.measured + self.slope * (shape - self.shape))

    def shapes(self, real: int) -> int:
        return round(self.shape + (real - self.measured) / self.slope)


def checked(
    plan: TrainingPlan, ruler: Ruler, image_seconds: float, out: Path | None, on_stage: Callable[[str], None]
) -> TrainingPlan:
    """The plan with `largest`, or where the batch does not fit at once `fits`, tried out if a minute suffices."""
    at_once = plan.fits == plan.config.loop.batch_size
    size = plan.largest if at_once else plan.fits
    assert size is not None
    for _ in range(TRIES):
        config = scaled(plan.config, size) if at_once else scaled(plan.config, 2 * size, size)
        if image_seconds * config.loop.batch_size * (WARM_UP + 1) > PATIENCE:
            break
        on_stage(f"trying {WARM_UP + 1} steps with {size} image(s) at once, to see that they fit")
        try:
            probe_training(config, plan.device, 0.0, out)
            said = f"{size} images at once were tried, and fit"
            plan = replace(plan, notes=(*plan.notes, said))
            break
        except ProbeFailed as error:
            if not error.out_of_memory or size == 1:
                raise
            size = max(1, size * 9 // 10)
    return replace(plan, largest=size) if at_once else replace(plan, fits=size)


def affordable(image_seconds: float, few: int, wanted: int, at_once: int) -> int:
    """The largest batch, up to the wanted one, whose steps end within the patience; whole microbatches."""
    most = int(PATIENCE / (WARM_UP + STEPS) / image_seconds)
    if most >= wanted:
        return wanted
    size = max(most, min(wanted, 2 * few))
    return size // at_once * at_once if size > at_once else size


def disk_of(config: TrainConfig, cost: TrainingCost, dataset: Dataset | None) -> int:
    """Bytes of the checkpoints that stay and the one being written, and of the stored snapshots of averages."""
    loop, every = config.loop, config.ema.snapshot_every
    saves = math.ceil(loop.steps / loop.save_every)
    snapshots = 0 if every is None else math.ceil(loop.steps / every)  # one at the end, too
    return min(saves, loop.keep + 1) * cost.checkpoint + snapshots * cost.ema


def memory_left(device: torch.device) -> int | None:
    """Bytes that a new process could have on the device, within the limit of the container; None where nobody says."""
    known = [available_memory(device)] + ([container_left()] if device.type == "cpu" else [])
    return min((left for left in known if left is not None), default=None)


def scaled(config: TrainConfig, batch: int, microbatch: int | None = None) -> TrainConfig:
    """The config with another batch."""
    return replace(config, loop=replace(config.loop, batch_size=batch, microbatch=microbatch, exact=False))


def share_of(config: TrainConfig, processes: int) -> int:
    """Images of a step for each process."""
    batch = config.loop.batch_size
    if processes < 1 or batch % processes:
        raise UsageError(
            f"--processes {processes}: a batch of {batch} does not split so. Use a divisor of it, or another --batch."
        )
    return batch // processes


def noted(plan: TrainingPlan, note: str) -> TrainingPlan:
    return replace(plan, notes=(*plan.notes, note))


def flops(count: float) -> str:
    """Operations as three digits or so with a unit."""
    for unit in ("MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"):
        count /= 1e6 if unit == "MFLOPs" else 1000
        if count < 999.5 or unit == "PFLOPs":
            break
    return f"{count:.1f} {unit}" if count < 99.5 else f"{count:.0f} {unit}"
