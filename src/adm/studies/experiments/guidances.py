"""Guidances at equal seconds an image: classifier, classifier-free, autoguidance and others, on digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.runtime import files
from adm.runtime.distributed import World
from adm.studies._comparison import best_by_others, how_chosen, no_error_bars, paired, seed_guide, under_seeds
from adm.studies._digit_models import ACCURACY, FD, HELD_OUT, PRECISION, RECALL, DigitModels, Kind, Sizes, View
from adm.studies._machine import machine
from adm.studies._quality_plots import ErrorCurve, ErrorPanel, error_curves
from adm.studies._report import Column, Figure, Report, Row, Table, markdown, text_table, write_report
from adm.studies._seconds import interleaved
from adm.studies._trials import Summary, Trial, run_trials, summaries, without
from adm.studies.experiments._link_seconds import cost_table, stored_seconds
from adm.studies.experiments._ways import NONE, WAYS, Others, read_variant, variant
from adm.studies.generate import batches
from adm.studies.request import Request, prepare

__all__ = ["Guidances"]

KINDS: tuple[Kind, ...] = ("unconditional", "classifier", "conditional", "small")
COLUMNS = (
    Column("links", "d", None, "of the chain: as many as the seconds allow"),
    Column("evaluations", "s", None, "for each image, of networks + of the classifier"),
    Column("FD to all digits", "s", "lower", "Frechet distance in the judge's features; not FID"),
    Column("FD to held-out digits", "s", "lower", "the same, to the digits that no model was trained on"),
    Column("label accuracy", "s", "higher", "share of samples in which the judge reads the digit asked for"),
    Column("precision", "s", "higher", "share of samples that look like digits"),
    Column("recall", "s", "higher", "share of digits that the samples cover"),
)
MEASURES = {FD: "FD", ACCURACY: "label accuracy", PRECISION: "precision", RECALL: "recall"}
DUELS = (
    ("classifier", "classifier-free"),
    ("classifier+labels", "classifier-free"),
    ("autoguidance", "classifier-free"),
    ("autoguidance", "classifier+labels"),
    ("cfg-interval", "classifier-free"),
    ("apg", "classifier-free"),
)
GUIDE = (
    ("Equal seconds", "the chain of each is as long as fits into the seconds that the conditional model alone needs."),
    ("Judge", "a classifier trained on clean training digits only; it had no part in the training or the sampling."),
)


@dataclass(frozen=True)
class Guidances:
    """Guide the same models in every way, with chains that take equally long, and let an independent judge look.

    seeds: how many; each trains all models. num: samples of each set. budgets: seconds an image may take, as
    evaluations of the conditional model alone. sampler: the rule by which all sample. rounds: how often the seconds are
    measured, which is done once and kept. models: where models of these sizes are or will be, such as
    studies/samplers/models; none for the study's own directory. width, steps, classifier_steps, judge_steps,
    batch_size: sizes of the models and of their training.
    """

    seeds: int = 3
    num: int = 300
    budgets: tuple[int, ...] = (16, 48)
    sampler: str = "dpm_solver_2m"
    rounds: int = 5
    models: str | None = None
    width: int = 16
    steps: int = 1000
    classifier_steps: int = 400
    judge_steps: int = 500
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}: must be at least 1")
        if not self.budgets or min(self.budgets) < 4:
            raise ValueError(f"budgets are {self.budgets}: give one or more numbers, 4 at least")
        if self.num < 4:
            raise ValueError(f"num is {self.num}: precision and recall need at least 4 samples")

    def run(
        self,
        out: Path,
        device: torch.device | str = "cpu",
        on_progress: Callable[[str, int, int, str], None] = lambda what, done, total, note: None,
        stop_requested: Callable[[], bool] = lambda: False,
        world: World = World(),
    ) -> tuple[Path, str]:
        """The report's path and its table as text. What is in `out` is not done again; processes share the work."""
        sizes = Sizes(self.width, self.steps, self.classifier_steps, self.judge_steps, self.batch_size)
        models = DigitModels(Path(self.models) if self.models else out / "models", sizes, device)
        models.train(KINDS, self.seeds, on_progress, stop_requested, world)
        view = View.of(out, self.judge_steps, world)
        # Measured by one process while the others wait, and the same for all.
        seconds: dict[str, float] = json.loads(
            world.from_first(json.dumps(self.seconds(out, models)) if world.rank == 0 else None)
        )
        trials = self.trials(seconds)
        place = {trial.key: k for k, trial in enumerate(trials)}

        def measure(trial: Trial) -> Mapping[str, float]:
            on_progress("measuring", place[trial.key], len(trials), trial.key)
            name, strength, budget = read_variant(trial.variant)
            request = self.request(models, name, strength, trial.seed, self.links(seconds, name, budget))
            return view.measure(request, self.num, trial.seed)

        found = summaries(trials, run_trials(trials, out, measure, world, stop_requested))
        return self.report(out, found, seconds, view.real(self.num)) if world.rank == 0 else (out, "")

    def trials(self, seconds: Mapping[str, float]) -> list[Trial]:
        made_by = without(asdict(self), "seeds", "budgets", "models", "rounds")
        return [
            Trial(
                variant(name, strength, budget),
                seed,
                [name, strength, self.links(seconds, name, budget), way.meaning, made_by, seed],
            )
            for seed in range(self.seeds)
            for budget in self.budgets
            for name, way in WAYS.items()
            for strength in way.strengths
        ]

    def request(self, models: DigitModels, name: str, strength: float, seed: int, links: int) -> Request:
        """Everything that a set is a function of."""
        way = WAYS[name]
        model, classifier = models.load(way.model, seed), models.load("classifier", seed)
        early, small = models.load("conditional", seed, early=True), models.load("small", seed)
        assert isinstance(model, DiffusionModel) and isinstance(classifier, NoisyClassifier)
        assert isinstance(early, DiffusionModel) and isinstance(small, DiffusionModel)
        guidance = way.build(strength, Others(classifier, early, small))
        return prepare(model, links, self.sampler, [] if guidance is None else [guidance])

    def seconds(self, out: Path, models: DigitModels) -> dict[str, float]:
        """Seconds of an image and a link for each way, measured, or as measured when `out` was begun."""
        path, setting = out / "seconds.json", self.setting(models.device)
        if (stored := stored_seconds(path, setting)) is not None:
            return stored
        links, images = max(self.budgets), min(self.num, 50)

        def work(name: str, strength: float) -> Callable[[], object]:
            request = self.request(models, name, strength, 0, links)
            return lambda: list(batches(request, [k % 10 for k in range(images)], 0, images))

        # The middle one of the strengths: none of them changes the work.
        works = {name: work(name, way.strengths[len(way.strengths) // 2]) for name, way in WAYS.items()}
        taken = interleaved(works, self.rounds, models.device)
        per_link = {name: value / (links * images) for name, value in taken.items()}
        files.write_json(path, {**setting, "seconds": per_link, "links": links})
        return per_link

    def setting(self, device: torch.device | str) -> dict[str, object]:
        """What the seconds of a link depend on, JSON-able."""
        return {
            "ways": list(WAYS),
            "width": self.width,
            "sampler": self.sampler,
            "budgets": list(self.budgets),
            "num": self.num,
            "device": str(device),
            "machine": machine(),
        }

    def links(self, seconds: Mapping[str, float], name: str, budget: int) -> int:
        """The links that take as long as `budget` of the conditional model alone; 2 at least."""
        return max(2, round(budget * seconds[NONE] / seconds[name]))

    def report(
        self, out: Path, found: Mapping[str, Summary], seconds: Mapping[str, float], real: Mapping[str, float]
    ) -> tuple[Path, str]:
        """Write tables, figures and what they say."""
        findings = [self.finding(found, budget) for budget in self.budgets]
        main, *more = [self.table(found, seconds, real, budget) for budget in reversed(self.budgets)]
        report = Report(
            title="Guidances on digits, at equal seconds",
            summary=[
                f"{len(WAYS) - 1} ways to guide, sampled by {self.sampler} with chains that take as long as "
                f"{' or '.join(map(str, self.budgets))} evaluations of the conditional model alone; {self.num} samples "
                f"a set, {under_seeds(self.seeds)}.",
                *findings,
                *no_error_bars(self.seeds),
                "These are small models of 8 x 8 digits: the ranking may differ in large ones.",
            ],
            figures=[self.figure(found, budget) for budget in reversed(self.budgets)],
            table=main,
            more=[*more, *(self.duels(found, budget) for budget in reversed(self.budgets)), cost_table(seconds)],
            conditions={**asdict(self), **machine()},
            guide=[*GUIDE, *seed_guide(self.seeds)],
        )
        path, *_ = write_report(out / "report.html", report)
        files.write_text(out / "report.md", markdown(report))
        sets = {
            name: {"by_seed": s.by_seed, "mean": s.mean, "std": s.spread, "way": read_variant(name)}
            for name, s in found.items()
        }
        files.write_json(
            out / "results.json",
            {
                "options": asdict(self),
                "machine": machine(),
                "seconds_per_link": dict(seconds),
                "findings": findings,
                "real": dict(real),
                "sets": sets,
            },
        )
        said = [*findings, *no_error_bars(self.seeds)]
        return path, "\n\n".join([text_table(main), text_table(self.duels(found, self.budgets[-1])), *said])

    def finding(self, found: Mapping[str, Summary], budget: int) -> str:
        """Which guidance comes nearest to real digits in these seconds, and how near without one, in words."""
        guided = [variant(name, x, budget) for name, way in WAYS.items() if name != NONE for x in way.strengths]
        candidates = {key: found[key] for key in guided}
        plain = found[variant(NONE, WAYS[NONE].strengths[0], budget)]
        chosen = best_by_others({key: s.of(FD) for key, s in candidates.items()})
        gaps, words = {}, []
        for measure, form in ((FD, ".2f"), (ACCURACY, ".3f")):
            ours = {seed: candidates[key].of(measure)[seed] for seed, key in chosen.items()}
            gaps[measure] = paired(ours, plain.of(measure))
            words.append(f"{MEASURES[measure]} {plain.mean[measure]:{form}}, {gaps[measure].show(form)} with it")
        names = ", ".join(dict.fromkeys("{} at {:g}".format(*read_variant(key)) for key in chosen.values()))
        best, verdict = f"{names}; {how_chosen(len(chosen))}", gaps[FD].verdict()
        wins = (
            f"the best guidance ({best}) has a lower FD than none"
            if gaps[FD].mean < 0
            else f"no guidance has a lower FD than none, not the best either ({best})"
        )
        return f"In the seconds of {budget} evaluations, {wins}. Without guidance: {'; '.join(words)}" + (
            "." if verdict is None else f" (± standard error; {verdict} in FD)."
        )

    def at_best(self, found: Mapping[str, Summary], name: str, budget: int) -> dict[str, dict[int, float]]:
        """Each measure by seed, under each seed at the strength that has the lowest FD under the other seeds."""
        sets = {variant(name, x, budget): found[variant(name, x, budget)] for x in WAYS[name].strengths}
        chosen = best_by_others({key: s.of(FD) for key, s in sets.items()})
        return {measure: {seed: sets[key].of(measure)[seed] for seed, key in chosen.items()} for measure in MEASURES}

    def duels(self, found: Mapping[str, Summary], budget: int) -> Table:
        """Ways against each other at equal seconds, each at its best strength."""
        pairs = [(name, NONE) for name in WAYS if name != NONE] + list(DUELS)
        rows = []
        for one, other in pairs:
            ours, theirs = self.at_best(found, one, budget), self.at_best(found, other, budget)
            gaps = {measure: paired(ours[measure], theirs[measure]) for measure in MEASURES}
            cells = [gaps[FD].show(), gaps[FD].verdict(), gaps[ACCURACY].show(".3f"), gaps[RECALL].show(".3f")]
            rows.append(Row(f"{one} - {other}", cells))
        columns = [Column(title, "s") for title in ("FD", "which is", "label accuracy", "recall")]
        gap, seed = ("± standard error over the seeds", "the other seeds") if self.seeds > 1 else ("of one seed", "it")
        caption = (
            f"Differences {gap}, each way at the strength that has the lowest FD under {seed}; a negative FD and a "
            "positive accuracy speak for the first."
        )
        return Table(columns, rows, "difference", caption, f"Who is better in the seconds of {budget} evaluations")

    def table(
        self, found: Mapping[str, Summary], seconds: Mapping[str, float], real: Mapping[str, float], budget: int
    ) -> Table:
        rows = []
        for name, way in WAYS.items():
            for strength in way.strengths:
                s = found[variant(name, strength, budget)]
                evaluations = f"{s.mean['network']:g}" + (
                    f" + {s.mean['classifier']:g}" if s.mean["classifier"] else ""
                )
                measured = [s.show(FD, ".2f"), s.show(HELD_OUT, ".2f")]
                measured += [s.show(measure, ".3f") for measure in (ACCURACY, PRECISION, RECALL)]
                label = name if name == NONE else f"{name} {strength:g}"
                rows.append(Row(label, [self.links(seconds, name, budget), evaluations, *measured]))
        shown = [format(real[m], f) for m, f in ((FD, ".2f"), (HELD_OUT, ".2f"))]
        shown += [format(real[measure], ".3f") for measure in (ACCURACY, PRECISION, RECALL)]
        rows.append(Row("as many training digits", [None, None, *shown], real=True))
        milliseconds = 1000 * budget * seconds[NONE]
        caption = f"{milliseconds:.3g} ms an image: {budget} evaluations of the conditional model alone."
        return Table(COLUMNS, rows, "guidance", caption, f"The seconds of {budget} evaluations")

    def figure(self, found: Mapping[str, Summary], budget: int) -> Figure:
        """FD against label accuracy and against recall."""

        def curves(x: str) -> list[ErrorCurve]:
            made = []
            for name, way in WAYS.items():
                some: Sequence[Summary] = [found[variant(name, strength, budget)] for strength in way.strengths]
                made.append(
                    ErrorCurve(
                        name,
                        [s.mean[x] for s in some],
                        [s.mean[FD] for s in some],
                        [s.spread[FD] for s in some],
                        [s.spread[x] for s in some],
                        [] if name == NONE else [f"{strength:g}" for strength in way.strengths],
                    )
                )
            return made

        panels = [
            ErrorPanel("Distance and class", "label accuracy", "FD to all digits", curves(ACCURACY), log=True),
            ErrorPanel("Distance and coverage", "recall", "FD to all digits", curves(RECALL), log=True),
        ]
        return Figure(
            f"guidances-{budget}",
            f"In the seconds of {budget} evaluations",
            error_curves(panels),
            "a curve for each way to guide through its strengths: FD against label accuracy, and against recall",
            "Numbers beside the points are strengths"
            + ("; bars are standard deviations over the seeds." if self.seeds > 1 else "."),
        )
