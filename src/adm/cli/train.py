"""adm train diffusion, adm train classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from adm.cli._flags import Device, Settings

if TYPE_CHECKING:
    from adm.data import Dataset
    from adm.training.config import TrainConfig

COMMANDS: dict[str, type] = {}

Data = Annotated[str, tyro.conf.arg(metavar="PATH", help="A folder of images, one sub-folder per class; or digits.")]
Out = Annotated[str, tyro.conf.arg(metavar="RUN", help="The run directory; the same command again continues it.")]
Steps = Annotated[int | None, tyro.conf.arg(metavar="N", help="Optimizer steps.")]
Batch = Annotated[int | None, tyro.conf.arg(metavar="N", help="Images a step.")]
Size = Annotated[str | None, tyro.conf.arg(metavar="N|HxW", help="Pixels; by default the size of the images.")]
Seed = Annotated[int, tyro.conf.arg(help="Everything random is a function of it.")]


@dataclass(frozen=True)
class _Train:
    data: Data
    out: Out
    steps: Steps = None
    batch: Batch = None
    image_size: Size = None
    seed: Seed = 0
    device: Device = "auto"
    set: Settings = ()


@dataclass(frozen=True)
class TrainDiffusion(_Train):
    """Train a diffusion model on images.

    Class-conditional when the data have classes (--set network.num_classes=none makes it unconditional).
    """

    def run(self) -> None:
        _run("diffusion", self)


@dataclass(frozen=True)
class TrainClassifier(_Train):
    """Train a noisy classifier, to guide a diffusion model of the same schedule and size."""

    def run(self) -> None:
        _run("classifier", self)


COMMANDS = {"train diffusion": TrainDiffusion, "train classifier": TrainClassifier}


def _run(job: str, flags: _Train) -> None:
    from pathlib import Path

    from adm.cli._progress import bar, say
    from adm.runtime.device import pick_device
    from adm.runtime.signals import stop_requests
    from adm.runtime.text import shown_path
    from adm.training.run import Progress, train

    device = pick_device(flags.device)
    out = Path(flags.out)
    config, dataset = _config(job, flags)
    headline = _headline(config, str(device))
    with bar("training", config.loop.steps) as shown, stop_requests() as stop:

        def on_progress(progress: Progress) -> None:
            if progress.result is None:  # the start: data and directory have been accepted
                for note in (headline, *getattr(dataset, "notes", ()), *progress.notes):
                    say(note)
            else:
                shown.update(progress.step, f"loss {progress.result.loss:.4f}")

        checkpoint = train(config, out, device, on_progress, stop, dataset)
    print(shown_path(checkpoint))


def _config(job: str, flags: _Train) -> tuple[TrainConfig, Dataset]:
    """The defaults for these data, then the flags, then --set. The data are opened, and a folder scanned, once."""
    from adm.cli._progress import bar
    from adm.data import open_dataset
    from adm.runtime.config import override
    from adm.training.defaults import default_config, parse_size

    with bar("reading images", 1) as shown:
        dataset = open_dataset(flags.data, progress=lambda done, total: shown.update(done, total=total))
    config = default_config(job, flags.data, dataset, parse_size(flags.image_size), flags.seed)
    loop = config.loop
    if flags.steps is not None:
        loop = replace(loop, steps=flags.steps)
    if flags.batch is not None:
        loop = replace(loop, batch_size=flags.batch)
    return override(replace(config, loop=loop), flags.set), dataset


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
        f"{parameters / 1e6:.2f}M parameters, batch {config.loop.batch_size}, {config.loop.steps} steps, on {device}"
    )
