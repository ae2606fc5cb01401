"""KID against the definition in plain loops, and its expectation where that is known."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.kid import KID
from adm.runtime.errors import UsageError


def features(values: np.ndarray) -> Features:
    return Features(torch.from_numpy(values), "test")


def normal(seed: int, n: int, dim: int = 4, shift: float = 0.0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((n, dim)) + shift


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(u, v):
        return (u @ v / len(u) + 1) ** 3

    within = [np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    return within[0] + within[1] - 2 * np.mean([[kernel(u, v) for v in y] for u in x])


def test_of_whole_sets_it_is_the_definition():
    x, y = normal(1, 25, shift=0.5), normal(2, 40)
    scores = KID()(features(x), features(y))
    assert scores == {"kid": pytest.approx(by_definition(x, y), rel=1e-12)}


def test_subsets_are_without_replacement_and_their_mean_and_spread_are_told():
    # With subsets of 24 out of 25, each leaves out one row: all 25 x 1 possible values are known.
    x, y = normal(1, 25, shift=0.5), normal(2, 24)
    possible = [by_definition(np.delete(x, i, 0), y) for i in range(25)]
    scores = KID(num_subsets=400, subset_size=24)(features(x), features(y))
    assert scores["kid"] == pytest.approx(np.mean(possible), abs=5 * np.std(possible) / 20)
    assert scores["kid_std"] == pytest.approx(np.std(possible), rel=0.15)


def test_it_is_a_function_of_the_seed():
    sides = features(normal(1, 60)), features(normal(2, 60))
    first, again, other = (KID(num_subsets=5, subset_size=20, seed=seed)(*sides) for seed in (0, 0, 1))
    assert first == again and first["kid"] != other["kid"]


def test_its_expectation_is_the_known_one_whatever_the_number_of_images():
    # One dimension, N(m, 1) against N(0, 1): k = (xy + 1)^3, E (xy)^3 + 3 E (xy)^2 + 3 E xy + 1 in moments.
    m = 0.8
    moments = {1: (m, 0), 2: (m**2 + 1, 1), 3: (m**3 + 3 * m, 0)}
    expected = sum(c * (moments[p][0] - moments[p][1]) ** 2 for p, c in ((1, 3), (2, 3), (3, 1)))
    for n in (10, 100):
        found = [KID()(features(normal(2 * i, n, 1, m)), features(normal(2 * i + 1, n, 1)))["kid"] for i in range(600)]
        assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / 600**0.5)


def test_single_images_are_refused():
    with pytest.raises(UsageError, match="at least 2"):
        KID()(features(normal(1, 1)), features(normal(2, 5)))
    with pytest.raises(UsageError, match="at least 1 and 2"):
        KID(subset_size=1)
