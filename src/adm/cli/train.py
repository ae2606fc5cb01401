"""adm train diffusion, adm train classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from adm.cli._flags import Device, Settings

if TYPE_CHECKING:
    from adm.training.config import TrainConfig

COMMANDS: dict[str, type] = {}

BY_RUN = "(default: by the data, or as the run has it)"

Data = Annotated[str, tyro.conf.arg(metavar="PATH", help="A folder of images, one sub-folder per class; or digits.")]
Out = Annotated[str, tyro.conf.arg(metavar="RUN", help="The run directory; the same command again continues it.")]
From = Annotated[
    str | None,
    tyro.conf.arg(
        name="from",
        metavar="MODEL",
        help="Fine-tune a run, checkpoint, preset or file: its network, its weights, your classes.",
        help_behavior_hint="(default: from scratch)",
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


@dataclass(frozen=True)
class _Train:
    data: Data
    out: Out
    from_: From = None
    steps: Steps = None
    batch: Batch = None
    image_size: Size = None
    seed: Seed = None
    device: Device = "auto"
    set: Settings = ()


@dataclass(frozen=True)
class TrainDiffusion(_Train):
    """Train a diffusion model on images.

    Class-conditional when the data have classes (--set network.num_classes=none makes it unconditional).
    """

    def run(self) -> None:
        _run("diffusion", self)

    @staticmethod
    def more_help() -> str:
        return _settings("diffusion")


@dataclass(frozen=True)
class TrainClassifier(_Train):
    """Train a noisy classifier, to guide a diffusion model of the same schedule and size."""

    def run(self) -> None:
        _run("classifier", self)

    @staticmethod
    def more_help() -> str:
        return _settings("classifier")


COMMANDS = {"train diffusion": TrainDiffusion, "train classifier": TrainClassifier}


def _run(job: str, flags: _Train) -> None:
    from pathlib import Path

    from adm.cli._progress import bar, say
    from adm.runtime.device import pick_device
    from adm.runtime.signals import stop_requests
    from adm.runtime.text import shown_path
    from adm.training.request import Request, plan
    from adm.training.run import Progress, train

    device = pick_device(flags.device)
    out = Path(flags.out)
    request = Request(
        job, flags.data, out, flags.from_, flags.steps, flags.batch, flags.image_size, flags.seed, flags.set
    )
    with bar("reading images", 1) as reading:
        planned = plan(request, lambda done, total: reading.update(done, total=total))
    config, dataset = planned.config, planned.dataset
    headline = _headline(config, str(device))
    with bar("training", config.loop.steps) as shown, stop_requests() as stop:

        def on_progress(progress: Progress) -> None:
            if progress.result is None:  # the start: data and directory have been accepted
                for note in (headline, *getattr(dataset, "notes", ()), *progress.notes):
                    say(note)
            else:
                shown.update(progress.step, f"loss {progress.result.loss:.4f}")

        def on_grid(done: int, total: int) -> None:
            shown.aside("sample grid", done, total)

        checkpoint = train(config, out, device, on_progress, stop, dataset, planned.source, on_grid)
    print(shown_path(checkpoint))


def _settings(job: str) -> str:
    from adm.cli._flags import settings_table
    from adm.runtime.config import meanings
    from adm.training.defaults import typical_config, usual_settings

    return settings_table(usual_settings(job), meanings(typical_config(job)))


def _headline(config: TrainConfig, device: str) -> str:
    import torch

    from adm.nn import EncoderClassifier, UNet
    from adm.training.config import DiffusionTraining

    with torch.device("meta"):  # the network alone: a schedule's table cannot be made there
        network = UNet(config.network) if isinstance(config, DiffusionTraining) else EncoderClassifier(config.network)
    parameters = sum(p.numel() for p in network.parameters())
    height, width = config.network.size
    classes = config.network.num_classes
    kind = "unconditional" if classes is None else f"{classes} classes"
    return (
        f"{config.job}: {height}x{width}, {config.network.in_channels} channel(s), {kind}, "
        f"{parameters / 1e6:.2f}M parameters, batch {config.loop.batch_size}, {config.loop.steps} steps, "
        f"learning rate {config.optimizer.lr:g}, on {device}"
    )
