"""adm sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from adm.cli._flags import Device, Settings

if TYPE_CHECKING:
    from adm.studies.generate import Batch, Request

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class SampleSettings:
    """What --set can change. weights: ema or model; precision: bfloat16 is autocast around the networks."""

    batch_size: int = 64
    weights: Literal["ema", "model"] = "ema"
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: must be at least 1")


@dataclass(frozen=True)
class Sample:
    """Draw images from a model, into PNGs or one .npz.

    Image k depends on seed + k, whatever the number of images; the same command again makes only what is missing.
    """

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="MODEL", help="A run, a checkpoint, a released model (openai/imagenet64), or its .pt."),
    ]
    out: Annotated[str, tyro.conf.arg(metavar="DIR", help="A directory for PNGs, or a file.npz in OpenAI's layout.")]
    num: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Images.", help_behavior_hint="(default: one for each label, else 64)"),
    ] = None
    labels: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="A,B*3",
            help="Classes, in turn: names, numbers or WNIDs.",
            help_behavior_hint="(default: every class in turn)",
        ),
    ] = None
    steps: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Links of the chain.",
            help_behavior_hint="(default: as released, else 250 of ddpm and 50 of others)",
        ),
    ] = None
    sampler: Annotated[str, tyro.conf.arg(metavar="SPEC", help="A file of adm/sampling, such as ddim:eta=0.3.")] = (
        "ddpm"
    )
    guidance: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="SPEC",
            help="Such as classifier:classifier=runs/clf,scale=4; of a released model, classifier alone. "
            "Can be repeated.",
        ),
    ] = ()
    seed: Annotated[int, tyro.conf.arg(help="Seed of the first image.")] = 0
    device: Device = "auto"
    set: Settings = ()

    def run(self) -> None:
        from adm.cli._progress import say
        from adm.runtime.config import override
        from adm.runtime.device import pick_device
        from adm.studies.generate import check_seeds, prepare_named, resolve_labels
        from adm.studies.labels import parse_labels

        settings = override(SampleSettings(), self.set)
        given = None if self.labels is None else parse_labels(self.labels)
        device = pick_device(self.device)
        request = prepare_named(
            self.model, self.steps, self.sampler, self.guidance, device, settings.weights, settings.precision
        )
        labels = resolve_labels(request, given, self.num)
        check_seeds(self.seed, len(labels))
        if request.said is not None:
            say(f"adm: {request.said}")
        size = min(settings.batch_size, len(labels))
        if self.out.endswith(".npz"):
            self._to_npz(request, labels, size)
        else:
            self._to_directory(request, labels, size, self._description(request, settings))

    def _to_directory(self, request: Request, labels: list[int], size: int, description: Mapping[str, object]) -> None:
        from adm.cli._progress import say
        from adm.data import SampleSet
        from adm.runtime.text import shown_path
        from adm.studies.sample_request import refuse_newer_checkpoint

        refuse_newer_checkpoint(Path(self.out), request)
        with SampleSet.open(Path(self.out), description) as samples:
            missing = frozenset(k for k in range(len(labels)) if not samples.has(k))
            if missing and len(missing) < len(labels):
                say(f"{len(labels) - len(missing)} of {len(labels)} images are there; making the rest")
            for batch in self._made(request, labels, size, missing):
                for k, image in enumerate(batch.images, batch.index):
                    if k in missing:
                        samples.add(k, image)
            picture = samples.finish(labels, request.classes, self.seed)
        print(f"{shown_path(samples.directory)} ({_images(len(labels))}; overview: {shown_path(picture)})")

    def _to_npz(self, request: Request, labels: list[int], size: int) -> None:
        import numpy as np

        from adm.data import write_npz
        from adm.runtime import files
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path

        if Path(self.out).exists():
            raise UsageError(f"{shown_path(self.out)} exists. Choose another --out, or remove it.")
        files.require_writable(self.out)
        made = self._made(request, labels, size, frozenset(range(len(labels))))
        write_npz(Path(self.out), np.concatenate([batch.images for batch in made]), labels)
        print(shown_path(Path(self.out)))

    def _made(self, request: Request, labels: list[int], size: int, wanted: frozenset[int]) -> Iterator[Batch]:
        """The batches with a wanted image, with progress; stops between two of them when asked to."""
        from adm.cli._progress import bar
        from adm.runtime.errors import StoppedError
        from adm.runtime.signals import stop_requests
        from adm.studies.generate import batches

        steps = len(request.chain)
        title = f"sampling {_images(len(labels))} x {steps} steps"
        with bar(title, len(labels) * steps) as shown, stop_requests() as stop:

            def on_step(index: int, step: int) -> None:
                shown.update(index * steps + (step + 1) * min(size, len(labels) - index))

            for batch in batches(request, labels, self.seed, size, wanted.__contains__, on_step):
                yield batch
                done = batch.index + len(batch.images)
                if stop() and done < len(labels):
                    again = (
                        "starts again: an .npz is written in one piece" if self.out.endswith(".npz") else "continues"
                    )
                    raise StoppedError(f"stopped after {done} of {len(labels)} images; the same command {again}.")

    def _description(self, request: Request, settings: SampleSettings) -> dict[str, object]:
        """All that the images are a function of, as JSON; `num` is not part of it, so a set can grow."""
        from adm.studies.labels import label_policy
        from adm.studies.sample_request import describe_weights

        return describe_weights(request) | {
            "weights": settings.weights,
            "sampler": self.sampler,
            "steps": len(request.chain),
            "labels": self.labels,
            "label_policy": label_policy(self.labels, request.num_classes),
            "seed": self.seed,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "image_shape": list(request.model.image_shape or ()),
        }


def _images(num: int) -> str:
    return "1 image" if num == 1 else f"{num} images"


COMMANDS = {"sample": Sample}
