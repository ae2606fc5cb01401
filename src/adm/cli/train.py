"""adm train diffusion, adm train classifier, adm train upsampler."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from adm.cli._flags import Device, Settings

if TYPE_CHECKING:
    import torch

    from adm.runtime.distributed import World
    from adm.training.config import LoopConfig
    from adm.training.request import Plan, Request
    from adm.training.run import Progress

COMMANDS: dict[str, type] = {}

STEPS_TIMED = 5

BY_RUN = "(default: by the data, or as the run has it)"

Data = Annotated[
    str, tyro.conf.arg(metavar="PATH", help="A folder or zip of images, one sub-folder per class; an .npz; or digits.")
]
Out = Annotated[str, tyro.conf.arg(metavar="RUN", help="The run directory; the same command again continues it.")]
PlannedData = Annotated[
    str | None,
    tyro.conf.arg(metavar="PATH", help="As of adm train.", help_behavior_hint="(default: as the preset was made for)"),
]
PlannedOut = Annotated[
    str | None,
    tyro.conf.arg(metavar="RUN", help="Where the run will be, to time its disk.", help_behavior_hint="(default: here)"),
]
From = Annotated[
    str | None,
    tyro.conf.arg(
        name="from",
        metavar="MODEL",
        help="Fine-tune a run, checkpoint, preset or file: its network, its weights, your classes.",
        help_behavior_hint="(default: from scratch)",
    ),
]
Preset = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="NAME",
        help="Settings to begin with, such as cifar32 or imagenet64; adm plan lists them.",
        help_behavior_hint="(default: by the data)",
    ),
]
LabelsFrom = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="WAY",
        help="Where classes come from: folders, prefix, none, or a CSV or JSON file.",
        help_behavior_hint="(default: as the data say)",
    ),
]
Steps = Annotated[int | None, tyro.conf.arg(metavar="N", help="Optimizer steps in all.", help_behavior_hint=BY_RUN)]
Batch = Annotated[int | None, tyro.conf.arg(metavar="N", help="Images a step.", help_behavior_hint=BY_RUN)]
Size = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="N|HxW", help="Pixels.", help_behavior_hint="(default: the size of the images, or the run's)"
    ),
]
Seed = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N", help="Everything random is a function of it.", help_behavior_hint="(default: 0, or the run's)"
    ),
]


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What adm train takes, and the plan of it, which can do without data and a directory."""

    data: PlannedData = None
    out: PlannedOut = None
    from_: From = None
    preset: Preset = None
    labels_from: LabelsFrom = None
    steps: Steps = None
    batch: Batch = None
    image_size: Size = None
    seed: Seed = None
    device: Device = "auto"
    set: Settings = ()


@dataclass(frozen=True, kw_only=True)
class _Train(TrainFlags):
    data: Data = field()
    out: Out = field()
    shared: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class TrainDiffusion(_Train):
    """Train a diffusion model on images.

    Class-conditional when the data have classes (--set network.num_classes=none makes it unconditional).
    """

    def run(self) -> None:
        _run("diffusion", self)

    @staticmethod
    def more_help() -> str:
        return _settings("diffusion")


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(_Train):
    """Train a noisy classifier, to guide a diffusion model of the same schedule and size."""

    def run(self) -> None:
        _run("classifier", self)

    @staticmethod
    def more_help() -> str:
        return _settings("classifier")


@dataclass(frozen=True, kw_only=True)
class TrainUpsampler(_Train):
    """Train a model that enlarges images, on pairs made by shrinking yours; --image-size is the large size."""

    def run(self) -> None:
        _run("upsampler", self)

    @staticmethod
    def more_help() -> str:
        return _settings("upsampler")


COMMANDS = {
    "train diffusion": TrainDiffusion,
    "train classifier": TrainClassifier,
    "train upsampler": TrainUpsampler,
}


def request_of(job: str, data: str, out: str, flags: TrainFlags) -> Request:
    """What the flags of a run, or of its plan, ask for."""
    from pathlib import Path

    from adm.training.request import Request

    return Request(
        job,
        data,
        Path(out),
        source=flags.from_,
        preset=flags.preset,
        labels_from=flags.labels_from,
        steps=flags.steps,
        batch=flags.batch,
        image_size=flags.image_size,
        seed=flags.seed,
        settings=flags.set,
    )


def _run(job: str, flags: _Train) -> None:
    from adm.runtime.device import pick_device
    from adm.runtime.distributed import join

    device = pick_device(flags.device)
    request = request_of(job, flags.data, flags.out, flags)
    with join(device) as world:
        _train(request, device, world)


def _train(request: Request, device: torch.device, world: World) -> None:
    """What each process does; the first one alone speaks."""
    from adm.runtime.signals import stop_requests

    with stop_requests(told=world.rank == 0) as stop:
        _train_until(stop, request, device, world)


def _planned(request: Request, world: World, stop: Callable[[], bool]) -> Plan:
    """Config and images. StoppedError in all processes when one was asked to stop meanwhile."""
    from adm.cli._progress import bar
    from adm.runtime.errors import StoppedError
    from adm.training.request import plan
    from adm.training.resume import refuse_in_use

    first, planned = world.rank == 0, None
    with bar("reading images", 1, shown=first) as reading:

        def looked(done: int, total: int) -> None:
            reading.update(done, total=total)
            if stop():
                raise StoppedError

        # One after the other: what the first has found out about the files need not be found out again.
        with suppress(StoppedError):
            if first:
                refuse_in_use(request.out)
                planned = plan(request, looked)
        world.wait("the images to be read by process 0")
        if world.any(stop()):
            raise StoppedError("stopped before the first step; run the same command again.")
        with warnings.catch_warnings():
            if not first:
                warnings.simplefilter("ignore")  # the first has said it
            return planned or plan(request)


def _train_until(stop: Callable[[], bool], request: Request, device: torch.device, world: World) -> None:
    import torch

    from adm.cli._progress import bar, say
    from adm.runtime.text import shown_path
    from adm.studies.plan import headline
    from adm.training.run import train

    first = world.rank == 0
    planned = _planned(request, world, stop)
    config, dataset, loop = planned.config, planned.dataset, planned.config.loop
    if loop.exact:
        torch.set_num_threads(1)  # sums within an operation depend on it
    first_lines = [*headline(config, device, world.size), *getattr(dataset, "notes", ())]
    total = loop.steps if loop.minutes is None else round(60 * loop.minutes)
    pace = _Pace(loop)
    with bar("training" if loop.minutes is None else "training (s)", total, shown=first) as shown:

        def on_progress(progress: Progress) -> None:
            # The first call says that data and directory have been accepted.
            while first_lines:
                say(first_lines.pop(0))
            for note in (*progress.notes, *pace(progress)):
                say(note)
            if progress.result is not None:
                by_time = f"step {progress.step}, " if loop.minutes is not None else ""
                done = progress.step if loop.minutes is None else min(total, int(progress.seconds))
                shown.update(done, f"{by_time}loss {progress.result.loss:.4f}")

        checkpoint = train(config, request.out, device, on_progress, stop, dataset, planned.source, shown.aside, world)
    if first:
        print(shown_path(checkpoint))


class _Pace:
    """How long the run will take, said once, when its first steps have shown it."""

    def __init__(self, loop: LoopConfig) -> None:
        self.loop = loop
        self.first: Progress | None = None

    def __call__(self, progress: Progress) -> tuple[str, ...]:
        from adm.cli._progress import clock

        if progress.result is None:
            return ()
        if self.first is None:  # it includes what is prepared once
            self.first = progress
        if progress.step != self.first.step + STEPS_TIMED:
            return ()
        seconds = (progress.seconds - self.first.seconds) / STEPS_TIMED
        left = min(self.loop.steps - progress.step, self.left_by_time(progress) / max(seconds, 1e-9))
        pace = f"{seconds:.2g} s a step, {self.loop.batch_size / max(seconds, 1e-9):.3g} images/s"
        return (f"{pace}: about {clock(left * seconds)} to go, without pictures and saving",)

    def left_by_time(self, progress: Progress) -> float:
        return math.inf if self.loop.minutes is None else 60 * self.loop.minutes - progress.seconds


def _settings(job: str) -> str:
    from adm.cli._flags import settings_table
    from adm.runtime.config import meanings
    from adm.training.defaults import typical_config, usual_settings

    return settings_table(usual_settings(job), meanings(typical_config(job)))
