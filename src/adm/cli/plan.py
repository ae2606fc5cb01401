"""adm plan train, adm plan sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from adm.cli._flags import ChainSteps, Device, Settings
from adm.cli.train import TrainFlags, request_of

if TYPE_CHECKING:
    from adm.data import Dataset
    from adm.training.config import TrainConfig

COMMANDS: dict[str, type] = {}

NoProbe = Annotated[
    tyro.conf.FlagCreatePairsOff[bool],
    tyro.conf.arg(help="Try no steps: parameters, operations and memory by shapes alone."),
]


@dataclass(frozen=True, kw_only=True)
class PlanTrain(TrainFlags):
    """Say what adm train with the same flags needs and how long it takes, before it starts.

    A few steps of the real size are tried in a process of their own. With a --preset the data may be missing: it is
    then taken as made for its own.
    """

    job: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JOB", help="diffusion, classifier or upsampler.")]
    processes: Annotated[
        int, tyro.conf.arg(metavar="N", help="As started by torchrun with so many, each on a device like this one.")
    ] = 1
    no_probe: NoProbe = False

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import say
        from adm.runtime.device import pick_device
        from adm.studies._plan_text import training_text
        from adm.studies.plan import plan_training

        device = pick_device(self.device)
        config, dataset = self._config()
        out = None if self.out is None else Path(self.out)
        plan = plan_training(config, device, dataset, out, not self.no_probe, say, self.processes)
        print(training_text(plan))

    def _config(self) -> tuple[TrainConfig, Dataset | None]:
        from adm.cli._progress import bar
        from adm.runtime.config import override
        from adm.runtime.errors import UsageError
        from adm.training.defaults import parse_size
        from adm.training.presets import preset_without_data, refuse_unknown_job
        from adm.training.request import plan

        refuse_unknown_job(self.job)
        request = request_of(self.job, self.data or "", self.out or "a run that does not exist", self)
        if self.data is None:
            if self.preset is None or self.from_ is not None:
                raise UsageError("plan train needs --data PATH, or --preset NAME to plan for the data it was made for.")
            config = preset_without_data(self.preset, self.job, parse_size(self.image_size))
            return override(config, request.assignments()), None
        with bar("reading images", 1) as reading:
            planned = plan(request, lambda done, total: reading.update(done, total=total))
        return planned.config, planned.dataset

    @staticmethod
    def more_help() -> str:
        from adm.training.presets import PRESETS

        width = max(map(len, PRESETS))
        lines = [
            f"  {name:<{width}}  {preset.what} ({', '.join(preset.jobs)}"
            + (f"; label dropout {preset.label_dropout:g})" if preset.label_dropout else ")")
            for name, preset in PRESETS.items()
        ]
        return "\n".join(["presets, as in --preset cifar32:", "", *lines])


@dataclass(frozen=True)
class PlanSample:
    """Say what adm sample with the same flags needs and how long it takes, before it starts.

    A released model need not be on this machine: random weights cost the same.
    """

    model: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="MODEL", help="As of adm sample: a run, a checkpoint or a released model."),
    ]
    num: Annotated[int, tyro.conf.arg(metavar="N", help="Images.")] = 64
    steps: ChainSteps = None
    sampler: Annotated[str, tyro.conf.arg(metavar="SPEC", help="As of adm sample.")] = "ddpm"
    guidance: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="SPEC", help="As of adm sample; can be repeated."),
    ] = ()
    device: Device = "auto"
    no_probe: NoProbe = False
    set: Settings = ()

    def run(self) -> None:
        from adm.cli._progress import say
        from adm.cli.sample import SampleSettings
        from adm.runtime.config import override
        from adm.runtime.device import pick_device
        from adm.runtime.errors import UsageError
        from adm.studies._plan_sampling import plan_sampling
        from adm.studies._plan_text import sampling_text

        if self.num < 1:
            raise UsageError(f"--num {self.num}: plan at least 1 image.")
        settings = override(SampleSettings(), self.set)
        plan = plan_sampling(
            self.model,
            self.num,
            self.steps,
            self.sampler,
            self.guidance,
            pick_device(self.device),
            settings.batch_size,
            settings.weights,
            settings.precision,
            not self.no_probe,
            say,
        )
        print(sampling_text(plan, self.model))


COMMANDS = {"plan sample": PlanSample, "plan train": PlanTrain}
