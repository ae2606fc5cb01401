"""Studies at a size of seconds: tiny models, and few of the rows that they compare."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adm.runtime import files
from adm.runtime.distributed import join
from adm.studies.experiments import guidances, samplers, training_choices
from adm.studies.experiments.guidances import Guidances
from adm.studies.experiments.samplers import Samplers
from adm.studies.experiments.training_choices import TrainingChoices

MODELS: dict[str, Any] = {"width": 8, "steps": 4, "classifier_steps": 3, "judge_steps": 3, "batch_size": 8}
STUDIES: dict[str, Any] = {
    "samplers": Samplers(seeds=2, num=6, evaluations=(2,), reference=3, **MODELS),
    "guidances": Guidances(seeds=2, num=6, budgets=(4,), rounds=1, **MODELS),
    "training_choices": TrainingChoices(seeds=2, steps=3, batch_size=4, width=8, num=10, sample_steps=2),
}
ROWS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "samplers": (samplers, "RULES", ("ddpm", "heun")),
    "guidances": (guidances, "WAYS", ("none", "classifier-free", "autoguidance")),
    "training_choices": (training_choices, "VARIANTS", ("baseline", "x0", "no-average")),
}
SECONDS = {"none": 1.0, "classifier-free": 2.0, "autoguidance": 1.9}


def reduce(name: str, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Leave few rows in the study's table; put: sets an attribute of a module, for as long as it likes."""
    module, table, chosen = ROWS[name]
    put(module, table, {row: getattr(module, table)[row] for row in chosen})
    if name == "guidances":
        put(module, "DUELS", [duel for duel in module.DUELS if set(duel) <= set(chosen)])
    if name == "samplers":
        put(module, "GRIDS", {"dpm2m-karras": module.GRIDS["dpm2m-karras"]})
        put(module, "GRID_EVALUATIONS", 2)
        put(module, "MODES", {mode: module.MODES[mode] for mode in ("unguided", "classifier-free")})


def run(name: str, out: Path, stop_after: int | None = None) -> None:
    """The study, asked to stop when it has asked so many times whether to; seconds are as given, not measured."""
    if name == "guidances" and not (out / "seconds.json").exists():
        files.make_directory(out)
        files.write_json(out / "seconds.json", {**STUDIES[name].setting("cpu"), "seconds": SECONDS})
    asked = itertools.count(1)
    with join() as world:
        STUDIES[name].run(out, stop_requested=lambda: next(asked) == stop_after, world=world)


if __name__ == "__main__":
    reduce(sys.argv[1])
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
