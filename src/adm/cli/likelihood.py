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

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL", help="A run or checkpoint directory.")]
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA", help="A folder, or digits:test.")]
    num: Annotated[int | None, tyro.conf.arg(metavar="N", help="Images, from the first; all by default.")] = None
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help="Links; by default every timestep.")] = None
    batch: Annotated[int, tyro.conf.arg(help="Images at once.")] = 64
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE", help="Where to write the numbers as JSON.")] = None
    seed: Annotated[int, tyro.conf.arg(help="Of the noise.")] = 0
    device: Device = "auto"

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import bar
        from adm.data import open_dataset
        from adm.runtime import files
        from adm.runtime.device import pick_device
        from adm.studies.generate import load_diffusion
        from adm.studies.likelihood import measure_likelihood

        if self.out is not None:
            files.require_writable(self.out)
        model = load_diffusion(self.model, pick_device(self.device))
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
        print(f"{result['bits_per_dim']:.4f} bits/dim +- {result['standard_error']:.4f} ({result['num']} images)")


COMMANDS = {"likelihood": Likelihood}
