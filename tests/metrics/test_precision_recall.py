"""Precision and recall against a plain loop over the definition, and on sets whose answer is known."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.precision_recall import PrecisionRecall
from adm.runtime.errors import UsageError


def features(values: np.ndarray) -> Features:
    return Features(torch.from_numpy(np.asarray(values)), "test")


def normal(seed: int, n: int, dim: int = 5, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((n, dim)) * spread + shift


def coverage(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """The share of points within any ball of the manifold, by the definition."""
    radii = [sorted(np.linalg.norm(np.delete(manifold, i, 0) - m, axis=1))[k - 1] for i, m in enumerate(manifold)]
    return float(
        np.mean([any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points])
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift, spread", [(0.0, 1.0), (0.8, 1.0), (0.0, 0.4)])
def test_both_numbers_are_those_of_the_definition(k, shift, spread):
    sample, reference = normal(1, 90, shift=shift, spread=spread), normal(2, 70)
    scores = PrecisionRecall(k)(features(sample), features(reference))
    assert scores == {"precision": coverage(sample, reference, k), "recall": coverage(reference, sample, k)}
    assert scores["precision"] > 0 and scores["recall"] < 1


# What OpenAI's evaluator printed for these recipes; its float16 distances lie up to 3e-3 from exact ones.
@pytest.mark.parametrize(
    "seed, shift, spread, precision, recall",
    [(3, 0.15, 1.0, 0.358, 0.3525), (4, 0.0, 0.4, 1.0, 0.0)],
)
def test_the_recorded_values_of_the_released_evaluator(seed, shift, spread, precision, recall):
    mix = np.random.RandomState(7).standard_normal((96, 2048)) / 9.8

    def recipe(seed: int, n: int, shift: float = 0.0, spread: float = 1.0) -> Features:
        z = np.random.RandomState(seed).standard_normal((n, 96)) * spread + shift
        return features(np.maximum(z @ mix - 0.35, 0.0).astype(np.float32))

    scores = PrecisionRecall()(recipe(seed, 2000, shift, spread), recipe(1, 1200))
    assert scores == {
        "precision": pytest.approx(precision, abs=3e-3),
        "recall": pytest.approx(recall, abs=3e-3),
    }


def test_equal_sets_score_one_and_distant_sets_zero():
    a = normal(1, 50)
    assert PrecisionRecall()(features(a), features(a)) == {"precision": 1.0, "recall": 1.0}
    assert PrecisionRecall()(features(a), features(a + 100)) == {"precision": 0.0, "recall": 0.0}


def test_a_collapsed_set_is_precise_and_covers_nothing():
    # This also tells the two numbers apart: swapped, they would read 0 and 1.
    scores = PrecisionRecall()(features(normal(1, 80, spread=0.01)), features(normal(2, 80)))
    assert scores["precision"] == 1.0 and scores["recall"] < 0.05


def test_copies_of_duplicated_points_are_inside_their_balls_of_radius_zero():
    # Without the allowance for rounding about half of them are lost.
    points = normal(3, 60, dim=300) * 1e3 + 0.1
    scores = PrecisionRecall()(features(points), features(np.repeat(points, 4, axis=0)))
    assert scores == {"precision": 1.0, "recall": 1.0}


def test_a_point_on_the_rim_is_inside_and_one_beyond_is_not():
    reference = np.array([[0.0], [1.0], [2.0], [3.0]])
    precision = [
        PrecisionRecall(3)(features([[x], [50.0], [60.0], [70.0]]), features(reference))["precision"]
        for x in (6.0, 6.0 + 1e-9)
    ]
    assert precision == [0.25, 0.0]


@pytest.mark.parametrize("tile", [7, 64, 89, 1000])
def test_tiles_change_nothing_also_among_ties(tile):
    a = np.random.RandomState(0).randint(0, 3, (90, 6)).astype(np.float32) + 0.1
    b = np.random.RandomState(1).randint(0, 3, (70, 6)).astype(np.float32) + 0.1
    assert PrecisionRecall(tile=tile)(features(a), features(b)) == PrecisionRecall()(features(a), features(b))


def test_too_few_images_and_other_extractors_are_refused():
    a = features(normal(1, 4))
    with pytest.raises(UsageError, match="3 images have no 3 neighbours"):
        PrecisionRecall()(features(normal(1, 3)), a)
    with pytest.raises(UsageError, match="same one"):
        PrecisionRecall()(a, Features(a.values, "other"))
    with pytest.raises(UsageError, match="at least 1"):
        PrecisionRecall(k=0)
