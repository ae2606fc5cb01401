"""Metrics by the words of a command line, and back."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from adm.metrics._extractor import Extractor
from adm.metrics._features import Metric
from adm.runtime import lookup
from adm.runtime.text import one_line

__all__ = ["build_metric", "metric_options", "tap_of"]


def build_metric(spec: str, device: str | torch.device = "cpu") -> Metric:
    """The metric that a command line names, such as `kid` or `frechet:extractor=(dinov2:weights=vitl14.pth)`."""

    def extractor(annotation: Any, text: str) -> object:
        return lookup.build("metrics.extractors", text, given={"device": device})

    metric: Metric = lookup.build("metrics", spec, extractor)
    return metric


def tap_of(metric: Metric, extractor: Extractor) -> str:
    """Which of the extractor's outputs the metric reads: the one of its name, else the first."""
    return metric.tap if metric.tap in extractor.taps else extractor.taps[0]


def metric_options(metric: Metric) -> dict[str, Any]:
    """The metric's constructor arguments as they are, those that JSON can say."""
    names = inspect.signature(type(metric)).parameters
    values = {name: getattr(metric, name, None) for name in names}
    plain = {k: v for k, v in values.items() if v is None or isinstance(v, str | int | float | bool)}
    return plain | {name: one_line(v.name) for name, v in values.items() if v is not None and hasattr(v, "taps")}
