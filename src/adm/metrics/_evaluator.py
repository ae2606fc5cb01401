"""Samples against a reference: one pass over the images for all features, then every metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.data import ImageSource
from adm.metrics._extractor import Extractor
from adm.metrics._feature_cache import FeatureCache
from adm.metrics._features import Features, Metric, Statistics
from adm.metrics._jackknife import jackknife
from adm.metrics._nearest_report import NearestReport
from adm.metrics._passes import Passes, Progress
from adm.metrics._rows import FeatureRows
from adm.metrics._side import STORED, Side
from adm.metrics._specs import build_metric, metric_options, tap_of
from adm.metrics.label_accuracy import LabelAccuracy
from adm.metrics.nearest import NearestDistance
from adm.runtime import lookup
from adm.runtime.distributed import World
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import one_line

__all__ = ["DEFAULT_METRICS", "Evaluator", "Scores"]

DEFAULT_METRICS = ("fid", "sfid", "inception_score", "precision_recall")
BATCH_SIZE = 128


class Scores(dict[str, float]):
    """The numbers by name. `conditions`: all that they depend on, as JSON; `notes`: what makes them doubtful;
    `pictures`: PNGs by name, where a metric has something to show."""

    def __init__(
        self,
        scores: Mapping[str, float],
        conditions: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        pictures: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(scores)
        self.conditions = dict(conditions or {})
        self.notes = list(notes)
        self.pictures = dict(pictures or {})


class Evaluator:
    """Metrics of images that come batch by batch, from a file or straight from a sampler.

    reference: a path to images or statistics, or an ImageSource. metrics: names or specs of files of this room, or
    ready objects. weights, allow_other_weights, precision, compile: of the Inception network, see
    `InceptionExtractor`. Raises UsageError for weights that are not there, before any work; DataError and
    DamagedError for a reference that cannot be used.

        evaluator = adm.Evaluator("reference.npz")
        for images in batches:                      # uint8 (n, H, W, C)
            evaluator.update(images)
        scores = evaluator.compute()
    """

    def __init__(
        self,
        reference: str | Path | ImageSource,
        metrics: Sequence[str | Metric] = DEFAULT_METRICS,
        *,
        weights: str | Path | None = None,
        allow_other_weights: bool = False,
        precision: str = "float32",
        compile: bool = False,
        batch_size: int = BATCH_SIZE,
        device: str | torch.device = "cpu",
        on_progress: Progress = lambda what, done, total, note: None,
        error_bars: bool = False,
        world: World = World(),
        cache: FeatureCache | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}: must be at least 1.")
        self.passes = Passes(batch_size, world, cache, on_progress)
        self.error_bars = error_bars
        self.metrics = {str(m): build_metric(m, device) if isinstance(m, str) else m for m in metrics}
        _refuse_what_cannot_be_named(self.metrics)
        self.inception: Extractor | None = None
        if any(metric.extractor is None for metric in self.metrics.values()):
            self.inception = inception_extractor(weights, allow_other_weights, precision, compile, device)
        self.notes: list[str] = []
        self.samples: Side | None = None
        self.reference = Side(reference)
        self._leave_out(self.reference, [name for name in self.metrics if self._needs_images(name, self.reference)])
        self.reset()

    @property
    def world(self) -> World:
        return self.passes.world

    def update(self, images: np.ndarray | Tensor, label: np.ndarray | Tensor | Sequence[int] | None = None) -> None:
        """The next samples: uint8 (n, H, W, C), and the class that each was asked to show; of a single process."""
        if self.world.size > 1:
            raise UsageError("update is for a single process. Of many, give each the whole source: consume shares it.")
        if images.ndim != 4 or str(images.dtype).removeprefix("torch.") != "uint8":
            raise UsageError(
                f"images of shape {tuple(images.shape)} and {images.dtype}: give uint8 (n, H, W, C), as to_uint8 makes."
            )
        for start in range(0, len(images), self.passes.batch_size):
            for rows in self._rows.values():
                rows.add(rows.extract(images[start : start + self.passes.batch_size]))
        if label is not None:
            self._labels.append(torch.as_tensor(label, dtype=torch.int64).cpu())

    def consume(self, samples: str | Path | ImageSource | Side, num: int | None = None) -> None:
        """All images of a file, folder or source, or the first `num`; of several processes each takes its share.

        Statistics that a file stores stand for its images where they suffice, unless only some are asked for.
        """
        side = samples if isinstance(samples, Side) else Side(samples)
        if num is not None or self.error_bars:
            side.stored = {}
        self._leave_out(side, [name for name in self.metrics if not self._stored(name, side)])
        self.samples = side
        needing = {name: self.metrics[name] for name in self.metrics if not self._stored(name, side)}
        if needing:
            source = side.images()
            self._num_consumed = source.num if num is None else num
            rows = [self._rows[name] for name in self._wanted(needing.values())]
            self.passes.add(source, rows, self._num_consumed, "samples")
            if source.labels is not None:
                self._labels.append(torch.as_tensor(source.labels[: self._num_consumed], dtype=torch.int64))

    def compute(self) -> dict[str, float]:
        """The scores of all samples so far, on process 0; an empty mapping on the others."""
        self.prepare_reference()
        if self.world.rank > 0:
            return {}
        label = torch.cat(self._labels) if self._labels else None
        scores: dict[str, float] = {}
        for i, (name, metric) in enumerate(self.metrics.items()):
            self.passes.on_progress("metrics", i, len(self.metrics), type(metric).__name__)
            extractor = self._extractor(metric)
            sample, reference = self._sample_side(name, label), self._reference_side(name)
            if self.error_bars:
                assert isinstance(sample, Features)  # what is stored was not taken
                values: Mapping[str, float] = jackknife(metric, sample, reference)
            else:
                values = metric(sample, reference)
            suffix = extractor.name.partition("@")[2] if extractor is self.inception else ""
            marked = {key: f"{key}@{suffix}" if suffix and suffix not in key else key for key in values}
            scores |= {marked[key]: float(value) for key, value in values.items()}
        self.passes.on_progress("metrics", len(self.metrics), len(self.metrics), "")
        return scores

    def nearest_training_images(self) -> NearestReport | None:
        """What `nearest` found, image by image, on process 0; None if that metric was not asked for."""
        metric = next((m for m in self.metrics.values() if isinstance(m, NearestDistance)), None)
        if metric is None or self.world.rank > 0:
            return None
        tap = tap_of(metric, metric.extractor)
        samples = self._rows[metric.extractor.name].features(tap, None)
        training = self.reference.rows[metric.extractor.name].features(tap, None)
        return metric.report(samples, training, k=min(3, len(training)))

    def forget_samples(self) -> None:
        """Remove the samples' features from the cache: once there are scores, nobody needs them again."""
        if self.samples is not None and self.samples.source is not None:
            self.passes.forget(self.samples.source, list(self._rows.values()), self._num_consumed)

    def reset(self) -> None:
        """Forget the samples, keep the reference: ready for the next set."""
        self._rows = {name: FeatureRows(*pair) for name, pair in self._wanted(self.metrics.values()).items()}
        self._labels: list[Tensor] = []
        self._num_consumed = 0
        self.samples = None

    def prepare_reference(self) -> None:
        """Extract the reference's features, once; `compute` does it when it was not done before."""
        needing = [metric for name, metric in self.metrics.items() if self._needs_images(name, self.reference)]
        wanted = {n: pair for n, pair in self._wanted(needing).items() if n not in self.reference.rows}
        if wanted:
            rows = {name: FeatureRows(*pair) for name, pair in wanted.items()}
            source = self.reference.images()
            self.passes.add(source, list(rows.values()), source.num, "reference")
            self.reference.rows |= rows

    def uses_reference_images(self) -> bool:
        """Whether a metric compares with the reference's images themselves, not with statistics that it stores."""
        return any(self._needs_images(name, self.reference) for name in self.metrics)

    def has_statistics_of_other_weights(self) -> bool:
        """Whether a side came with statistics that need not be of this Inception network: those that do not say of
        which weights they are, are taken to be of the published ones."""
        if self.inception is None:
            return False
        published = "@" not in self.inception.name
        ours = self.inception.conditions.get("weights_sha256")
        sides = [side for side in (self.reference, self.samples) if side is not None and side.stored]
        return any(not published if s.stored_weights is None else s.stored_weights != ours for s in sides)

    def conditions(self) -> dict[str, Any]:
        """What the scores depend on, but for the samples: reference, extractors, options of the metrics."""
        extractors = {self._extractor(m).name: self._extractor(m) for m in self.metrics.values()}
        return {
            "reference": self.reference.conditions(),
            "extractors": {name: dict(e.conditions) for name, e in extractors.items()},
            "metrics": {name: metric_options(metric) for name, metric in self.metrics.items()},
            "batch_size": self.passes.batch_size,
        }

    def _extractor(self, metric: Metric) -> Extractor:
        extractor = metric.extractor or self.inception
        assert extractor is not None
        return extractor

    def _wanted(self, metrics: Iterable[Metric]) -> dict[str, tuple[Extractor, list[str]]]:
        """By the extractor's name the extractor, and which taps these metrics read."""
        wanted: dict[str, tuple[Extractor, list[str]]] = {}
        for metric in metrics:
            extractor = self._extractor(metric)
            taps = wanted.setdefault(extractor.name, (extractor, []))[1]
            tap = tap_of(metric, extractor)
            if tap not in taps:
                taps.append(tap)
        return wanted

    def _stored(self, name: str, side: Side) -> bool:
        """Whether the side's file holds the statistics that this metric needs."""
        metric = self.metrics[name]
        extractor = self._extractor(metric)
        return metric.accepts_statistics and extractor is self.inception and side.stores(tap_of(metric, extractor))

    def _needs_images(self, name: str, reference: Side) -> bool:
        return self.metrics[name].needs_reference and not self._stored(name, reference)

    def _sample_side(self, name: str, label: Tensor | None) -> Features | Statistics:
        metric = self.metrics[name]
        extractor = self._extractor(metric)
        tap = tap_of(metric, extractor)
        if self.samples is not None and self._stored(name, self.samples):
            return self.samples.statistics(tap, extractor)
        rows = self._rows[extractor.name]
        if rows.num == 0:
            raise UsageError("there are no samples yet. Call update first.")
        if label is not None and len(label) != rows.num:
            raise UsageError(f"{len(label)} labels came with {rows.num} images: give one each, or none at all.")
        return rows.features(tap, label)

    def _reference_side(self, name: str) -> Features | Statistics | None:
        metric = self.metrics[name]
        extractor = self._extractor(metric)
        tap = tap_of(metric, extractor)
        if not metric.needs_reference:
            return None
        if self._stored(name, self.reference):
            return self.reference.statistics(tap, extractor)
        return self.reference.rows[extractor.name].features(tap, self.reference.label())

    def _leave_out(self, side: Side, lacking: Sequence[str]) -> None:
        """A file of statistics alone has no images: the default metrics that need some are left out, with a note."""
        for tap in STORED:
            if self.inception is not None and side.stores(tap):
                side.statistics(tap, self.inception)  # refuses another width before any work
        if side.source is not None or not lacking:
            return
        if not set(lacking) <= set(DEFAULT_METRICS) or len(lacking) == len(self.metrics):
            raise DataError(
                f"{side.name} holds statistics and no images, which {', '.join(lacking)} need. Give a file with images."
            )
        for name in lacking:
            del self.metrics[name]
        self.notes.append(f"{side.name} holds statistics and no images: {', '.join(lacking)} left out")


def _refuse_what_cannot_be_named(metrics: Mapping[str, Metric]) -> None:
    """Each score has one name: two metrics of a kind in the same features, or one without a meaning, are refused."""
    if any(isinstance(metric, LabelAccuracy) and metric.extractor is None for metric in metrics.values()):
        raise UsageError(
            "label_accuracy needs a classifier of these classes, which Inception is not. "
            "Write label_accuracy:extractor=(classifier:path=...)."
        )
    seen: dict[tuple[type, str], str] = {}
    for name, metric in metrics.items():
        kind = type(metric), metric.extractor.name if metric.extractor is not None else ""
        if kind in seen:
            raise UsageError(
                f"{one_line(seen[kind], 80)} and {one_line(name, 80)} would give scores of the same name. "
                "Ask for them in two calls."
            )
        seen[kind] = name


def inception_extractor(
    weights: str | Path | None, allow_other: bool, precision: str, compile: bool, device: str | torch.device
) -> Extractor:
    """The Inception network of these weights, as a metric without an extractor of its own reads it."""
    build = lookup.find("metrics.extractors", "inception")
    extractor: Extractor = build(weights, allow_other, precision=precision, compile=compile, device=device)
    return extractor
