"""adm demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from adm.cli._flags import Device, Settings

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Demo:
    """Train, guide, evaluate and report on built-in digits: minutes on a laptop, no network, no GPU.

    Running it again does not train again; an interrupted demo goes on where it was.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR", help="Where everything goes.")] = "demo"
    device: Device = "cpu"
    set: Settings = ()

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import say, stages
        from adm.runtime import files
        from adm.runtime.config import override
        from adm.runtime.device import pick_device
        from adm.runtime.signals import stop_requests
        from adm.runtime.text import shown_path
        from adm.studies.demo import DemoConfig, run_demo

        config = override(DemoConfig(), self.set)
        out = Path(self.out)
        device = pick_device(self.device)
        files.make_directory(out)
        say(f"adm demo in {shown_path(out)}: a few minutes; Ctrl-C and the same command continue it")
        with stages() as stage, stop_requests() as stop:
            report, table = run_demo(config, out, device, stage, stop)
        print(f"\n{table}\n\nreport: {shown_path(report)}")


COMMANDS = {"demo": Demo}
