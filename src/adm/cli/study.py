"""adm study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from adm.cli._flags import Device

COMMANDS: dict[str, type] = {}
ROOM = "studies.experiments"


@dataclass(frozen=True)
class Study:
    """Run a study: train and measure many variants, with a table, a picture and error bars.

    The same command again continues it; torchrun shares it over processes.
    """

    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="NAME", help="Such as training_choices, or training_choices:seeds=1,steps=100."),
    ]
    out: Annotated[
        str | None,
        tyro.conf.arg(metavar="DIR", help="Where everything goes.", help_behavior_hint="(default: studies/NAME)"),
    ] = None
    device: Device = "cpu"
    shared: ClassVar[bool] = True

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import say, stages
        from adm.runtime import files, lookup
        from adm.runtime.device import pick_device
        from adm.runtime.distributed import join
        from adm.runtime.signals import stop_requests
        from adm.runtime.text import shown_path

        study = lookup.build(ROOM, self.name)
        out = Path(self.out or f"studies/{lookup.parse_spec(self.name).name}")
        device = pick_device(self.device)
        files.make_directory(out)
        with join(device) as world:
            if world.rank == 0:
                say(f"adm study {self.name} in {shown_path(out)}; Ctrl-C and the same command continue it")
            with stages() as stage, stop_requests() as stop:
                report, table = study.run(out, device, stage, stop, world)
            if world.rank == 0:
                print(f"\n{table}\n\nreport: {shown_path(report)}")

    @staticmethod
    def components(words: Sequence[str]) -> list[tuple[str, str]]:
        from adm.runtime import lookup

        names = [word.partition(":")[0].replace("-", "_") for word in words]
        return [(ROOM, name) for name in names if name in lookup.available(ROOM)][:1]

    @staticmethod
    def more_help() -> str:
        from adm.cli._flags import components_list

        head = "studies, as in adm study NAME:option=value,option=value:"
        return "\n".join([head, "", *components_list(ROOM), "", "What the options of one mean: adm study NAME --help."])


COMMANDS = {"study": Study}
