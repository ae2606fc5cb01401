"""adm reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from adm.cli._flags import Device

if TYPE_CHECKING:
    import numpy as np

    from adm.data import ImageSource

COMMANDS: dict[str, type] = {}
BATCH = 128


@dataclass(frozen=True)
class Reference:
    """Write images, and the statistics of all of them, as a reference to evaluate samples against.

    OUT.npz is in OpenAI's layout and also read by the original evaluator; OUT.json beside it says how it was made.
    """

    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA", help="A folder, zip or .npz of images, a sample set, or digits:train."),
    ]
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT.npz", help="The new file.")]
    size: Annotated[
        int | None, tyro.conf.arg(metavar="N", help="Scale and crop to N x N as ADM does; by default nothing is done.")
    ] = None
    num: Annotated[int, tyro.conf.arg(metavar="N", help="Images kept, for precision and recall.")] = 10_000
    seed: Annotated[int, tyro.conf.arg(help="Of which images are kept.")] = 0
    no_statistics: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="Leave out the Inception statistics of all images.")
    ] = False
    weights: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help="Inception weights; else $ADM_INCEPTION_WEIGHTS or the cache.")
    ] = None
    allow_other_weights: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="Also weights of another hash.")
    ] = False
    batch: Annotated[int, tyro.conf.arg(help="Images at once.")] = BATCH
    device: Device = "auto"

    def run(self) -> None:
        from adm.cli._progress import stages
        from adm.data import open_images, subset, write_reference
        from adm.runtime import files
        from adm.runtime.text import shown_path

        out = self._checked_out()
        weights_sha256 = self._weights_sha256() if not self.no_statistics else None
        with stages() as shown:
            source = open_images(self.data, lambda done, total: shown("opening", done, total, ""), size=self.size)
            statistics = self._statistics(source, shown) if not self.no_statistics else None
            kept = subset(source, self.num, self.seed)
            write_reference(out, kept, statistics)
        description = {"sha256": files.sha256_file(out)} | self._description(source, kept, weights_sha256)
        files.write_json(out.with_suffix(".json"), description)
        of_all = ", statistics of all" if statistics else ""
        print(f"{shown_path(out)}  ({kept.num:,} of {source.num:,} images{of_all})")

    def _checked_out(self) -> Path:
        from adm.runtime import files
        from adm.runtime.errors import UsageError
        from adm.runtime.randomness import MAX_SEED
        from adm.runtime.text import one_line, shown_path

        out = Path(self.out)
        if out.suffix != ".npz":
            raise UsageError(f"OUT {one_line(self.out, 60)!r} is no name of an .npz. Let it end in .npz.")
        if self.num < 1:
            raise UsageError(f"--num {self.num}: a reference keeps 1 image or more. Use 10000 to compare with papers.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"--seed {self.seed}: seeds are 0..2**64-1. Choose one of these.")
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: 1 image or more are read at once. Leave it out for {BATCH}.")
        if self.size is not None and self.size < 1:
            raise UsageError(f"--size {self.size}: images have 1 pixel or more. Give the size of your samples.")
        if self.no_statistics and self.weights is not None:
            raise UsageError("--weights are for the statistics, which --no-statistics leaves out. Drop one of them.")
        for path in (out, out.with_suffix(".json")):
            if path.exists():
                raise UsageError(f"{shown_path(path)} exists. Choose another OUT, or remove it.")
            files.require_writable(path)
        return out

    def _statistics(self, source: ImageSource, shown: object) -> dict[str, np.ndarray]:
        from adm.runtime.device import pick_device
        from adm.studies.evaluation import reference_statistics

        return reference_statistics(
            source,
            weights=self.weights,
            allow_other_weights=self.allow_other_weights,
            batch_size=self.batch,
            device=pick_device(self.device),
            on_progress=shown,  # type: ignore[arg-type]
        )

    def _weights_sha256(self) -> str:
        """Before any work, for it may be that there are none."""
        from adm.metrics.extractors.inception import located_weights

        return located_weights(self.weights, self.allow_other_weights)[1]

    def _description(self, source: ImageSource, kept: ImageSource, weights_sha256: str | None) -> dict[str, object]:
        from adm.runtime.version import version

        statistics = {"num": source.num, "weights_sha256": weights_sha256}
        return {
            "data": source.name,
            "data_sha256": source.sha256,
            "data_conditions": dict(source.conditions),
            "num": source.num,
            "image_shape": list(source.shape),
            "images_kept": {"num": kept.num, "seed": self.seed if kept.num < source.num else None},
            "preprocessing": source.conditions.get("preprocessing", "none: images as they are"),
            "statistics": None if weights_sha256 is None else statistics,
            "adm": version(),
        }


COMMANDS = {"reference": Reference}
