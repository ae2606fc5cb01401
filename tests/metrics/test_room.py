"""What every metric file of the room owes, whichever files are there."""

import dataclasses
import inspect
import math

import pytest
import torch

from adm.metrics._features import Features
from adm.runtime import lookup
from adm.runtime.errors import UsageError

FILES = lookup.available("metrics")


def features(seed: int, n: int = 30) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    return Features(
        torch.randn(n, 6, generator=generator).abs(), "test", label=label, predicted=(label + (seed == 1)) % 3
    )


BEST = {
    "precision": 1.0,
    "recall": 1.0,
    "label_accuracy": 1.0,
    "nearest_train_copies": 1.0,
    "coverage": 1.0,
}
NO_BEST = {"inception_score", "density", "kid", "kid_std", "fid_infinity"}
"""Those that have no one value for a set against itself; their own files say what they are then."""


@pytest.mark.parametrize("name", FILES)
def test_a_set_against_itself_scores_the_best_value(name):
    for key, value in lookup.find("metrics", name)()(features(0), features(0)).items():
        if key in NO_BEST:
            continue
        assert value == pytest.approx(BEST.get(key, 0.0), abs=1e-9), key


@pytest.mark.parametrize("name", FILES)
def test_scores_are_finite_floats_that_the_order_of_the_rows_does_not_change(name):
    sample, reference = features(1), features(2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = Features(sample.values[order], "test", sample.label[order], sample.predicted[order])
    scores, again = (
        lookup.find("metrics", name)()(sample, reference),
        lookup.find("metrics", name)()(mixed, reference),
    )
    if name == "fid_infinity":  # which rows its subsets are is a matter of the order
        return
    assert scores and all(isinstance(v, float) and math.isfinite(v) for v in scores.values())
    assert again == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_it_reads(name):
    metric = lookup.find("metrics", name)()
    assert metric.tap in ("pool", "spatial", "logits", "features")
    assert metric.extractor is None or metric.extractor.taps
    assert isinstance(metric.accepts_statistics, bool) and isinstance(metric.needs_reference, bool)


@pytest.mark.parametrize("name", FILES)
def test_statistics_of_the_reference_serve_as_well_where_they_are_accepted(name):
    metric, sample, reference = lookup.find("metrics", name)(), features(1), features(2)
    if metric.accepts_statistics:
        stored = dataclasses.replace(reference.statistics(), n=None)
        assert metric(sample, stored) == pytest.approx(metric(sample, reference), rel=1e-12)
    if not metric.needs_reference:
        assert metric(sample, None) == metric(sample, reference)


@pytest.mark.parametrize("name", FILES)
def test_features_of_another_extractor_are_refused(name):
    metric, sample = lookup.find("metrics", name)(), features(1)
    if metric.needs_reference:
        with pytest.raises(UsageError, match="same one"):
            metric(sample, dataclasses.replace(features(2), extractor="other"))


@pytest.mark.parametrize("name", FILES)
def test_integers_that_look_like_options_are_checked(name):
    component = lookup.find("metrics", name)
    for option in ("k", "tile", "split_size", "num_subsets", "subset_size", "num_points", "smallest"):
        if option in inspect.signature(component).parameters:
            with pytest.raises(UsageError, match=option):
                lookup.build("metrics", f"{name}:{option}=0")


@pytest.mark.parametrize("name", FILES)
def test_the_sides_are_not_changed(name):
    sample, reference = features(1), features(2)
    before = sample.values.clone(), reference.values.clone()
    lookup.find("metrics", name)()(sample, reference)
    assert torch.equal(sample.values, before[0]) and torch.equal(reference.values, before[1])
