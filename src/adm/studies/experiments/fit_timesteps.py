"""The timesteps of a short chain that are best for one model, found by dynamic programming over a teacher's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from adm.checkpoints.load import fingerprint
from adm.checkpoints.model_document import describe_schedule
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.runtime import files, lookup
from adm.runtime.distributed import World
from adm.runtime.errors import DivergedError, UsageError
from adm.runtime.text import one_line, shown_path, split_list
from adm.sampling import Sampler, SeededNoise, sample, timesteps_for
from adm.sampling._fitted import fit_timesteps, jump_errors
from adm.studies._chains import FittedGrid, write_grid
from adm.studies._grid_picture import grid_picture
from adm.studies._machine import machine
from adm.studies._report import Column, Figure, Report, Row, Table, text_table, write_report
from adm.studies._resolve import unwrapped
from adm.studies._trials import Trial, Values, run_trials
from adm.studies.generate import resolve_labels
from adm.studies.request import Request, prepare_named

__all__ = ["FitTimesteps"]

FITTED = "fitted"
OTHERS = ("log-snr", "karras", "even")
GREY_LEVELS = 127.5
COLUMNS = (
    Column("distance", ".2f", "lower", "root mean square from the teacher's images of the same seeds, in grey levels"),
    Column("± over batches", ".2f", None, "standard deviation"),
    Column("timesteps", "s"),
)


@dataclass(frozen=True)
class FitTimesteps:
    """Fit the timesteps of a short chain to a model, into a grid.json that --steps takes.

    model: what `adm sample` takes. links: steps of the grid. sampler: the rule with which grids are compared. The fit
    itself is for Euler steps, whose errors those of other rules follow. guidance: a spec in parentheses, or several,
    ((a:x=1),(b:y=2)). teacher: a rule without noise, whose images are the aim. fine: links of the teacher. num: images
    to fit to, and as many others to compare with, of every class in turn. batch_size: images at once. seed: of the
    first image.
    """

    model: str = ""
    links: int = 10
    sampler: str = "ddim"
    guidance: str = ""
    teacher: str = "dpm_solver_2m"
    fine: int = 60
    num: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("links", "num", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.links >= self.fine:
            raise ValueError(f"links is {self.links}, fine {self.fine}: a grid has fewer links than its teacher")

    def run(
        self,
        out: Path,
        device: torch.device | str = "cpu",
        on_progress: Callable[[str, int, int, str], None] = lambda what, done, total, note: None,
        stop_requested: Callable[[], bool] = lambda: False,
        world: World = World(),
    ) -> tuple[Path, str]:
        """The report's path and its table as text. What is in `out` is not done again; processes share the work."""
        if not self.model:
            raise UsageError("which model? Write fit_timesteps:model=RUN,links=10.")
        request = prepare_named(self.model, f"log-snr:{self.fine}", unwrapped(self.teacher), self.guidances, device)
        recipe = self.recipe(request)

        def jumps(trial: Trial) -> Values:
            on_progress("following the teacher", trial.seed, self.num, "")
            return self.jumps(request, trial.seed)

        fits = [Trial("jumps", start, [recipe, start]) for start in range(0, self.num, self.batch_size)]
        errors = mean_errors(run_trials(fits, out, jumps, world, stop_requested), self.fine)
        rule: Sampler = lookup.build("sampling", unwrapped(self.sampler))
        grids = self.grids(request, rule, fit_timesteps(request.chain, *errors, self.links))

        def compare(trial: Trial) -> Values:
            on_progress("comparing grids", trial.seed, self.num, "")
            return self.distances(request, rule, grids, self.num + trial.seed)

        tests = [replace(t, variant="distances", recipe=[t.recipe, self.sampler, grids]) for t in fits]
        found = run_trials(tests, out, compare, world, stop_requested)
        return self.report(out, request, grids, found) if world.rank == 0 else (out, "")

    @property
    def guidances(self) -> tuple[str, ...]:
        inner = unwrapped(self.guidance)
        parts = split_list(inner)
        if parts and all(part.startswith("(") for part in parts):
            return tuple(map(unwrapped, parts))
        return (inner,) if inner else ()

    def recipe(self, request: Request) -> list[object]:
        """All that the teacher's steps are a function of, but for which images."""
        assert request.checkpoint is not None  # it was named
        weights = [fingerprint(path) for path in (request.checkpoint, *request.guides)]
        return [
            weights,
            list(request.guidance),
            unwrapped(self.teacher),
            self.fine,
            self.seed,
            self.batch_size,
            self.num,
        ]

    def batch(self, request: Request, start: int) -> tuple[SeededNoise, tuple[int, ...], Condition]:
        """Noise, shape and labels of the images from `start` on, of which those from `num` on are for comparing."""
        assert request.model.image_shape is not None  # networks that a checkpoint holds say it
        stop = min(start + self.batch_size, self.num * (1 + start // self.num))
        labels = resolve_labels(request, None, 2 * self.num)[start:stop]
        cond = Condition(label=torch.tensor(labels) if max(labels) >= 0 else None)
        noise = SeededNoise(range(self.seed + start, self.seed + stop))
        return noise, (stop - start, *request.model.image_shape), cond

    def jumps(self, request: Request, start: int) -> dict[str, float]:
        """The mean squares of `jump_errors` for one batch, by "i" and "i,j", and how many images it has."""
        noise, shape, cond = self.batch(request, start)
        try:
            starts, jumps = jump_errors(request.denoiser, request.chain, noise, shape, request.sampler, cond)
        except ValueError as error:
            raise UsageError(f"teacher {unwrapped(self.teacher)}: {error}.") from error
        later = [(i, j) for i in range(len(jumps)) for j in range(i + 1, len(jumps) + 1)]
        values = {f"{i}": float(start) for i, start in enumerate(starts)}
        values |= {f"{i},{j}": float(jumps[i, j]) for i, j in later}
        self._refuse_not_finite("the teacher's steps", start, values)
        return values | {"images": shape[0]}

    def grids(self, request: Request, rule: Sampler, fitted: list[int | float]) -> dict[str, list[float]]:
        """The fitted grid and those it is compared with, each once; a grid that has no such number is left out."""
        grids = {FITTED: list(map(float, fitted))}
        for name in (f"own of {lookup.parse_spec(unwrapped(self.sampler)).name}", *OTHERS):
            try:
                steps = self.links if name.startswith("own") else f"{name}:{self.links}"
                timesteps = sorted(map(float, timesteps_for(rule, request.model.schedule, steps)))
            except ValueError:
                continue
            if timesteps not in grids.values():
                grids[name] = timesteps
        return grids

    def distances(
        self, request: Request, rule: Sampler, grids: Mapping[str, list[float]], start: int
    ) -> dict[str, float]:
        """By grid, how far the sampler's images of one batch are from the teacher's, and how many images it has."""
        noise, shape, cond = self.batch(request, start)

        def made(chain: Chain, sampler: Sampler) -> torch.Tensor:
            return sample(request.denoiser, chain, sampler, noise, shape, cond)

        teacher = made(request.chain, request.sampler)
        chains = {name: Chain(request.model.schedule, timesteps) for name, timesteps in grids.items()}
        misses = {name: made(chain, rule) - teacher for name, chain in chains.items()}
        found = {name: GREY_LEVELS * float(miss.square().mean().sqrt()) for name, miss in misses.items()}
        self._refuse_not_finite("images", start, found)
        return found | {"images": shape[0]}

    def _refuse_not_finite(self, what: str, start: int, values: Mapping[str, float]) -> None:
        """Before they are written as a trial: no grid comes of them, and none can be said to be better."""
        if all(map(math.isfinite, values.values())):
            return
        by, remedy = "", "Take another checkpoint"
        if self.guidances:
            by = f" under the guidance {one_line(', '.join(self.guidances), 160)}"
            remedy = "Lower its scale, or leave it out to see whether the network itself makes such images"
        raise DivergedError(f"{what} from seed {self.seed + start} on are not finite{by}. {remedy}.")

    def report(
        self, out: Path, request: Request, grids: Mapping[str, list[float]], found: list[Values]
    ) -> tuple[Path, str]:
        """Write the grid, its report and a picture."""
        assert request.checkpoint is not None
        weights = [fingerprint(path) for path in (request.checkpoint, *request.guides)]
        grid = FittedGrid(
            "fitted timesteps",
            tuple(grids[FITTED]),
            describe_schedule(request.model.schedule),
            request.name,
            weights[0],
            request.guidance,
            tuple(weights[1:]),
            unwrapped(self.teacher),
            self.fine,
            self.num,
            self.seed,
        )
        write_grid(out / "grid.json", grid)
        distances = {name: torch.tensor([values[name] for values in found], dtype=torch.float64) for name in grids}
        # Where results are older than this number: as if all batches were full.
        images = torch.tensor([values.get("images", self.batch_size) for values in found], dtype=torch.float64)
        means = {name: float(((images * d.square()).sum() / images.sum()).sqrt()) for name, d in distances.items()}
        spreads = {name: float(d.std()) if len(d) > 1 else None for name, d in distances.items()}
        rows = [
            Row(name, (means[name], spreads[name], ", ".join(f"{t:.5g}" for t in timesteps)))
            for name, timesteps in grids.items()
        ]
        table = Table(COLUMNS, rows, corner="grid")
        report = Report(
            title=f"Timesteps fitted to {request.name}",
            summary=list(self.summary(out, means)),
            figures=[self.figure(request, grids, distances)],
            table=table,
            conditions={**asdict(self), "model_sha256": weights[0], **machine()},
        )
        path, *_ = write_report(out / "report.html", report)
        results = {"options": asdict(self), "machine": machine(), "grids": grids, "distance": means, "std": spreads}
        files.write_json(out / "results.json", results)
        return path, f"{text_table(table)}\n\ngrid: --steps {shown_path(out / 'grid.json')}"

    def figure(
        self, request: Request, grids: Mapping[str, list[float]], distances: Mapping[str, torch.Tensor]
    ) -> Figure:
        bars = {name: request.model.schedule.alpha_bar_at(torch.tensor(t).double()) for name, t in grids.items()}
        ratios = {name: ((1 - bar) / bar).sqrt().tolist() for name, bar in bars.items()}
        return Figure(
            "grids",
            "Grids and how near they come",
            grid_picture(ratios, {name: d.tolist() for name, d in distances.items()}),
            "a row for each grid: its noise levels as dots, and a bar for the distance of its images",
            "A dot is a timestep; the bar is the mean distance, a mark on it that of one batch.",
        )

    def summary(self, out: Path, means: Mapping[str, float]) -> Iterator[str]:
        best = min((name for name in means if name != FITTED), key=means.__getitem__)
        yield (
            f"{self.links} links of {self.sampler}, against {self.fine} links of {self.teacher} from the same noise, "
            f"on {self.num} images that the fit has not seen."
        )
        verdict = "nearer than" if means[FITTED] < means[best] else "not nearer than"
        yield (
            f"The fitted grid comes within {means[FITTED]:.2f} grey levels of the teacher, {verdict} the best of the "
            f"others ({best}: {means[best]:.2f})."
        )
        yield f"To use it: adm sample {self.model} --steps {shown_path(out / 'grid.json')} --sampler {self.sampler}"
        yield "Near to the teacher's images is not the same as good images: measure those with adm evaluate."


def mean_errors(found: list[Values], links: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What starts and links cost: mean squares over all images."""
    total = sum(values["images"] for values in found)

    def mean(name: str) -> float:
        return sum(values["images"] * values[name] for values in found) / total

    starts = torch.tensor([mean(f"{i}") for i in range(links)], dtype=torch.float64)
    jumps = torch.full((links, links + 1), torch.inf, dtype=torch.float64)
    for i in range(links):
        for j in range(i + 1, links + 1):
            jumps[i, j] = mean(f"{i},{j}")
    return starts, jumps
