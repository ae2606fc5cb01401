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
        from adm.runtime.device import pick_device
        from adm.studies.selftest import CHECKS

        device = pick_device(self.device)
        failed = 0
        for name, check in CHECKS.items():
            problem = check(device)
            failed += problem is not None
            print(f"{'ok  ' if problem is None else 'FAIL'} {name}" + ("" if problem is None else f": {problem}"))
        print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed on {device}")
        return 1 if failed else 0


COMMANDS = {"selftest": Selftest}
