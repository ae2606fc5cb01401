"""Density and coverage against a plain loop over the definition, and where they are known."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.density_coverage import DensityCoverage
from adm.runtime.errors import UsageError


def features(values: np.ndarray) -> Features:
    return Features(torch.from_numpy(np.asarray(values, float)), "test")


def normal(seed: int, n: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((n, 5)) * spread + shift


def by_definition(sample: np.ndarray, reference: np.ndarray, k: int) -> dict[str, float]:
    within = np.linalg.norm(reference[:, None] - reference[None], axis=2)
    radius = np.sort(within, axis=1)[:, k]  # the first is the point itself
    inside = np.linalg.norm(sample[:, None] - reference[None], axis=2) < radius
    return {"density": pytest.approx(inside.sum() / (k * len(sample)), rel=1e-14), "coverage": inside.any(0).mean()}


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("shift, spread", [(0.0, 1.0), (0.8, 1.0), (0.0, 0.4)])
@pytest.mark.parametrize("tile", [17, 1024])
def test_both_numbers_are_those_of_the_definition(k, shift, spread, tile):
    sample, reference = normal(1, 90, shift, spread), normal(2, 70)
    assert DensityCoverage(k, tile)(features(sample), features(reference)) == by_definition(sample, reference, k)


def test_the_rim_is_outside():
    reference = np.array([[0.0], [1.0], [2.0]])  # with k = 1 every ball has the radius 1
    inside, rim = (DensityCoverage(1)(features([[x], [50.0], [60.0]]), features(reference)) for x in (-0.99, -1.0))
    assert inside == {"density": pytest.approx(1 / 3), "coverage": pytest.approx(1 / 3)}
    assert rim == {"density": 0.0, "coverage": 0.0}


def test_the_same_distribution_has_density_one_and_coverage_as_the_paper_derives():
    # E coverage = 1 - (N - 1) ... (N - k) / ((2 N - 1) ... (2 N - k)) for as many samples as references.
    n, k = 1000, 5
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    found = [DensityCoverage()(features(normal(2 * i, n)), features(normal(2 * i + 1, n))) for i in range(4)]
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(expected, abs=0.01)
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.03)


def test_a_collapsed_set_is_dense_and_covers_little_and_copies_have_no_inside():
    scores = DensityCoverage()(features(normal(1, 80, spread=0.01)), features(normal(2, 80)))
    assert scores["density"] > 1.5 and scores["coverage"] < 0.3
    same = features(np.ones((30, 3)))
    assert DensityCoverage()(same, same) == {"density": 0.0, "coverage": 0.0}


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match="5 images have no 5 neighbours"):
        DensityCoverage()(features(normal(1, 80)), features(normal(2, 5)))
