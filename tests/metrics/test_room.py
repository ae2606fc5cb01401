"""What every metric file of the room owes, whichever files are there."""

import math

import pytest
import torch

from adm.metrics._features import Features
from adm.runtime import lookup

FILES = lookup.available("metrics")


def features(seed: int, n: int = 30) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    return Features(
        torch.randn(n, 6, generator=generator).abs(), "test", label=label, predicted=(label + (seed == 1)) % 3
    )


BEST = {"precision": 1.0, "recall": 1.0, "label_accuracy": 1.0, "nearest_train_copies": 1.0}


@pytest.mark.parametrize("name", FILES)
def test_a_set_against_itself_scores_the_best_value(name):
    for key, value in lookup.find("metrics", name)()(features(0), features(0)).items():
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
    assert scores and all(isinstance(v, float) and math.isfinite(v) for v in scores.values())
    assert again == pytest.approx(scores, rel=1e-12)
