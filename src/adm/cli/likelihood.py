"""adm likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from adm.cli._flags import Device

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of images under a model (the variational bound)."""

    model: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL", help="A run, a checkpoint or a released model.")
    ]
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA", help="A folder, or digits:test.")]
    num: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Images, spread evenly over the data.", help_behavior_hint="(default: all)"),
    ] = None
    steps: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Links; fewer than the model's timesteps give another bound.",
            help_behavior_hint="(default: every timestep)",
        ),
    ] = None
    batch: Annotated[int, tyro.conf.arg(help="Images at once.")] = 64
    out: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FILE", help="A new file for the numbers, as JSON.", help_behavior_hint="(default: only printed)"
        ),
    ] = None
    seed: Annotated[int, tyro.conf.arg(help="Of the noise.")] = 0
    device: Device = "auto"

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import bar
        from adm.data import leaving_out_by, open_dataset
        from adm.runtime import files
        from adm.runtime.device import pick_device
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path
        from adm.studies.likelihood import conditions_line, measure_likelihood
        from adm.studies.named_models import load_diffusion, require_presets

        if self.out is not None:
            files.require_writable(self.out)
            if Path(self.out).exists():
                raise UsageError(f"{shown_path(self.out)} exists. Choose another --out, or remove it.")
        require_presets(self.model)
        model = load_diffusion(self.model, pick_device(self.device))
        with leaving_out_by(None):
            dataset = open_dataset(self.data, channels=model.image_shape[0] if model.image_shape else None)
        with bar("likelihood", 1) as shown:
            result = measure_likelihood(
                model,
                dataset,
                self.num,
                self.steps,
                self.batch,
                self.seed,
                lambda done, total: shown.update(done, total=total),
            )
        if self.out is not None:
            files.write_json(Path(self.out), {"model": self.model, "data": self.data} | result)
        where = conditions_line(result, model.image_shape or (0, 0, 0))
        print(f"{result['bits_per_dim']:.4f} bits/dim +- {result['standard_error']:.4f} ({where})")


COMMANDS = {"likelihood": Likelihood}
