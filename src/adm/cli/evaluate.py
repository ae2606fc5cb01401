"""adm evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from adm.cli._flags import Device

if TYPE_CHECKING:
    from adm.metrics._evaluator import Scores

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Evaluate:
    """FID, sFID, Inception Score, precision and recall of samples, as OpenAI's evaluator computes them.

    REF and SAMPLES: an .npz in OpenAI's layout, a folder or zip of images, a sample set; REF may hold statistics.
    Under torchrun each process takes a share of the images.
    """

    reference: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="REF", help="What to compare with.")
    ] = None
    samples: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SAMPLES", help="What is judged.")] = (
        None
    )
    metrics: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="A,B", help="More of adm/metrics, such as kid,frechet:extractor=(dinov2:weights=FILE)."),
    ] = ()
    only: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="Those of --metrics alone, without the five of the paper."),
    ] = False
    error_bars: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="A standard error for each number, by leaving samples out."),
    ] = False
    weights: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help="Inception weights; else $ADM_INCEPTION_WEIGHTS or the cache.")
    ] = None
    allow_other_weights: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="Also of another hash; names then end in @ and its first 8 digits."),
    ] = False
    num: Annotated[int | None, tyro.conf.arg(metavar="N", help="Only the first N samples; all by default.")] = None
    out: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help="Where to write the numbers and all their conditions as JSON.")
    ] = None
    inception_precision: Annotated[
        Literal["float32", "bfloat16"],
        tyro.conf.arg(metavar="DTYPE", help="Float32, or the faster bfloat16, which changes the numbers."),
    ] = "float32"
    compile: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="Run torch.compile on the Inception network.")
    ] = False
    batch: Annotated[int, tyro.conf.arg(help="Images at once.")] = 128
    no_cache: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="Keep no features on disk: then an interrupted run starts over."),
    ] = False
    selftest: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="Check the metrics against known answers; needs no files."),
    ] = False
    device: Device = "auto"

    @property
    def shared(self) -> bool:
        return not self.selftest

    def run(self) -> int:
        if self.selftest:
            return self._selftest()
        from adm.cli._progress import stages
        from adm.runtime import files
        from adm.runtime.cache import cache_directory
        from adm.runtime.device import pick_device
        from adm.runtime.distributed import join
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path
        from adm.studies.evaluation import evaluate, metric_specs, score_lines, with_defaults

        if self.reference is None or self.samples is None:
            raise UsageError("evaluate needs REF and SAMPLES. Try adm evaluate --help.")
        if self.out is not None:
            if Path(self.out).exists():
                raise UsageError(f"{shown_path(Path(self.out))} exists. Choose another --out, or remove it.")
            files.require_writable(self.out)
        asked = metric_specs(self.metrics)
        if self.only and not asked:
            raise UsageError("--only leaves no metric. Name some with --metrics.")
        with join() as world, stages() as shown:
            scores = evaluate(
                self.reference,
                self.samples,
                asked if self.only else with_defaults(asked),
                weights=self.weights,
                allow_other_weights=self.allow_other_weights,
                num=self.num,
                precision=self.inception_precision,
                compile=self.compile,
                batch_size=self.batch,
                error_bars=self.error_bars,
                device=pick_device(self.device),
                on_progress=shown if world.rank == 0 else lambda *_: None,
                world=world,
                cache=None if self.no_cache else cache_directory() / "features",
            )
        if world.rank == 0:
            print("\n".join(score_lines(scores)))
            self._report(scores)
        return 0

    def _report(self, scores: Scores) -> None:
        from adm.cli._progress import say
        from adm.runtime import files
        from adm.runtime.text import shown_path

        for note in scores.notes:
            say(f"adm: note: {note}.")
        if self.out is not None:
            content = {"scores": dict(scores), "conditions": scores.conditions, "notes": scores.notes}
            files.write_json(Path(self.out), content)
        for name, picture in scores.pictures.items():
            if self.out is None:
                say(f"adm: note: --out FILE also writes the picture of {name}.")
                continue
            path = Path(self.out).with_suffix(f".{name}.png")
            files.write_bytes(path, picture)
            say(f"{name}: {shown_path(path)}")

    def _selftest(self) -> int:
        from adm.cli._checks import report
        from adm.runtime.device import pick_device
        from adm.studies.evaluation_selftest import CHECKS

        return report(CHECKS, pick_device(self.device))


COMMANDS = {"evaluate": Evaluate}
