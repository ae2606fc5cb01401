"""Quality for time: every sampler at equal network evaluations, unguided and guided, on digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adm.checkpoints.model_document import make_schedule
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.schedule import Schedule
from adm.guidance import Guidance
from adm.guidance.classifier import ClassifierGuidance
from adm.guidance.classifier_free import ClassifierFreeGuidance
from adm.runtime import files, lookup
from adm.runtime.distributed import World
from adm.runtime.errors import UsageError
from adm.sampling import Sampler, timesteps_for
from adm.studies._comparison import best_by_others, how_chosen, no_error_bars, paired, seed_guide, under_seeds
from adm.studies._digit_models import ACCURACY, FD, HELD_OUT, PRECISION, RECALL, DigitModels, Kind, Sizes, View
from adm.studies._machine import machine
from adm.studies._quality_plots import ErrorCurve, ErrorPanel, error_curves
from adm.studies._report import Column, Figure, Report, Row, Table, markdown, text_table, write_report
from adm.studies._trials import Summary, Trial, run_trials, summaries, without
from adm.studies.experiments._rules import GRIDS, REFERENCE, RULES
from adm.studies.request import prepare

__all__ = ["Samplers"]


GRID_EVALUATIONS = 10
MODES: Mapping[str, str] = {
    "unguided": "unconditional model",
    "classifier": "unconditional model, guided by a noisy classifier",
    "classifier-free": "conditional model, classifier-free guidance",
}
KINDS: tuple[Kind, ...] = ("unconditional", "classifier", "conditional")
MEASURES = {
    FD: ("FD to all digits", ".2f"),
    HELD_OUT: ("FD to held-out digits", ".2f"),
    ACCURACY: ("label accuracy", ".3f"),
    PRECISION: ("precision", ".3f"),
    RECALL: ("recall", ".3f"),
}
NOISE = {True: "rules that add noise", False: "rules without noise"}
FEW = 25
"""Evaluations that a fast rule may have."""
GUIDE = (
    (
        "Evaluations",
        "calls of the diffusion network for each image; classifier-free guidance doubles the work of each. A table's "
        "column is for no more than its number; in the pictures a point stands at the number that was counted.",
    ),
    ("FD", "the Frechet distance in the features of the judge; not FID. Only columns of one table compare."),
    ("Judge", "a classifier trained on clean training digits only; it had no part in the training or the sampling."),
    ("Equal seeds", "under one seed every sampler has the same models and starts from the same noise."),
)


@dataclass(frozen=True)
class Samplers:
    """Sample the same models with every rule at equal network evaluations, and let an independent judge look.

    seeds: how many; each trains an unconditional model, a noisy classifier and a conditional model. num: samples of
    each set. evaluations: how many of the network for each image. reference: evaluations of the DDPM that the others
    are compared with. scale: of the classifier guidance. weight: of the classifier-free guidance. width, steps,
    classifier_steps,
    batch_size, judge_steps: sizes of the models and of their training.
    """

    seeds: int = 3
    num: int = 300
    evaluations: tuple[int, ...] = (5, 8, 10, 15, 25)
    reference: int = 250
    scale: float = 3.0
    weight: float = 1.5
    width: int = 16
    steps: int = 1000
    classifier_steps: int = 400
    judge_steps: int = 500
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, tuple) and value < 1:
                raise ValueError(f"{name} is {value}: must be at least 1")
        if not self.evaluations or min(self.evaluations) < 2:
            raise ValueError(f"evaluations are {self.evaluations}: give one or more numbers, 2 at least")
        if self.num < 4:
            raise ValueError(f"num is {self.num}: precision and recall need at least 4 samples")

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.width, self.steps, self.classifier_steps, self.judge_steps, self.batch_size)

    def run(
        self,
        out: Path,
        device: torch.device | str = "cpu",
        on_progress: Callable[[str, int, int, str], None] = lambda what, done, total, note: None,
        stop_requested: Callable[[], bool] = lambda: False,
        world: World = World(),
    ) -> tuple[Path, str]:
        """The report's path and its table as text. What is in `out` is not done again; processes share the work."""
        models = DigitModels(out / "models", self.sizes, device)
        self.check(make_schedule(models.config("unconditional", 0).schedule))
        models.train(KINDS, self.seeds, on_progress, stop_requested, world)
        view = View.of(out, self.judge_steps, world)
        trials = self.trials()
        place = {trial.key: k for k, trial in enumerate(trials)}

        def measure(trial: Trial) -> Mapping[str, float]:
            on_progress("measuring", place[trial.key], len(trials), trial.key)
            return self.measure(trial, models, view)

        found = summaries(trials, run_trials(trials, out, measure, world, stop_requested))
        return self.report(out, found, view.real(self.num)) if world.rank == 0 else (out, "")

    def trials(self) -> list[Trial]:
        """Every set, neighbours of equal cost, so that processes have equal shares."""
        sets = [(REFERENCE, RULES[REFERENCE], self.reference)]
        sets += [(name, rule, num) for num in self.evaluations for name, rule in RULES.items()]
        sets += [(name, rule, GRID_EVALUATIONS) for name, rule in GRIDS.items()]
        made_by = without(asdict(self), "seeds", "evaluations", "reference")
        return [
            Trial(variant(mode, name, num), seed, [mode, name, rule.spec, rule.grid, num, made_by, seed])
            for seed in range(self.seeds)
            for mode in MODES
            for name, rule, num in dict.fromkeys(sets)
        ]

    def check(self, schedule: Schedule) -> None:
        """UsageError, before anything is trained, for a number of evaluations that a rule has no chain of."""
        for name, num in dict.fromkeys(read_variant(trial.variant)[1:] for trial in self.trials()):
            rule = {**RULES, **GRIDS}[name]
            sampler: Sampler = lookup.build("sampling", rule.spec)
            try:
                timesteps_for(sampler, schedule, rule.grid.format(links=rule.links(num)))
            except ValueError as error:
                raise UsageError(f"{num} evaluations of {name}: {error}. Choose other evaluations.") from error

    def measure(self, trial: Trial, models: DigitModels, view: View) -> dict[str, float]:
        """Sample and measure one set."""
        mode, name, num = read_variant(trial.variant)
        rule = {**RULES, **GRIDS}[name]
        model = models.load("conditional" if mode == "classifier-free" else "unconditional", trial.seed)
        assert isinstance(model, DiffusionModel)
        steps = rule.grid.format(links=rule.links(num))
        request = prepare(model, steps, rule.spec, self.guidance(mode, models, trial.seed))
        return view.measure(request, self.num, trial.seed)

    def guidance(self, mode: str, models: DigitModels, seed: int) -> list[Guidance]:
        if mode == "classifier":
            classifier = models.load("classifier", seed)
            assert isinstance(classifier, NoisyClassifier)
            return [ClassifierGuidance(classifier, self.scale)]
        return [ClassifierFreeGuidance(self.weight)] if mode == "classifier-free" else []

    def report(self, out: Path, found: Mapping[str, Summary], real: Mapping[str, float]) -> tuple[Path, str]:
        """Write tables, figures and what they say."""
        verdicts = [self.verdict(mode, found) for mode in MODES]
        fd, *more = [self.table(name, found, real) for name in MEASURES]
        report = Report(
            title="Samplers on digits: quality for time",
            summary=[
                f"{len(RULES)} sampling rules within equal numbers of network evaluations, against DDPM with "
                f"{self.reference}; {self.num} samples a set, {under_seeds(self.seeds)}.",
                *verdicts,
                *no_error_bars(self.seeds),
                "These are small models of 8 x 8 digits: the ranking may differ in large ones.",
            ],
            figures=self.figures(found),
            table=fd,
            more=[*more, self.grid_table(found)],
            conditions={**asdict(self), **machine()},
            guide=[*GUIDE, *seed_guide(self.seeds)],
        )
        path, *_ = write_report(out / "report.html", report)
        files.write_text(out / "report.md", markdown(report))
        files.write_json(
            out / "results.json",
            {
                "options": asdict(self),
                "machine": machine(),
                "verdicts": verdicts,
                "real": dict(real),
                "sets": {
                    name: {"by_seed": s.by_seed, "mean": s.mean, "std": s.spread, "rule": read_variant(name)}
                    for name, s in found.items()
                },
            },
        )
        return path, "\n\n".join([text_table(fd), *verdicts, *no_error_bars(self.seeds)])

    def verdict(self, mode: str, found: Mapping[str, Summary]) -> str:
        """Whether the best rule with few evaluations is as good as DDPM with many, in words."""
        reference = found[variant(mode, REFERENCE, self.reference)]
        limit = min(FEW, self.reference - 1)
        few = [(name, num) for num in self.evaluations if num <= limit for name in RULES]
        if not few:
            return f"{mode}: no set has {limit} evaluations or fewer, so nothing is compared."
        candidates = {variant(mode, name, num): found[variant(mode, name, num)] for name, num in few}
        chosen = best_by_others({name: s.of(FD) for name, s in candidates.items()})
        words = []
        for measure, (title, form) in MEASURES.items():
            if measure not in (FD, ACCURACY) or (measure == ACCURACY and mode == "unguided"):
                continue
            ours = {seed: candidates[name].of(measure)[seed] for seed, name in chosen.items()}
            gap = paired(ours, reference.of(measure))
            words.append(
                f"{title} {sum(ours.values()) / len(ours):{form}} against {reference.mean[measure]:{form}}, difference "
                f"{gap.explain(form, measure == ACCURACY)}"
            )
        names = ", ".join(dict.fromkeys("{1} at {2}".format(*read_variant(name)) for name in chosen.values()))
        return (
            f"{mode}, the best at no more than {max(num for _, num in few)} evaluations ({names}; "
            f"{how_chosen(len(chosen))}) against DDPM at {self.reference}: {'; '.join(words)}."
        )

    def table(self, measure: str, found: Mapping[str, Summary], real: Mapping[str, float]) -> Table:
        """One measure: a row for each rule of each mode, a column for each number of evaluations at most."""
        title, form = MEASURES[measure]
        numbers = sorted({*self.evaluations, self.reference})

        def cell(mode: str, name: str, num: int) -> str | None:
            summary = found.get(variant(mode, name, num))
            # What an unconditional model makes was asked for no class.
            return None if summary is None or (measure, mode) == (ACCURACY, "unguided") else summary.show(measure, form)

        rows = [
            Row(f"{mode}: {name}", [cell(mode, name, num) for num in numbers])
            for mode in MODES
            for name in RULES
            if (measure, mode) != (ACCURACY, "unguided")
        ]
        yardstick = format(real[measure], form)
        rows.append(Row("as many training digits", [yardstick] + [None] * (len(numbers) - 1), real=True))
        columns = [Column(f"{num}", "s", "lower" if "FD" in title else "higher") for num in numbers]
        return Table(columns, rows, "sampler", self.columns_caption(), title[0].upper() + title[1:])

    def columns_caption(self) -> str:
        """What a column is, and which rules spend less than its number."""
        fewer = [name for name, rule in RULES.items() if any(rule.spent(num) < num for num in self.evaluations)]
        less = f"; where the number is even, one fewer is spent by {' and '.join(fewer)}" if fewer else ""
        return f"A column is for no more than so many network evaluations{less}."

    def grid_table(self, found: Mapping[str, Summary]) -> Table:
        """DPM-Solver++(2M) on several grids."""
        rows = [
            Row(f"{mode}: {name.partition('-')[2]}", [found[variant(mode, name, GRID_EVALUATIONS)].show(FD, ".2f")])
            for mode in MODES
            for name in GRIDS
        ]
        caption = f"DPM-Solver++(2M) with {GRID_EVALUATIONS} evaluations."
        return Table([Column("FD to all digits", "s", "lower")], rows, "grid", caption, "Timestep grids")

    def figures(self, found: Mapping[str, Summary]) -> list[Figure]:
        def picture(measure: str, modes: Sequence[str], log: bool) -> bytes:
            return error_curves([self.panel(measure, mode, noise, found, log) for mode in modes for noise in NOISE])

        guided = [mode for mode in MODES if mode != "unguided"]
        bars = "Points at one number of evaluations are drawn side by side."
        bars += " Bars: standard deviation over the seeds." if self.seeds > 1 else ""
        bars += f" Dashed: DDPM with {self.reference}."
        alt = "a curve for each sampler over the number of network evaluations, those that add noise on the left"
        return [
            Figure("samplers-fd", "Distance from real digits", picture(FD, tuple(MODES), True), alt, bars),
            Figure("samplers-accuracy", "The class that was asked for", picture(ACCURACY, guided, False), alt, bars),
        ]

    def panel(self, measure: str, mode: str, noise: bool, found: Mapping[str, Summary], log: bool) -> ErrorPanel:
        """The rules that add noise in a mode, or those that do not."""
        curves = []
        doubled = 2 if mode == "classifier-free" and self.weight != 1 else 1
        for name in [name for name, rule in RULES.items() if rule.noise == noise]:
            some = [found[variant(mode, name, num)] for num in self.evaluations]
            x = [s.mean["network"] / doubled for s in some]
            curves.append(ErrorCurve(name, x, [s.mean[measure] for s in some], [s.spread[measure] for s in some]))
        level = found[variant(mode, REFERENCE, self.reference)].mean[measure]
        return ErrorPanel(
            f"{mode[0].upper()}{mode[1:]}, {NOISE[noise]}", "network evaluations", MEASURES[measure][0], curves,
            [*self.evaluations, *(x for curve in curves for x in curve.x)], log, {f"ddpm,\n{self.reference}": level},
        )  # fmt: skip


def variant(mode: str, name: str, num: int) -> str:
    return f"{mode}_{name}_{num}"


def read_variant(text: str) -> tuple[str, str, int]:
    mode, name, num = text.split("_")
    return mode, name, int(num)
