"""adm ema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from adm.training.posthoc_ema import Synthesis

COMMANDS: dict[str, type] = {}

POOR = 0.05
"""Share of a profile that is missing from which on the result is another average than was asked for."""


@dataclass(frozen=True)
class Ema:
    """Average the weights of a finished run over another width, from the snapshots that it stored.

    The run was trained with --set ema.snapshot_every=N; the result is a model for adm sample and adm.load.
    """

    run_directory: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN", help="A run directory with snapshots.")
    ]
    std: Annotated[
        float,
        tyro.conf.arg(
            metavar="X", help="The width of the average as a share of the run, such as 0.08 (at most 0.288)."
        ),
    ]
    out: Annotated[str, tyro.conf.arg(metavar="DIR", help="The new directory of the model.")]
    step: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N", help="The step at which the average ends.", help_behavior_hint="(default: the last snapshot's)"
        ),
    ] = None

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import bar, say
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path
        from adm.training.ema import gamma_of_std
        from adm.training.posthoc_ema import plan_synthesis

        if Path(self.out).exists():
            raise UsageError(f"{shown_path(self.out)} exists. Choose another --out, or remove it.")
        synthesis = plan_synthesis(Path(self.run_directory), gamma_of_std(self.std), self.step)
        print(stored_line(synthesis))
        print(fit_line(synthesis, self.std))
        if synthesis.error > POOR:
            say(
                f"adm: note: an average of width {self.std:g} is not well made of these. Train with more snapshots "
                "(ema.snapshot_every), or with a gamma near it (ema.others)."
            )
        with bar("averaging", 1) as shown:
            synthesis.save(Path(self.out), lambda done, total: shown.update(done, total=total))
        print(shown_path(self.out))


def stored_line(synthesis: Synthesis) -> str:
    """What there is to make the average of."""
    from adm.training.ema import std_of_gamma

    steps = [snapshot.step for snapshot in synthesis.snapshots]
    gammas = sorted({gamma for snapshot in synthesis.snapshots for gamma in snapshot.gammas.values()}, reverse=True)
    number = "1 snapshot: step" if len(steps) == 1 else f"{len(steps)} snapshots: steps"
    shown = steps if len(steps) <= 6 else [*steps[:2], "...", *steps[-2:]]
    widths = " and ".join(f"{std_of_gamma(gamma):.3f} (gamma {gamma:g})" for gamma in gammas)
    return f"{number} {', '.join(map(str, shown))}; of width {widths}"


def fit_line(synthesis: Synthesis, std: float) -> str:
    """What is made of them, and how nearly."""
    target = f"width {std:g} (gamma {synthesis.gamma:.4g}) at step {synthesis.target.step}"
    if len(synthesis.parts) == 1 and synthesis.error < 1e-6:
        return f"{target}: as stored"
    return f"{target}: of {len(synthesis.parts)} averages, its profile to within {100 * synthesis.error:.2g} %"


COMMANDS = {"ema": Ema}
