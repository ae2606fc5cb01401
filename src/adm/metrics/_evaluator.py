"""Samples against a reference: one pass over the images for all features, then every metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from adm.metrics._reference import Reference
from adm.metrics._rows import FeatureRows
from adm.metrics._specs import build_metric, metric_options, tap_of
from adm.metrics.label_accuracy import LabelAccuracy
from adm.metrics.nearest import NearestDistance
from adm.runtime import lookup
from adm.runtime.distributed import World
from adm.runtime.errors import DataError, UsageError
from adm.runtime.version import version

__all__ = ["DEFAULT_METRICS", "Evaluator", "Scores"]

DEFAULT_METRICS = ("fid", "sfid", "inception_score", "precision_recall")
BATCH_SIZE = 128
BLOCK = 1024
"""About so many images are between two savings of their features."""
STORED = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Names under which a reference file keeps the statistics of each of Inception's taps."""

Progress = Callable[[str, int, int, str], None]
"""(what, done, total, note)"""


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
        self.batch_size, self.on_progress, self.world, self.cache = batch_size, on_progress, world, cache
        self.error_bars = error_bars
        self.metrics = {str(m): build_metric(m, device) if isinstance(m, str) else m for m in metrics}
        if any(isinstance(metric, LabelAccuracy) and metric.extractor is None for metric in self.metrics.values()):
            raise UsageError(
                "label_accuracy needs a classifier of these classes, which Inception is not. "
                "Write label_accuracy:extractor=(classifier:path=...)."
            )
        self.inception: Extractor | None = None
        if any(metric.extractor is None for metric in self.metrics.values()):
            self.inception = _inception(weights, allow_other_weights, precision, compile, device)
        self.reference = Reference(reference)
        self.notes: list[str] = []
        self._kept_for: dict[str, list[dict[str, Any]]] = {}
        self._leave_out_what_the_reference_cannot_serve(metrics)
        self.reset()

    def update(self, images: np.ndarray | Tensor, label: np.ndarray | Tensor | Sequence[int] | None = None) -> None:
        """The next samples: uint8 (n, H, W, C), and the class that each was asked to show."""
        if images.ndim != 4 or str(images.dtype).removeprefix("torch.") != "uint8":
            raise UsageError(
                f"images of shape {tuple(images.shape)} and {images.dtype}: give uint8 (n, H, W, C), as to_uint8 makes."
            )
        for start in range(0, len(images), self.batch_size):
            for rows in self._rows.values():
                rows.add(rows.extract(images[start : start + self.batch_size]))
        if label is not None:
            self._labels.append(torch.as_tensor(label, dtype=torch.int64).cpu())

    def consume(self, samples: ImageSource, num: int | None = None) -> None:
        """All images of the source, or its first `num`; of several processes each takes its contiguous share."""
        num = samples.num if num is None else num
        self._pass(samples, list(self._rows.values()), num, "samples")
        if samples.labels is not None:
            self._labels.append(torch.as_tensor(samples.labels[:num], dtype=torch.int64))

    def compute(self) -> dict[str, float]:
        """The scores of all samples so far, on process 0; an empty mapping on the others."""
        self.prepare_reference()
        if self.world.rank > 0:
            return {}
        num = next(iter(self._rows.values())).num
        if num == 0:
            raise UsageError("there are no samples yet. Call update first.")
        label = torch.cat(self._labels) if self._labels else None
        if label is not None and len(label) != num:
            raise UsageError(f"{len(label)} labels came with {num} images: give one each, or none at all.")
        scores: dict[str, float] = {}
        for i, metric in enumerate(self.metrics.values()):
            name = type(metric).__name__
            self.on_progress("metrics", i, len(self.metrics), name)
            extractor = self._extractor(metric)
            rows = self._rows[extractor.name]
            tap = tap_of(metric, extractor)
            sides = rows.features(tap, label), self._reference_side(metric, extractor, tap)
            values = jackknife(metric, *sides) if self.error_bars else metric(*sides)
            suffix = extractor.name.partition("@")[2] if extractor is self.inception else ""
            marked = {key: f"{key}@{suffix}" if suffix and suffix not in key else key for key in values}
            scores |= {marked[key]: float(value) for key, value in values.items()}
        self.on_progress("metrics", len(self.metrics), len(self.metrics), "")
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
        for key in self._kept_for.pop("samples", []):
            if self.cache is not None:
                self.cache.forget(key)

    def reset(self) -> None:
        """Forget the samples, keep the reference: ready for the next set."""
        self._rows = {name: FeatureRows(*pair) for name, pair in self._wanted(self.metrics.values()).items()}
        self._labels: list[Tensor] = []

    def prepare_reference(self) -> None:
        """Extract the reference's features, once; `compute` does it when it was not done before."""
        needing = [m for m in self.metrics.values() if self._needs_images(m)]
        wanted = {n: pair for n, pair in self._wanted(needing).items() if n not in self.reference.rows}
        if wanted:
            rows = {name: FeatureRows(*pair) for name, pair in wanted.items()}
            source = self.reference.images()
            self._pass(source, list(rows.values()), source.num, "reference")
            self.reference.rows |= rows

    def uses_reference_images(self) -> bool:
        """Whether a metric compares with the reference's images themselves, not with statistics that it stores."""
        return any(self._needs_images(metric) for metric in self.metrics.values())

    def conditions(self) -> dict[str, Any]:
        """What the scores depend on, but for the samples: reference, extractors, options of the metrics."""
        extractors = {self._extractor(m).name: self._extractor(m) for m in self.metrics.values()}
        return {
            "reference": self.reference.conditions(),
            "extractors": {name: dict(e.conditions) for name, e in extractors.items()},
            "metrics": {name: metric_options(metric) for name, metric in self.metrics.items()},
            "batch_size": self.batch_size,
        }

    def _pass(self, source: ImageSource, rows: Sequence[FeatureRows], num: int, what: str) -> None:
        """One pass over this process's share of the images, for all extractors; process 0 then has all rows."""
        share = self.world.share(num, self.batch_size)
        block = -(-BLOCK // self.batch_size) * self.batch_size
        for start in range(share.start, share.stop, block):
            stop = min(start + block, share.stop)
            keys = [self._key(some, source, start, stop) for some in rows]
            kept = [None if self.cache is None else self.cache.get(key) for key in keys]
            if any(found is None for found in kept):
                kept = list(self._extract(source, rows, range(start, stop), share, what))
            else:
                self.on_progress(what, stop - share.start, len(share), "images")
            for some, key, found in zip(rows, keys, kept, strict=True):
                assert found is not None
                some.add(found)
                if self.cache is not None:
                    self.cache.put(key, found)
                    self._kept_for[what] = [*self._kept_for.get(what, []), key]
        counts = [len(part) for part in self.world.shares(num, self.batch_size)]
        for some in rows:
            some.gather(self.world, counts)

    def _extract(
        self, source: ImageSource, rows: Sequence[FeatureRows], block: range, share: range, what: str
    ) -> Iterator[dict[str, Tensor]]:
        parts = [FeatureRows(some.extractor, some.taps) for some in rows]
        for images in source.batches(self.batch_size, block.start, block.stop):
            for part in parts:
                part.add(part.extract(images))
            self.on_progress(what, block.start - share.start + parts[0].num, len(share), "images")
        for part in parts:
            yield {tap: part.values(tap) for tap in part.taps}

    def _key(self, rows: FeatureRows, source: ImageSource, start: int, stop: int) -> dict[str, Any]:
        """Everything that a block of features depends on, as far as the same bits are wanted again."""
        return {
            "extractor": rows.extractor.name,
            "conditions": dict(rows.extractor.conditions),
            "taps": sorted(rows.taps),
            "source": source.sha256,
            "images": [start, stop, self.batch_size],
            "versions": [version(), torch.__version__],
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

    def _stored(self, metric: Metric) -> bool:
        """Whether the reference file holds the statistics that this metric needs."""
        extractor = self._extractor(metric)
        names = STORED.get(tap_of(metric, extractor), ("",))
        return metric.accepts_statistics and extractor is self.inception and self.reference.stores(names)

    def _needs_images(self, metric: Metric) -> bool:
        return metric.needs_reference and not self._stored(metric)

    def _reference_side(self, metric: Metric, extractor: Extractor, tap: str) -> Features | Statistics | None:
        if not metric.needs_reference:
            return None
        if self._stored(metric):
            return self.reference.statistics(STORED[tap], f"{extractor.name}.{tap}")
        return self.reference.rows[extractor.name].features(tap, self.reference.label())

    def _leave_out_what_the_reference_cannot_serve(self, asked: Sequence[str | Metric]) -> None:
        """A file of statistics alone has no images: the default metrics that need some are left out, with a note."""
        if self.reference.has_images():
            return
        lacking = [name for name, metric in self.metrics.items() if self._needs_images(metric)]
        if not set(lacking) <= set(DEFAULT_METRICS) or len(lacking) == len(self.metrics):
            raise DataError(
                f"{self.reference.name} holds statistics and no images, which {', '.join(lacking)} need. "
                "Give a reference with images."
            )
        for name in lacking:
            del self.metrics[name]
        if lacking:
            self.notes.append(f"{self.reference.name} holds statistics and no images: {', '.join(lacking)} left out")


def _inception(
    weights: str | Path | None, allow_other: bool, precision: str, compile: bool, device: str | torch.device
) -> Extractor:
    build = lookup.find("metrics.extractors", "inception")
    extractor: Extractor = build(weights, allow_other, precision=precision, compile=compile, device=device)
    return extractor
