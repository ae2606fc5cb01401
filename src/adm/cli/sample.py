"""adm sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from adm.cli._components import DRAWING, named_by_flags
from adm.cli._flags import ChainSteps, Device, ImagesOut, SamplerSpec, Settings, components_table, settings_table

if TYPE_CHECKING:
    from adm.studies.request import Request

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class SampleSettings:
    """What --set can change.

    batch_size: images at once. weights: ema, model, or ema-1 and so on of a run with ema.others. precision: bfloat16
    is autocast around the networks.
    """

    batch_size: int = 64
    weights: str = "ema"
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
    out: ImagesOut
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
    steps: ChainSteps = None
    sampler: SamplerSpec = "ddpm"
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
    shared: ClassVar[bool] = True

    def run(self) -> None:
        from adm.checkpoints.load import check_weights
        from adm.cli._drawing import Drawing, check_out, drawing_world
        from adm.cli._progress import say
        from adm.runtime.config import override
        from adm.runtime.device import pick_device
        from adm.studies.generate import check_seeds, resolve_labels
        from adm.studies.labels import parse_labels
        from adm.studies.request import prepare_named

        check_out(self.out)
        settings = override(SampleSettings(), self.set)
        check_weights(settings.weights)
        given = None if self.labels is None else parse_labels(self.labels)
        device = pick_device(self.device)
        with drawing_world(device) as world:
            request = prepare_named(
                self.model, self.steps, self.sampler, self.guidance, device, settings.weights, settings.precision
            )
            labels = resolve_labels(request, given, self.num)
            check_seeds(self.seed, len(labels))
            if request.said is not None and world.rank == 0:
                say(f"adm: {request.said}")
            drawing = Drawing(request, labels, self.seed, settings.batch_size)
            drawing.write(self.out, self._description(request, settings), world)

    @staticmethod
    def components(words: Sequence[str]) -> list[tuple[str, str]]:
        return named_by_flags(words, DRAWING)

    @staticmethod
    def more_help() -> str:
        return more_help(SampleSettings())

    def _description(self, request: Request, settings: SampleSettings) -> dict[str, object]:
        """All that the images are a function of, as JSON; `num` is not part of it, so a set can grow."""
        from adm.studies.labels import label_policy
        from adm.studies.sample_request import describe_chain, describe_sampler, describe_weights

        return describe_weights(request) | {
            "weights": settings.weights,
            **describe_sampler(self.sampler),
            **describe_chain(request),
            "labels": self.labels,
            "label_policy": label_policy(self.labels, request.num_classes),
            "seed": self.seed,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "image_shape": list(request.model.image_shape or ()),
        }


def more_help(settings: SampleSettings) -> str:
    """What follows --help of a command with these settings: they, the samplers and the guidances."""
    from adm.runtime._spelling import spelled
    from adm.runtime.config import meanings

    values = {name: spelled(value) for name, value in vars(settings).items()}
    return f"{settings_table(values, meanings(settings), 'batch_size=16')}\n{components_table()}"


COMMANDS = {"sample": Sample}
