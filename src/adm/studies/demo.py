"""The paper's claim on real data in minutes: a noisy classifier trades diversity for fidelity.

An unconditional ADM and a noisy classifier are trained on handwritten digits; samples are guided at several scales
with DDPM (ADM Alg. 1) and DDIM (Alg. 2) from the same seeds, and measured by a classifier that took no part.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm.checkpoints.load import load
from adm.checkpoints.model_document import ScheduleConfig, describe_model
from adm.data import write_npz
from adm.data.digits import Digits
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.guidance.classifier import ClassifierGuidance
from adm.metrics import CleanClassifier, Features, pixel_features
from adm.metrics.frechet import FrechetDistance
from adm.metrics.label_accuracy import LabelAccuracy
from adm.metrics.nearest import NearestDistance
from adm.metrics.precision_recall import PrecisionRecall
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime import files
from adm.runtime.config import to_dict
from adm.runtime.errors import DamagedError, StoppedError
from adm.runtime.text import shown_path
from adm.studies._demo_report import write_demo_report
from adm.studies._judge import digits_judge
from adm.studies.generate import batches
from adm.studies.likelihood import measure_likelihood
from adm.studies.request import prepare
from adm.training.config import ClassifierTraining, DataConfig, DiffusionTraining, LoopConfig, OptimizerConfig
from adm.training.run import Progress, train

__all__ = ["DemoConfig", "Measurement", "run_demo"]

OnProgress = Callable[[str, int, int, str], None]
"""(what is being done, done, total, a note)."""


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demonstration; the defaults take minutes on two CPU cores.

    num_per_class: samples of each digit in a set. sample_steps: links of the chains. likelihood_num: held-out digits
    whose bits/dim are measured, with likelihood_steps links.
    """

    diffusion_steps: int = 1000
    classifier_steps: int = 500
    judge_steps: int = 500
    batch_size: int = 64
    scales: tuple[float, ...] = (0.0, 1.0, 3.0, 10.0)
    num_per_class: int = 20
    sample_steps: int = 50
    sample_batch: int = 100
    likelihood_num: int = 100
    likelihood_steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.scales) < 2 or 0 not in self.scales:
            raise ValueError(f"scales are {self.scales}: give 0 (no guidance) and at least one other")
        for field in fields(self):
            if field.name not in ("scales", "seed") and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}: must be at least 1")


@dataclass(frozen=True)
class Measurement:
    """What was measured of one set: images uint8 (N, 8, 8, 1), the classes asked for and those that the judge reads."""

    sampler: str
    scale: float
    images: NDArray[np.uint8]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    values: dict[str, float]


def run_demo(
    config: DemoConfig,
    out: Path,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = lambda what, done, total, note: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> tuple[Path, str]:
    """Train, sample, measure and report into `out`; returns the report's path and its table as text.

    What is already in `out` is not done again, so the same call continues an interrupted one. Raises StoppedError
    between two pieces of work when asked to stop, and ResourceError when another process works in `out`.
    """
    with files.lock(out / ".lock", f"demo {shown_path(out)!r}"):
        for folder in (out, out / "sets", out / "pictures"):
            if folder.is_dir():
                files.remove_partials(folder)  # what a killed demo left
        return _run_demo(config, out, device, on_progress, stop_requested)


def _run_demo(
    config: DemoConfig,
    out: Path,
    device: torch.device | str,
    on_progress: OnProgress,
    stop_requested: Callable[[], bool],
) -> tuple[Path, str]:
    train_set, held_out = Digits("train"), Digits("test")
    paths = [
        _train(f"training the {what}", training, out / folder, device, on_progress, stop_requested)
        for what, folder, training in (
            ("diffusion model", "diffusion", diffusion_config(config)),
            ("noisy classifier", "classifier", classifier_config(config)),
        )
    ]
    model, guide = load(paths[0], device), load(paths[1], device)
    assert isinstance(model, DiffusionModel) and isinstance(guide, NoisyClassifier)
    judge = digits_judge(
        out,
        config.judge_steps,
        config.seed,
        lambda step, loss: on_progress("training the independent judge", step, config.judge_steps, f"loss {loss:.3f}"),
    )
    identity = _identity(*paths)

    measurements = [
        _measure(judge, name, scale, images, labels, train_set, held_out)
        for name, scale, images, labels in _sets(config, out, model, guide, identity, on_progress, stop_requested)
    ]
    bits = _likelihood(config, out, model, held_out, identity, on_progress)
    real = _real(judge, train_set, held_out, len(measurements[0].images))
    files.write_json(
        out / "measurements.json",
        {
            "sets": [{"sampler": m.sampler, "scale": m.scale} | m.values for m in measurements],
            "real": real,
            "bits_per_dim": bits,
            "settings": to_dict(config),
        },
    )
    models = {"diffusion model": _in_words(model), "noisy classifier": _in_words(guide)}
    return write_demo_report(out, config, measurements, real, bits, models, str(device))


def _in_words(model: DiffusionModel | NoisyClassifier) -> str:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    schedule = describe_model(model)["schedule"]
    return f"{parameters:.2f}M parameters, {schedule['name']} schedule, T = {schedule['num_timesteps']}"


def diffusion_config(config: DemoConfig) -> DiffusionTraining:
    """The unconditional ADM of the demonstration: 0.8M parameters, learned variance, hybrid loss."""
    network = UNetConfig(
        image_size=8,
        in_channels=1,
        out_channels=2,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=32,
    )
    return DiffusionTraining(
        "diffusion",
        DataConfig("digits"),
        network,
        ScheduleConfig("cosine", 1000),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50, anneal="linear"),
        loop=_loop(config, config.diffusion_steps),
    )


def classifier_config(config: DemoConfig) -> ClassifierTraining:
    """The noisy classifier that guides, trained on the same schedule."""
    network = ClassifierConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=32,
    )
    return ClassifierTraining(
        "classifier",
        DataConfig("digits"),
        network,
        ScheduleConfig("cosine", 1000),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_steps=50, anneal="linear"),
        loop=_loop(config, config.classifier_steps),
    )


def _loop(config: DemoConfig, steps: int) -> LoopConfig:
    often = max(1, min(200, steps // 4))
    return LoopConfig(
        steps=steps,
        batch_size=config.batch_size,
        seed=config.seed,
        log_every=max(1, min(10, steps // 40)),
        save_every=often,
        sample_every=2 * often,
    )


def _train(
    what: str,
    config: DiffusionTraining | ClassifierTraining,
    out: Path,
    device: torch.device | str,
    on_progress: OnProgress,
    stop_requested: Callable[[], bool],
) -> Path:
    def progress(p: Progress) -> None:
        on_progress(what, p.step, p.num_steps, "" if p.result is None else f"loss {p.result.loss:.3f}")

    return train(config, out, device, progress, stop_requested)


def _sets(
    config: DemoConfig,
    out: Path,
    model: DiffusionModel,
    guide: NoisyClassifier,
    identity: str,
    on_progress: OnProgress,
    stop_requested: Callable[[], bool],
) -> Iterator[tuple[str, float, NDArray[np.uint8], NDArray[np.int64]]]:
    """(sampler, scale, images, labels) of each set, made from the same seeds, or read if it was made before."""
    labels = np.arange(10 * config.num_per_class) % 10
    jobs = [(sampler, scale) for sampler in ("ddpm", "ddim") for scale in config.scales]
    for number, (sampler, scale) in enumerate(jobs):
        what = f"sampling {number + 1}/{len(jobs)}: {sampler.upper()}, scale {scale:g}"
        recipe = [identity, sampler, scale, config.num_per_class, config.sample_steps, config.sample_batch, config.seed]
        path = out / "sets" / f"{sampler}-scale{scale:g}-{_digest(recipe)}.npz"
        images = _read_images(path)
        if images is None:
            if stop_requested():
                raise StoppedError("stopped before sampling; run the same command to continue.")
            request = prepare(model, config.sample_steps, sampler, [ClassifierGuidance(guide, scale)])
            total = len(labels) * config.sample_steps

            def on_step(index: int, step: int, what: str = what, total: int = total) -> None:
                size = min(config.sample_batch, len(labels) - index)
                on_progress(what, index * config.sample_steps + (step + 1) * size, total, "")

            made = batches(request, labels.tolist(), config.seed, config.sample_batch, on_step=on_step)
            images = np.concatenate([batch.images for batch in made])
            files.make_directory(path.parent)
            write_npz(path, images, labels.tolist())
        yield sampler, scale, images, labels


def _read_images(path: Path) -> NDArray[np.uint8] | None:
    """The images of a set that is there and whole; the zip's checksums are compared on reading."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images: NDArray[np.uint8] = arrays["arr_0"]
            return images
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _measure(
    judge: CleanClassifier,
    sampler: str,
    scale: float,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    train_set: Digits,
    held_out: Digits,
) -> Measurement:
    features = judge.features(images, labels)
    values = _compare(features, judge.features(held_out.images, held_out.labels))
    values |= LabelAccuracy()(features)
    values |= NearestDistance()(pixel_features(images), pixel_features(train_set.images))
    assert features.predicted is not None
    return Measurement(sampler, scale, images, labels, features.predicted.numpy(), values)


def _compare(sample: Features, reference: Features) -> dict[str, float]:
    return FrechetDistance()(sample, reference) | PrecisionRecall(precision="fp32")(sample, reference)


def _real(judge: CleanClassifier, train_set: Digits, held_out: Digits, num: int) -> dict[str, dict[str, float]]:
    """Yardsticks: as many training digits as there are samples against the held-out ones, and those by themselves."""
    held = judge.features(held_out.images, held_out.labels)
    some = judge.features(train_set.images[:num], train_set.labels[:num])
    nearest = NearestDistance()(pixel_features(held_out.images), pixel_features(train_set.images))
    return {"train": _compare(some, held) | LabelAccuracy()(some), "held_out": LabelAccuracy()(held) | nearest}


def _likelihood(
    config: DemoConfig, out: Path, model: DiffusionModel, held_out: Digits, identity: str, on_progress: OnProgress
) -> dict[str, Any]:
    recipe = [identity, config.likelihood_num, config.likelihood_steps, config.seed]
    path = out / f"likelihood-{_digest(recipe)}.json"
    if path.exists():
        try:
            stored = files.read_json(path)
            if isinstance(stored, dict) and stored.keys() >= {"bits_per_dim", "standard_error", "num", "steps"}:
                return stored
        except DamagedError:
            files.remove(path)
    result = measure_likelihood(
        model,
        held_out,
        config.likelihood_num,
        config.likelihood_steps,
        config.sample_batch,
        config.seed,
        lambda done, total: on_progress("bits/dim of held-out digits", done, total, ""),
    )
    files.write_json(path, result)
    return result


def _identity(*checkpoints: Path) -> str:
    return _digest([files.sha256_file(path / "MANIFEST.json") for path in checkpoints])


def _digest(recipe: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
