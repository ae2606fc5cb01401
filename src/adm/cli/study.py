"""adm study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from adm.cli._flags import Device

COMMANDS: dict[str, type] = {}


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

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import say, stages
        from adm.runtime import files, lookup
        from adm.runtime.device import pick_device
        from adm.runtime.distributed import join
        from adm.runtime.signals import stop_requests
        from adm.runtime.text import shown_path

        study = lookup.build("studies.experiments", self.name)
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
    def more_help() -> str:
        from adm.runtime import lookup

        lines = ["studies (options as in NAME:option=value):", ""]
        for name in lookup.available("studies.experiments"):
            component = lookup.find("studies.experiments", name)
            options = ", ".join(f"{field}={value}" for field, value in vars(component()).items())
            lines.append(f"  {name}: {(component.__doc__ or '').splitlines()[0]} ({options})")
        return "\n".join(lines)


COMMANDS = {"study": Study}
