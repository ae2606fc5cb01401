"""adm upsample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from adm.cli._components import DRAWING, named_by_flags
from adm.cli._flags import ChainSteps, Device, ImagesOut, SamplerSpec, Settings
from adm.cli.sample import SampleSettings, more_help

if TYPE_CHECKING:
    from adm.studies.request import Request
    from adm.studies.small_images import SmallImages

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class UpsampleSettings(SampleSettings):
    """What --set can change."""

    batch_size: int = 16


@dataclass(frozen=True)
class Upsample:
    """Enlarge small images with an upsampler, into PNGs or one .npz, in their order.

    Image k depends on the small one, its label and seed + k; the same command again makes only what is missing.
    """

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="MODEL", help="A run, a checkpoint, a released model (openai/imagenet64-to-256), a .pt."),
    ]
    input: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="INPUT", help="A picture, a folder, a sample set, a zip, or an .npz (arr_0, arr_1)."),
    ]
    out: ImagesOut
    num: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Images to make, of the small ones in turn.",
            help_behavior_hint="(default: one of each)",
        ),
    ] = None
    labels: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="A,B*3",
            help="Classes, in turn: names, numbers or WNIDs.",
            help_behavior_hint="(default: those of the small images)",
        ),
    ] = None
    steps: ChainSteps = None
    sampler: SamplerSpec = "ddpm"
    guidance: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="SPEC", help="Such as classifier:classifier=runs/clf,scale=4. Can be repeated."),
    ] = ()
    seed: Annotated[int, tyro.conf.arg(help="Seed of the first image.")] = 0
    device: Device = "auto"
    set: Settings = ()
    shared: ClassVar[bool] = True

    def run(self) -> None:
        from adm.checkpoints.load import check_weights
        from adm.cli._drawing import Drawing, check_out, drawing_world
        from adm.cli._progress import bar, say
        from adm.runtime.config import override
        from adm.runtime.device import pick_device
        from adm.studies.generate import check_seeds
        from adm.studies.labels import parse_labels
        from adm.studies.request import prepare_named
        from adm.studies.small_images import check_there, open_small
        from adm.studies.upsample import channels_of, check_small, labels_of

        check_out(self.out)
        settings = override(UpsampleSettings(), self.set)
        check_weights(settings.weights)
        given = None if self.labels is None else parse_labels(self.labels)
        device = pick_device(self.device)
        check_there(self.input)
        with drawing_world(device) as world:
            request = prepare_named(
                self.model,
                self.steps,
                self.sampler,
                self.guidance,
                device,
                settings.weights,
                settings.precision,
                kind="upsampler",
            )
            with bar("reading images", 1, shown=world.rank == 0) as reading:
                small = open_small(
                    self.input, channels_of(request), lambda done, total: reading.update(done, total=total)
                )
            note = check_small(request, small, self.input)
            labels = labels_of(request, small, given, self.num, self.input)
            check_seeds(self.seed, len(labels))
            if world.rank == 0:
                if request.said is not None:
                    say(f"adm: {request.said}")
                for line in (*small.notes, *([note] if note else [])):
                    say(f"adm: note: {line}")
            drawing = Drawing(request, labels, self.seed, settings.batch_size, "upsampling", small.low_res)
            drawing.write(self.out, self._description(request, small, settings), world)

    @staticmethod
    def components(words: Sequence[str]) -> list[tuple[str, str]]:
        return named_by_flags(words, DRAWING)

    @staticmethod
    def more_help() -> str:
        return more_help(UpsampleSettings())

    def _description(self, request: Request, small: SmallImages, settings: UpsampleSettings) -> dict[str, object]:
        """All that the images are a function of, as JSON; `num` is not part of it, so a set can grow."""
        from adm.studies.sample_request import describe_chain, describe_sampler, describe_weights

        own = "none" if small.labels is None else "of the input"
        return describe_weights(request) | {
            "weights": settings.weights,
            "input": small.name,
            "input_sha256": small.sha256,
            **describe_sampler(self.sampler),
            **describe_chain(request),
            "labels": self.labels,
            "label_policy": own if self.labels is None else "given, in turn",
            "seed": self.seed,
            "batch_size": settings.batch_size,
            "precision": settings.precision,
            "low_res_size": list(small.size),
            "image_shape": list(request.model.image_shape or ()),
        }


COMMANDS = {"upsample": Upsample}
