"""What helps a small diffusion model to learn: losses, parametrizations, timesteps, averages, on digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from adm.checkpoints.load import load
from adm.checkpoints.model_document import ScheduleConfig
from adm.data.digits import Digits
from adm.diffusion.model import DiffusionModel
from adm.metrics import CleanClassifier
from adm.metrics.frechet import FrechetDistance
from adm.metrics.label_accuracy import LabelAccuracy
from adm.nn import UNetConfig
from adm.runtime import files
from adm.runtime.config import override
from adm.runtime.distributed import World
from adm.studies._judge import digits_judge
from adm.studies._machine import machine
from adm.studies._plots import Dots, dot_plot
from adm.studies._report import Column, Figure, Report, Row, Table, markdown, text_table, write_report
from adm.studies._trials import Summary, Trial, run_trials, summaries, without
from adm.studies.generate import batches
from adm.studies.request import prepare
from adm.training.config import DataConfig, DiffusionTraining, LoopConfig, OptimizerConfig, TrainConfig
from adm.training.run import Progress, train

__all__ = ["TrainingChoices"]

BASELINE = "baseline"
FD, ACCURACY = "fd_judge", "label_accuracy"
JUDGE_STEPS = 500
WIDE = 16.97  # EDM2's sigma_rel 0.05, half as wide as the baseline's average


@dataclass(frozen=True)
class Variant:
    """What is set differently from the baseline, whose weights are sampled, and what that means."""

    settings: tuple[str, ...]
    meaning: str
    weights: str = "ema"


FIXED = ("variance=small", "network.out_channels=1", "loss=simple")
VARIANTS: Mapping[str, Variant] = {
    BASELINE: Variant((), "eps, learned variance, hybrid loss, cosine schedule, uniform timesteps, wide EMA"),
    "simple": Variant(FIXED, "fixed variance, squared error alone (DDPM)"),
    "vlb": Variant(("loss=vlb_rescaled",), "the variational bound"),
    "vlb-resampled": Variant(
        ("loss=vlb_rescaled", "timesteps=loss-second-moment"), "the bound, timesteps by the losses' second moment"
    ),
    "x0": Variant(("mean=x0",), "the network returns x0"),
    "v": Variant(("mean=v",), "the network returns v"),
    "flow": Variant((*FIXED, "mean=flow", "schedule.name=flow"), "rectified flow: the network returns eps - x0"),
    "edm": Variant(
        (*FIXED, "mean=edm", "schedule.name=edm", "timesteps=log-normal"), "EDM: its preconditioning and noise levels"
    ),
    "log-normal": Variant(("timesteps=log-normal",), "timesteps at EDM's noise levels"),
    "min-snr": Variant(("weight.kind=min-snr",), "squared error weighted by min-SNR, gamma 5"),
    "p2": Variant(("weight.kind=p2",), "squared error weighted by P2"),
    "perturbed": Variant(("input_perturbation=0.1",), "input perturbation 0.1"),
    "label-dropout": Variant(("label_dropout=0.1",), "a tenth of the labels left out"),
    "cosine-rate": Variant(("optimizer.anneal=cosine",), "the rate follows a cosine to 0"),
    "no-average": Variant((), "the baseline's weights, not averaged", "model"),
    "narrow-average": Variant((), "the baseline's other average, 5 % of the run", "ema-1"),
    "constant-average": Variant(("ema.kind=constant", "ema.rate=0.99", "ema.others="), "EMA of constant rate 0.99"),
}


COLUMNS = (
    Column("FD (judge)", ".2f", "lower", "Frechet distance to held-out digits in the judge's features; not FID"),
    Column("better under", "s", None, "seeds under which FD is below the baseline's of the same seed"),
    Column("label accuracy", ".3f", "higher", "share of samples in which the judge reads the digit asked for"),
    Column("better under", "s", None, "seeds under which it is above the baseline's of the same seed"),
    Column("what is different", "s"),
)
GUIDE = (
    ("Mean ± standard deviation", "over the seeds, which change initial weights, order, noise and samples."),
    ("Better under", "with three seeds chance alone gives 3 of 3 in one case of eight: of many rows some will."),
    ("Judge", "a classifier trained on clean training digits only; it had no part in the training or the sampling."),
)


@dataclass(frozen=True)
class TrainingChoices:
    """Train each variant under each seed for the same number of images, sample it, and let an independent judge look.

    seeds: how many. steps: of training. batch_size: images of a step. width: model_channels of the network. num:
    samples of each model. sample_steps: links of the clipped DDIM that draws them. FD is the Frechet distance to the
    held-out digits in the judge's features.
    """

    seeds: int = 3
    steps: int = 400
    batch_size: int = 64
    width: int = 16
    num: int = 300
    sample_steps: int = 25

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}: must be at least 1")

    def run(
        self,
        out: Path,
        device: torch.device | str = "cpu",
        on_progress: Callable[[str, int, int, str], None] = lambda what, done, total, note: None,
        stop_requested: Callable[[], bool] = lambda: False,
        world: World = World(),
    ) -> tuple[Path, str]:
        """The report's path and its table as text. What is in `out` is not done again; processes share the work."""
        judge = digits_judge(out, JUDGE_STEPS, 0) if world.rank == 0 else None
        world.wait("the judge")
        judge = judge or digits_judge(out, JUDGE_STEPS, 0)
        made_by = without(asdict(self), "seeds")
        trials = [
            Trial(name, seed, [name, list(VARIANTS[name].settings), VARIANTS[name].weights, made_by, seed])
            for name in VARIANTS
            for seed in range(self.seeds)
        ]
        place = {trial.key: k for k, trial in enumerate(trials)}

        def measure(trial: Trial) -> Mapping[str, float]:
            what = f"{place[trial.key] + 1}/{len(trials)} {trial.variant}, seed {trial.seed}"
            return self.measure(trial, out, device, judge, lambda *p: on_progress(what, *p), stop_requested)

        # Trials that sample one run are one process's: two at once would train it twice.
        values = run_trials(trials, out, measure, world, stop_requested, share_by=self.run_name)
        found = summaries(trials, values)
        return self.report(out, found) if world.rank == 0 else (out, "")

    def measure(
        self,
        trial: Trial,
        out: Path,
        device: torch.device | str,
        judge: CleanClassifier,
        on_progress: Callable[[int, int, str], None],
        stop_requested: Callable[[], bool],
    ) -> dict[str, float]:
        """Train, sample and measure one variant under one seed."""
        variant = VARIANTS[trial.variant]
        config = self.config(variant, trial.seed)

        def progress(p: Progress) -> None:
            on_progress(p.step, p.num_steps, "" if p.result is None else f"loss {p.result.loss:.3f}")

        checkpoint = train(config, out / "runs" / self.run_name(trial), device, progress, stop_requested)
        model = load(checkpoint, device, variant.weights)
        assert isinstance(model, DiffusionModel)
        labels = np.arange(self.num) % 10
        request = prepare(model, self.sample_steps, "ddim")
        made = batches(request, labels.tolist(), seed=1000 * trial.seed, batch_size=min(100, self.num))
        features = judge.features(np.concatenate([batch.images for batch in made]), labels)
        held_out = Digits("test")
        reference = judge.features(held_out.images, held_out.labels)
        distance = next(iter(FrechetDistance()(features, reference).values()))
        return {FD: distance, ACCURACY: LabelAccuracy()(features)["label_accuracy"]}

    def run_name(self, trial: Trial) -> str:
        """The directory of the run that is sampled; variants that only sample other weights share it."""
        settings = VARIANTS[trial.variant].settings
        run = next(name for name, variant in VARIANTS.items() if variant.settings == settings)
        return Trial(run, trial.seed, [list(settings), without(asdict(self), "seeds", "num", "sample_steps")]).key

    def config(self, variant: Variant, seed: int) -> TrainConfig:
        network = UNetConfig(
            image_size=8,
            in_channels=1,
            out_channels=2,
            model_channels=self.width,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=16,
            num_classes=10,
        )
        base = DiffusionTraining(
            "diffusion",
            DataConfig("digits"),
            network,
            ScheduleConfig("cosine", 1000),
            optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50, anneal="linear"),
            loop=LoopConfig(
                steps=self.steps, batch_size=self.batch_size, seed=seed, save_every=self.steps, sample_every=None
            ),
        )
        return override(base, (f"ema.others={WIDE}", *variant.settings))

    def report(self, out: Path, found: Mapping[str, Summary]) -> tuple[Path, str]:
        """Write the table and the figure of the results."""
        base = found[BASELINE]
        rows = [
            Row(
                name,
                (
                    s.show(FD, ".2f"),
                    "" if name == BASELINE else f"{s.wins(FD, base, False)} of {self.seeds}",
                    s.show(ACCURACY, ".3f"),
                    "" if name == BASELINE else f"{s.wins(ACCURACY, base, True)} of {self.seeds}",
                    VARIANTS[name].meaning,
                ),
            )
            for name, s in found.items()
        ]
        table = Table(COLUMNS, rows, corner="variant")
        panels = [
            Dots("FD in the judge's features (smaller is better)", points(found, FD)),
            Dots("label accuracy (larger is better)", points(found, ACCURACY)),
        ]
        figure = Figure(
            "training-choices",
            "Every variant under every seed",
            dot_plot(panels),
            "dots for each seed and a bar for their mean, a row for each variant",
            "A dot is a seed, the bar their mean, the dashed line the baseline's mean.",
        )
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        report = Report(
            title="Training choices on digits",
            summary=[
                f"{len(found)} variants of one small model, each trained under {seeds} for {self.steps} "
                f"steps of {self.batch_size} digits; {self.num} samples of each by {self.sample_steps} links of DDIM.",
                "It says what helps here, in minutes and at 8 x 8 pixels; the ranking may differ in large models.",
            ],
            figures=[figure],
            table=table,
            conditions={**asdict(self), **machine()},
            guide=GUIDE,
        )
        path, *_ = write_report(out / "report.html", report)
        files.write_text(out / "report.md", markdown(report))
        results = {name: {"by_seed": s.by_seed, "mean": s.mean, "std": s.spread} for name, s in found.items()}
        files.write_json(out / "results.json", {"options": asdict(self), "machine": machine(), "variants": results})
        return path, text_table(table)


def points(found: Mapping[str, Summary], name: str) -> dict[str, list[float]]:
    return {variant: list(s.of(name).values()) for variant, s in found.items()}
