"""Precision and recall against a plain loop over the definition, and on sets whose answer is known.

In float16 against what OpenAI's evaluator printed and an emulation of it in numpy: see test_half_distances.
"""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.precision_recall import PrecisionRecall
from adm.runtime.errors import UsageError

BOTH = pytest.mark.parametrize("precision", ["fp16", "fp32"])
EXACT = PrecisionRecall(precision="fp32")


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
    scores = PrecisionRecall(k, precision="fp32")(features(sample), features(reference))
    assert scores == {"precision": coverage(sample, reference, k), "recall": coverage(reference, sample, k)}
    assert scores["precision"] > 0 and scores["recall"] < 1


@BOTH
def test_equal_sets_score_one_and_distant_sets_zero(precision):
    a = normal(1, 50)
    metric = PrecisionRecall(precision=precision)
    assert metric(features(a), features(a)) == {"precision": 1.0, "recall": 1.0}
    assert metric(features(a), features(a + 100)) == {"precision": 0.0, "recall": 0.0}


@BOTH
def test_a_collapsed_set_is_precise_and_covers_nothing(precision):
    # This also tells the two numbers apart: swapped, they would read 0 and 1.
    scores = PrecisionRecall(precision=precision)(features(normal(1, 80, spread=0.01)), features(normal(2, 80)))
    assert scores["precision"] == 1.0 and scores["recall"] < 0.05


def test_copies_of_duplicated_points_are_inside_their_balls_of_radius_zero():
    # By distances in float32 or float64 from a matrix product about half of them are lost.
    points = normal(3, 60, dim=300) * 1e3 + 0.1
    scores = EXACT(features(points), features(np.repeat(points, 4, axis=0)))
    assert scores == {"precision": 1.0, "recall": 1.0}


def test_a_point_on_the_rim_is_inside_and_one_beyond_is_not():
    reference = np.array([[0.0], [1.0], [2.0], [3.0]])
    precision = [
        EXACT(features([[x], [50.0], [60.0], [70.0]]), features(reference))["precision"] for x in (6.0, 6.0 + 1e-9)
    ]
    assert precision == [0.25, 0.0]


@BOTH
@pytest.mark.parametrize("tile", [7, 64, 89, 1000])
def test_tiles_change_nothing_also_among_ties(tile, precision):
    a = np.random.RandomState(0).randint(0, 3, (90, 6)).astype(np.float32) + 0.1
    b = np.random.RandomState(1).randint(0, 3, (70, 6)).astype(np.float32) + 0.1
    whole, tiled = (PrecisionRecall(precision=precision, tile=t)(features(a), features(b)) for t in (4096, tile))
    assert tiled == whole


def test_fp32_decides_as_float64_where_float32_itself_does_not():
    # Two tight clusters far apart: about each, float32 products have no digits left.
    side = np.random.RandomState(0).choice([-1.0, 1.0], (2, 200, 1)) * 30
    a, b = normal(1, 200, 40, spread=1e-2) + side[0], normal(2, 200, 40, spread=1e-2) + side[1]

    def by_products(dtype):
        def squares(u, v):
            u, v = u.astype(dtype), v.astype(dtype)
            return (u * u).sum(1)[:, None] - 2 * (u @ v.T) + (v * v).sum(1)

        radius = np.sort(squares(b, b), axis=1)[:, 3]
        return (squares(a, b) <= radius).any(1).mean()

    assert abs(by_products(np.float32) - coverage(a, b, 3)) > 0.1  # the twin
    assert EXACT(features(a), features(b)) == {"precision": coverage(a, b, 3), "recall": coverage(b, a, 3)}


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_the_scale_of_the_features_does_not_matter_in_fp32(scale):
    a, b = normal(1, 90).astype(np.float32), normal(2, 70).astype(np.float32)
    scale = np.float32(2.0 ** round(np.log2(scale)))
    assert EXACT(features(a * scale), features(b * scale)) == EXACT(features(a), features(b))


@BOTH
def test_identical_images_are_one_point(precision):
    # Every distance within is 0: 400 copies must not take 400 x 400 direct sums for each question.
    same, others = np.repeat(normal(1, 1, 20), 400, axis=0), normal(2, 300, 20)
    metric = PrecisionRecall(precision=precision)
    assert metric(features(same), features(same)) == {"precision": 1.0, "recall": 1.0}
    assert metric(features(same), features(others))["recall"] == 0.0


def test_another_extractor_is_named_in_the_keys():
    class Other:
        name, taps, conditions = "dino", ("features",), {}

    a = features(normal(1, 20))
    assert PrecisionRecall(extractor=Other())(a, a) == {"precision_dino": 1.0, "recall_dino": 1.0}


def test_too_few_images_and_other_extractors_are_refused():
    a = features(normal(1, 4))
    with pytest.raises(UsageError, match="3 images have no 3 neighbours"):
        PrecisionRecall()(features(normal(1, 3)), a)
    with pytest.raises(UsageError, match="same one"):
        PrecisionRecall()(a, Features(a.values, "other"))
    with pytest.raises(UsageError, match="at least 1"):
        PrecisionRecall(k=0)
    with pytest.raises(UsageError, match="fp16, as the original, or fp32"):
        PrecisionRecall(precision="fp8")
