"""A set of samples against a reference, with all conditions of the numbers: what `adm evaluate` does."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from adm.data import ImageSource
from adm.metrics import Metric, NearestReport, Statistics, _evaluator
from adm.metrics._evaluator import BATCH_SIZE, DEFAULT_METRICS, Evaluator, Scores
from adm.metrics._feature_cache import FeatureCache
from adm.metrics._passes import BLOCK, Progress
from adm.metrics._rows import FeatureRows
from adm.metrics._side import Side
from adm.metrics.extractors.inception import InceptionExtractor
from adm.runtime.distributed import World
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import split_list
from adm.runtime.version import version
from adm.studies._doubts import doubts
from adm.studies._early_checks import refuse_what_cannot_work
from adm.studies._nearest_picture import nearest_picture

__all__ = ["evaluate", "metric_specs", "reference_statistics", "score_lines", "with_defaults"]

ORIGINAL_ORDER = {
    "inception_score": "Inception Score",
    "fid": "FID",
    "sfid": "sFID",
    "precision": "Precision",
    "recall": "Recall",
}
"""Names and order in which the original program prints its five numbers."""
NUM_COMPARED = 8


def evaluate(
    reference: str | Path | ImageSource,
    samples: str | Path | ImageSource,
    metrics: Sequence[str | Metric] = DEFAULT_METRICS,
    *,
    weights: str | Path | None = None,
    allow_other_weights: bool = False,
    num: int | None = None,
    precision: str = "float32",
    compile: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
    error_bars: bool = False,
    on_progress: Progress = lambda what, done, total, note: None,
    world: World = World(),
    cache: str | Path | None = None,
) -> Scores:
    """{"fid", "sfid", "inception_score", "precision", "recall"} of samples against a reference, as the original
    evaluator computes them; `.conditions` holds what the numbers depend on, `.notes` what makes them doubtful.

    reference, samples: .npz in OpenAI's layout, a folder or zip of images, a sample set; a reference may hold
    statistics. metrics: these instead of the default ones, names or specs of files of adm/metrics. weights: of the
    Inception network, a path, or None for $ADM_INCEPTION_WEIGHTS or the cache; under weights of another hash than
    the released one, which `allow_other_weights` lets pass, every key ends in "@" and the hash's first 8 digits.
    num: only the first so many samples. precision: float32 or bfloat16, of the Inception network. cache: a directory
    that keeps features, so that an interrupted call goes on where it was. error_bars: adds "<name>_error", a standard
    error by the jackknife over 20 blocks of samples. Raises UsageError
    before any work when weights are missing, DataError and DamagedError for files that cannot be used.
    """
    for path in (reference, samples):
        if isinstance(path, str | Path) and not Path(path).exists():
            Side(path)  # built-in data, or a line that says so before anything is loaded
    evaluator = Evaluator(
        reference,
        metrics,
        weights=weights,
        allow_other_weights=allow_other_weights,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
        device=device,
        on_progress=on_progress,
        error_bars=error_bars,
        world=world,
        cache=None if cache is None else FeatureCache(Path(cache)),
    )
    side = Side(samples)
    source = side.source
    count = 0 if source is None else source.num if num is None else num
    difference: dict[str, float] = {}
    if source is not None:
        if not 0 < count <= source.num:
            raise DataError(
                f"{source.name} holds {source.num:,} images, {count:,} were asked for. Make more, or ask for fewer."
            )
        refuse_what_cannot_work(evaluator, source, count)
        difference = difference_from_exact(evaluator, source)
    elif num is not None:
        raise DataError(f"{side.name} holds statistics and no images, of which {num} were asked for. Leave out num.")
    evaluator.prepare_reference()
    evaluator.consume(side, num)
    scores = evaluator.compute()
    evaluator.forget_samples()
    conditions = evaluator.conditions() | {
        "samples": side.conditions() | {"num_used": count or None},
        "device": str(device),
        "versions": {
            "adm": version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if difference:
        conditions["difference_from_float32"] = difference
    pictures: dict[str, bytes] = {}
    report = evaluator.nearest_training_images()
    if report is not None and source is not None:
        conditions["nearest"] = described(report)
        pictures["nearest"] = nearest_picture(report, source, evaluator.reference.images(), report.extractor)
    return Scores(
        scores,
        conditions,
        [*evaluator.notes, *evaluator.passes.notes, *doubts(evaluator, source, count, difference)],
        pictures,
    )


def described(report: NearestReport) -> dict[str, object]:
    """What was found of memorised images, as JSON: a ratio without a finite value is None."""
    return {
        "quantiles": {
            name: {key: value if math.isfinite(value) else None for key, value in row.items()}
            for name, row in report.quantiles().items()
        },
        "yardstick": "held-out images" if report.held_out else "each training image to the nearest other one",
    }


def difference_from_exact(evaluator: Evaluator, samples: ImageSource) -> dict[str, float]:
    """How far a network in another precision, or compiled, is from the plain one, on the first samples."""
    inception = evaluator.inception
    if evaluator.world.rank > 0 or not isinstance(inception, InceptionExtractor) or inception.is_exact:
        return {}
    images = next(samples.batches(NUM_COMPARED, 0, NUM_COMPARED))
    return inception.difference_from_exact(torch.from_numpy(np.array(images)))


def reference_statistics(
    source: ImageSource,
    weights: str | Path | None = None,
    allow_other_weights: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
    on_progress: Progress = lambda what, done, total, note: None,
) -> dict[str, np.ndarray]:
    """mu, sigma, mu_s, sigma_s of Inception's features of all images, float64, as a reference file stores them."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: must be at least 1.")
    extractor = _evaluator.inception_extractor(weights, allow_other_weights, "float32", False, device)
    taps = ("pool", "spatial")
    totals: dict[str, Statistics] = {}
    done = 0
    for block in range(0, source.num, BLOCK):
        rows = FeatureRows(extractor, taps)
        for images in source.batches(batch_size, block, min(block + BLOCK, source.num)):
            rows.add(rows.extract(images))
            done += len(images)
            on_progress("statistics", done, source.num, "images")
        for tap in taps:
            part = Statistics.of(rows.values(tap), f"{extractor.name}.{tap}")
            totals[tap] = totals[tap].merge(part) if tap in totals else part
    pool, spatial = totals["pool"], totals["spatial"]
    return {
        "mu": pool.mean.numpy(),
        "sigma": pool.cov.numpy(),
        "mu_s": spatial.mean.numpy(),
        "sigma_s": spatial.cov.numpy(),
    }


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """The scores as text: the original's five lines in its order, then the others."""
    lines = []
    shown = set()
    for key, title in ORIGINAL_ORDER.items():
        for name in scores:
            base, at, suffix = name.partition("@")
            if base == key:
                lines.append(f"{title}{at}{suffix}: {scores[name]}")
                shown.add(name)
    return lines + [f"{name}: {value}" for name, value in scores.items() if name not in shown]


def metric_specs(words: Sequence[str]) -> list[str]:
    """`kid,frechet:extractor=dinov2` as specs; a piece such as `size=100` goes on with the options before it."""
    specs: list[str] = []
    for word in words:
        for piece in split_list(word):
            name, equals, _ = piece.partition("=")
            if equals and ":" not in name:
                if not specs:
                    raise UsageError(f"metrics {piece!r}: write name or name:option=value.")
                specs[-1] += f",{piece}"
            elif piece.strip():
                specs.append(piece.strip())
    return specs


def with_defaults(asked: Sequence[str]) -> list[str]:
    """The default metrics and those asked for; one of them asked for with options takes the default's place."""
    own = {spec.partition(":")[0] for spec in asked if "extractor=" not in spec}
    return [*(name for name in DEFAULT_METRICS if name not in own), *asked]
