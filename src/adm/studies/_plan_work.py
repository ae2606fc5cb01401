"""What the process of a probe does: reads a request, tries the work, and says how long it took and what memory."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from adm.runtime.errors import AdmError
from adm.runtime.memory import peak_bytes, resident_bytes
from adm.studies._plan_probe import STEPS, WARM_UP, Probe
from adm.training.config import ClassifierTraining, TrainConfig, UpsamplerTraining, parse_config

__all__ = ["main"]

FOR_DISK = 500_000_000
"""Bytes of a checkpoint that are written to see how fast that is."""


def main() -> None:
    """Reads a request from stdin, answers with a line on stdout."""
    request = json.load(sys.stdin)
    device = torch.device(request["device"])
    work = _training if request["what"] == "training" else _sampling
    try:
        answer: dict[str, Any] = {"probe": asdict(work(request, device))}
    except (RuntimeError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        answer = {"failed": text, "out_of_memory": short}
    print(json.dumps(answer), flush=True)


def _training(request: Mapping[str, Any], device: torch.device) -> Probe:
    from adm.data import Batch, open_dataset
    from adm.training.build import new_model
    from adm.training.trainer import Trainer

    config = parse_config(request["config"], "the probe")
    for module in (
        "adm.training.run",
        "tensorboard.summary.writer.record_writer",
        "PIL.Image",
    ):  # what a run has loaded by then
        importlib.import_module(module)
    if not Path(config.data.path).exists():  # a named data set brings a library of its own
        with contextlib.suppress(AdmError):
            open_dataset(config.data.path)
    memory = _Memory(device)
    started = time.monotonic()
    trainer = Trainer(new_model(config, (), device), config)
    n = config.loop.batch_size
    images = torch.rand(n, config.network.in_channels, *config.network.size) * 2 - 1
    classes = config.network.num_classes
    label = torch.full((n,), -1) if classes is None else torch.arange(n) % classes
    index = torch.arange(n)

    def step() -> None:
        trainer.advance(Batch(images, label, index, trainer.position))

    start, median, count = _timed(step, device, started, request["limit"])
    extra = _extras(trainer, config, device, request["out"]) if request["extras"] else {}
    return Probe(n, median, count, memory.peak(), memory.reserved(), start, memory.base, **extra)


def _sampling(request: Mapping[str, Any], device: torch.device) -> Probe:
    from adm.studies._plan_sampling import open_request
    from adm.studies.generate import batches, resolve_labels

    memory = _Memory(device)
    started = time.monotonic()
    sampling, _, _ = open_request(**request["words"], device=device)
    n = request["images"]
    labels = resolve_labels(sampling, None, n)
    begun = time.monotonic()
    ends: list[tuple[int, float]] = []

    def on_step(index: int, step: int) -> None:
        wait(device)
        ends.append((index, time.monotonic()))
        late = len(ends) > WARM_UP and time.monotonic() - begun > request["limit"]
        if len(ends) >= WARM_UP + STEPS or late:
            raise _Enough

    try:
        while True:  # a chain may be shorter than what is measured
            for _ in batches(sampling, labels, 0, n, on_step=on_step):
                pass
    except _Enough:
        pass
    ends = [(0, begun), *ends]
    durations = [after[1] - before[1] for before, after in itertools.pairwise(ends)]
    counted = sorted(durations[min(WARM_UP, len(durations) - 1) :])
    median = counted[len(counted) // 2]
    start = begun - started + max(0.0, durations[0] - median)
    return Probe(n, median, len(counted), memory.peak(), memory.reserved(), start, memory.base)


class _Enough(Exception):
    """Nothing more has to be measured."""


class _Memory:
    """The most memory that work takes from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = resident_bytes()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def base(self) -> int:
        return (self.before or 0) if self.device.type == "cpu" else 0

    def peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return int(torch.mps.driver_allocated_memory())
        most = peak_bytes()
        return None if most is None else most - (self.before or 0)

    def reserved(self) -> int | None:
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else self.peak()


def _timed(step: Callable[[], None], device: torch.device, started: float, limit: float) -> tuple[float, float, int]:
    """(seconds until the first step and what it took longer than others, median seconds of a step, how many)."""
    begun = time.monotonic()
    durations: list[float] = []
    while len(durations) < WARM_UP + STEPS:
        if len(durations) > 1 and time.monotonic() - begun > limit:
            break
        before = time.monotonic()
        step()
        wait(device)
        durations.append(time.monotonic() - before)
    counted = durations[min(WARM_UP, len(durations) - 1) :]
    median = sorted(counted)[len(counted) // 2]
    return begun - started + max(0.0, durations[0] - median), median, len(counted)


def _extras(trainer: Any, config: TrainConfig, device: torch.device, out: str | None) -> dict[str, float]:
    """Seconds of what a run does beside its steps."""
    seconds = {"save_seconds": _save(trainer, out)}
    is_classifier = isinstance(config, ClassifierTraining)  # which is measured at its end anyway
    if not is_classifier:
        seconds["grid_seconds"] = _grid(trainer, config, device)
    if is_classifier or config.data.validation is not None:
        seconds["validation_seconds"] = _validation(trainer, config, device)
    return seconds


def _save(trainer: Any, out: str | None) -> float:
    """Seconds of a checkpoint, by writing a part of it where the run will be."""
    from adm.checkpoints import format as checkpoint_format

    tensors = trainer.tensors()
    whole = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    part: dict[str, dict[str, torch.Tensor]] = {"model": {}}
    size = 0
    for name, tensor in tensors["model"].items():
        if size < FOR_DISK:
            part["model"][name] = tensor
            size += tensor.numel() * tensor.element_size()
    if size == sum(t.numel() * t.element_size() for t in tensors["model"].values()):
        part, size = tensors, whole
    where = Path(out) if out is not None else Path.cwd()
    while not where.is_dir():
        where = where.parent
    with tempfile.TemporaryDirectory(dir=where, prefix=".adm-plan-") as directory:
        started = time.monotonic()
        checkpoint_format.save(Path(directory) / "step-00000001", tensors=part, documents={"state": {"step": 1}})
        return (time.monotonic() - started) * whole / max(1, size)


def _grid(trainer: Any, config: TrainConfig, device: torch.device) -> float:
    """Seconds of a sample grid, by the first steps of its first block."""
    from adm.diffusion.condition import Condition
    from adm.training.preview import PIXELS_AT_ONCE, num_shown

    model, shape = trainer.model, trainer.model.image_shape
    num = min(8, num_shown(model, shape)) if isinstance(config, UpsamplerTraining) else num_shown(model, shape)
    block = min(num, max(1, PIXELS_AT_ONCE // (shape[1] * shape[2])))
    T = model.schedule.num_timesteps
    links = len(range(0, T, max(1, T // 25)))
    label = None if model.num_classes is None else torch.arange(block, device=device) % model.num_classes
    low_res = torch.zeros(block, shape[0], *config.low_res) if isinstance(config, UpsamplerTraining) else None
    cond = Condition(label=label, low_res=None if low_res is None else low_res.to(device))
    x = torch.zeros(block, *shape, device=device)
    model.eval()

    def step() -> None:
        with torch.no_grad():
            model(x, T // 2, cond)

    _, median, _ = _timed(step, device, time.monotonic(), 10.0)
    model.train()
    return median * links * -(-num // block)


def _validation(trainer: Any, config: TrainConfig, device: torch.device) -> float:
    """Seconds of one image at one noise level."""
    from adm.training.objectives import Examples, StepNoise

    n = config.loop.microbatch or config.loop.batch_size
    x0 = torch.zeros(n, config.network.in_channels, *config.network.size, device=device)
    label = torch.zeros(n, dtype=torch.long, device=device)
    t = torch.arange(n) % trainer.model.schedule.num_timesteps
    trainer.model.eval()

    def step() -> None:
        with torch.no_grad():
            trainer.objective(trainer.model, Examples(x0, label), StepNoise(t, torch.zeros_like(x0)))

    _, median, _ = _timed(step, device, time.monotonic(), 10.0)
    trainer.model.train()
    return median / n


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    main()
