"""adm selftest."""

from __future__ import annotations

from dataclasses import dataclass

from adm.cli._flags import Device

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Selftest:
    """Check this installation against known answers, in seconds."""

    device: Device = "auto"

    def run(self) -> int:
        from adm.cli._checks import report
        from adm.runtime.device import pick_device
        from adm.studies.selftest import CHECKS

        return report(CHECKS, pick_device(self.device))


COMMANDS = {"selftest": Selftest}
