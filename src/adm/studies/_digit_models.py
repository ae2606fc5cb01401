"""The models of digits that the studies of sampling share: trained under each seed, and looked at by one judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.load import load
from adm.checkpoints.model_document import Model, ScheduleConfig
from adm.data.digits import Digits
from adm.metrics import CleanClassifier, Features
from adm.metrics.frechet import FrechetDistance
from adm.metrics.label_accuracy import LabelAccuracy
from adm.metrics.precision_recall import PrecisionRecall
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import to_dict
from adm.runtime.distributed import World
from adm.studies._cost import counted
from adm.studies._judge import digits_judge
from adm.studies._trials import Trial, run_trials
from adm.studies.generate import batches
from adm.studies.request import Request
from adm.training.config import (
    ClassifierTraining,
    DataConfig,
    DiffusionTraining,
    LoopConfig,
    OptimizerConfig,
    TrainConfig,
)
from adm.training.ema import EMAConfig
from adm.training.run import Progress, train

__all__ = ["ACCURACY", "COST", "FD", "HELD_OUT", "PRECISION", "RECALL", "DigitModels", "Kind", "Sizes", "View"]

Kind = Literal["unconditional", "classifier", "conditional", "small"]
OnProgress = Callable[[str, int, int, str], None]

FD, HELD_OUT, ACCURACY, PRECISION, RECALL = "fd", "fd_held_out", "label_accuracy", "precision", "recall"
COST = ("network", "classifier", "gradients")
SAMPLE_BATCH = 100


@dataclass(frozen=True)
class Sizes:
    """width: model_channels; the small model has half of it. steps: of the diffusion models, batch_size digits each."""

    width: int
    steps: int
    classifier_steps: int
    judge_steps: int
    batch_size: int


@dataclass(frozen=True)
class DigitModels:
    """Trained models by kind and seed, below `folder`.

    unconditional; classifier, a noisy one; conditional, with a tenth of the labels left out and with copies on the way;
    small, conditional too, half as wide and trained a quarter as long.
    """

    folder: Path
    sizes: Sizes
    device: torch.device | str = "cpu"
    _loaded: dict[tuple[str, int], Model] = field(default_factory=dict, repr=False, compare=False)

    def train(
        self,
        kinds: Sequence[Kind],
        seeds: int,
        on_progress: OnProgress,
        stop_requested: Callable[[], bool],
        world: World = World(),
    ) -> None:
        """Train what is not trained yet; processes share the runs."""
        trials = [self._trial(kind, seed) for seed in range(seeds) for kind in kinds]

        def measure(trial: Trial) -> Mapping[str, float]:
            def progress(p: Progress) -> None:
                note = "" if p.result is None else f"loss {p.result.loss:.3f}"
                on_progress(f"training {trial.variant}, seed {trial.seed}", p.step, p.num_steps, note)

            config = self.config(trial.variant, trial.seed)
            train(config, self.folder / trial.key, self.device, progress, stop_requested)
            return {"steps": config.loop.steps}

        run_trials(trials, self.folder, measure, world, stop_requested)

    def load(self, kind: Kind, seed: int, early: bool = False) -> Model:
        """A trained model; early: the copy of its averaged weights after a quarter of the run, if it has copies."""
        name = f"{kind} early" if early else kind
        if (name, seed) not in self._loaded:
            run = self.folder / self._trial(kind, seed).key
            step = checkpoint_format.step_name(self._quarter)
            self._loaded[name, seed] = load(run / "snapshots" / step if early else run, self.device)
        return self._loaded[name, seed]

    def config(self, kind: str, seed: int) -> TrainConfig:
        """What a model is trained by."""
        return self._classifier(seed) if kind == "classifier" else self._diffusion(kind, seed)

    @property
    def _quarter(self) -> int:
        return max(1, self.sizes.steps // 4)

    def _trial(self, kind: str, seed: int) -> Trial:
        return Trial(kind, seed, [kind, to_dict(self.config(kind, seed))])

    def _diffusion(self, kind: str, seed: int) -> DiffusionTraining:
        small, sizes = kind == "small", self.sizes
        width = max(8, sizes.width // 2) if small else sizes.width
        network = UNetConfig(
            image_size=8,
            in_channels=1,
            out_channels=2,
            model_channels=width,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=min(16, width),
            num_classes=None if kind == "unconditional" else 10,
        )
        steps = self._quarter if small else sizes.steps
        return DiffusionTraining(
            "diffusion",
            DataConfig("digits"),
            network,
            ScheduleConfig("cosine", 1000),
            optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50, anneal="linear"),
            ema=EMAConfig(snapshot_every=self._quarter if kind == "conditional" else None),
            loop=self._loop(steps, seed),
            label_dropout=0.1 if kind == "conditional" else 0.0,
        )

    def _classifier(self, seed: int) -> ClassifierTraining:
        network = ClassifierConfig(
            image_size=8,
            in_channels=1,
            num_classes=10,
            model_channels=self.sizes.width,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            num_head_channels=16,
        )
        return ClassifierTraining(
            "classifier",
            DataConfig("digits"),
            network,
            ScheduleConfig("cosine", 1000),
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_steps=50, anneal="linear"),
            loop=self._loop(self.sizes.classifier_steps, seed),
        )

    def _loop(self, steps: int, seed: int) -> LoopConfig:
        return LoopConfig(steps=steps, batch_size=self.sizes.batch_size, seed=seed, save_every=steps, sample_every=None)


@dataclass(frozen=True, eq=False)
class View:
    """An independent judge of digits, and what sets of samples are compared with: all digits, and the held-out ones."""

    judge: CleanClassifier

    @classmethod
    def of(cls, out: Path, steps: int, world: World = World()) -> View:
        """The judge of `out`, trained by process 0 if there is none."""
        if world.rank == 0:
            digits_judge(out, steps, 0)
        world.wait("the judge")
        return cls(digits_judge(out, steps, 0))

    @cached_property
    def all_digits(self) -> Features:
        return self._features(Digits("all"))

    @cached_property
    def held_out(self) -> Features:
        return self._features(Digits("test"))

    def measure(self, request: Request, num: int, seed: int) -> dict[str, float]:
        """Make num samples, of the classes in turn, and measure them; what they cost, each on average, too.

        Image k comes from the noise of seed 1,000,000 * seed + k whatever the sampler.
        """
        labels = np.arange(num) % 10
        with counted(request.denoiser, images=num) as cost:
            made = list(batches(request, labels.tolist(), 1_000_000 * seed, part(num)))
        found = self.compare(np.concatenate([batch.images for batch in made]), labels)
        return found | {name: getattr(cost, name) for name in COST}

    def compare(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """FD, label accuracy, precision and recall of uint8 images (N, 8, 8, 1)."""
        features = self.judge.features(images, labels)
        return {
            FD: distance(features, self.all_digits),
            HELD_OUT: distance(features, self.held_out),
            **LabelAccuracy()(features),
            **PrecisionRecall(precision="fp32")(features, self.all_digits),
        }

    def real(self, num: int) -> dict[str, float]:
        """The same of as many training digits: what cannot be asked of samples."""
        digits = Digits("train")
        return self.compare(digits.images[:num], digits.labels[:num])

    def _features(self, digits: Digits) -> Features:
        return self.judge.features(digits.images, digits.labels)


def part(num: int) -> int:
    """Images at once: the largest divisor of num up to SAMPLE_BATCH, as a last block is filled up and paid for."""
    return max(size for size in range(1, min(num, SAMPLE_BATCH) + 1) if num % size == 0)


def distance(sample: Features, reference: Features) -> float:
    return next(iter(FrechetDistance()(sample, reference).values()))
