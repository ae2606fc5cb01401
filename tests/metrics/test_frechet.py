"""The Frechet distance against closed forms, scipy's matrix root and values of OpenAI's evaluator."""

import numpy as np
import pytest
import scipy.linalg
import torch

from adm.metrics._features import Features, Statistics
from adm.metrics._frechet import frechet_distance, trace_of_root
from adm.metrics.frechet import FrechetDistance
from adm.runtime.errors import DataError, UsageError


def gaussian(mean: np.ndarray, cov: np.ndarray, extractor: str = "test") -> Statistics:
    return Statistics(
        torch.from_numpy(np.asarray(mean, float)), torch.from_numpy(np.asarray(cov, float)), 1000, extractor
    )


def random_covariance(seed: int, dim: int) -> np.ndarray:
    root = np.random.RandomState(seed).standard_normal((dim, dim + 5))
    return root @ root.T / dim


def recorded_features(seed: int, n: int, dim: int, shift: float = 0.0) -> Features:
    """The recipe of the recorded evaluator runs: rectified mixtures of 96 normals."""
    mix = np.random.RandomState(7).standard_normal((96, dim)) / 9.8
    z = np.random.RandomState(seed).standard_normal((n, 96)) + shift
    return Features(torch.from_numpy(np.maximum(z @ mix - 0.35, 0.0).astype(np.float32)), "recorded")


def test_one_dimension():
    # (mu_a - mu_b)^2 + (sigma_a - sigma_b)^2
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([4.0], [[0.25]])) == pytest.approx(9 + 1.5**2, rel=1e-14)


def test_commuting_covariances():
    basis = scipy.linalg.qr(np.random.RandomState(0).standard_normal((6, 6)))[0]
    a, b = np.array([9.0, 4, 1, 0.25, 0, 2]), np.array([1.0, 4, 0, 16, 0, 3])
    distance = frechet_distance(gaussian(np.ones(6), basis * a @ basis.T), gaussian(np.zeros(6), basis * b @ basis.T))
    assert distance == pytest.approx(6 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-12)


def test_covariances_that_do_not_commute_agree_with_scipys_matrix_root():
    a, b = random_covariance(1, 20), random_covariance(2, 20)
    assert np.abs(a @ b - b @ a).max() > 0.1
    expected = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(gaussian(np.zeros(20), a), gaussian(np.zeros(20), b)) == pytest.approx(expected, rel=1e-11)


def test_two_dimensions_in_closed_form():
    # tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2.
    a, b = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 5.0 + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance(gaussian([1, 2], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-13)


def test_rank_deficient_sets_match_the_recorded_value():
    # OpenAI's evaluator with scipy's root, whose own rounding at lacking rank is about 1e-9 relative.
    a, b = recorded_features(13, 100, 300), recorded_features(14, 90, 300)
    assert FrechetDistance()(a, b) == {"fd_recorded": pytest.approx(51.41160286715177, rel=1e-7)}


@pytest.mark.parametrize("n", [100, 1000])
def test_a_set_is_at_distance_zero_from_itself_also_without_full_rank(n):
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((n, 300))) * 10
    statistics = Features(x, "test").statistics()
    assert frechet_distance(statistics, statistics) <= 1e-11 * float(statistics.cov.trace())


def ill_conditioned(seed: int, dim: int, smallest: float) -> np.ndarray:
    """Eigenvalues from 1 down to ``smallest`` about a random basis."""
    basis = scipy.linalg.qr(np.random.RandomState(seed).standard_normal((dim, dim)))[0]
    return basis * np.geomspace(1, smallest, dim) @ basis.T


@pytest.mark.parametrize("smallest", [1e-2, 1e-6, 1e-10, 1e-14])
def test_both_routes_to_the_trace_agree(smallest):
    # Singular values, which tolerance 0 takes, lose nothing; roots of eigenvalues are taken where they lose little.
    a, b = (torch.from_numpy(ill_conditioned(seed, 60, smallest)) for seed in (1, 2))
    assert float(trace_of_root(a, b)) == pytest.approx(float(trace_of_root(a, b, tolerance=0)), rel=2e-9)


@pytest.mark.parametrize("smallest", [1e-2, 1e-6, 1e-10, 1e-14])
def test_the_trace_is_that_of_exact_roots_whatever_the_condition(smallest):
    # A = Q diag(d) Q^T and B = Q diag(e) Q^T commute: the trace is sum sqrt(d e).
    basis = scipy.linalg.qr(np.random.RandomState(3).standard_normal((60, 60)))[0]
    d, e = np.geomspace(1, smallest, 60), np.geomspace(2, smallest * 3, 60)[::-1]
    a, b = (torch.from_numpy(basis * x @ basis.T) for x in (d, e))
    assert float(trace_of_root(a, b)) == pytest.approx(np.sqrt(d * e).sum(), abs=1e-9 * (d + e).sum())
    assert float(trace_of_root(a, a)) == pytest.approx(d.sum(), rel=1e-8)


@pytest.mark.parametrize("full", [(True, False), (False, True), (False, False)])
def test_lacking_rank_on_either_side_agrees_with_the_closed_form(full):
    # u u^T against the identity or v v^T: tr (u u^T)^(1/2) = |u|, and tr (u u^T v v^T)^(1/2) = |u.v|.
    u, v = np.random.RandomState(5).standard_normal((2, 300))
    matrix = {True: lambda x: np.eye(300), False: lambda x: np.outer(x, x)}
    expected = abs(u @ v) if full == (False, False) else np.linalg.norm(v if full[0] else u)
    a, b = (torch.from_numpy(matrix[f](x)) for f, x in zip(full, (u, v), strict=True))
    assert float(trace_of_root(a, b)) == pytest.approx(expected, rel=1e-12)


def test_a_matrix_with_negative_variances_is_no_covariance():
    with pytest.raises(DataError, match="negative variances"):
        frechet_distance(gaussian([0, 0], [[1.0, 2.0], [2.0, 1.0]]), gaussian([0, 0], np.eye(2)))
    rounded = np.diag([1.0, 1e-9]) + np.diag([0, -2e-9])
    assert frechet_distance(gaussian([0, 0], rounded), gaussian([0, 0], np.eye(2))) == pytest.approx(1, abs=1e-6)


def test_a_rotation_within_lacking_rank_is_seen_exactly():
    # Two orthogonal lines in 300 dimensions: nothing is shared, the distance is the sum of the variances.
    a, b = np.zeros((300, 300)), np.zeros((300, 300))
    a[0, 0], b[1, 1] = 9.0, 4.0
    assert frechet_distance(gaussian(np.zeros(300), a), gaussian(np.zeros(300), b)) == pytest.approx(13, rel=1e-14)


def test_moving_both_sides_changes_nothing_and_moving_one_adds_the_square():
    a, b = recorded_features(1, 60, 20).values.double(), recorded_features(2, 70, 20).values.double()
    metric = FrechetDistance()
    near = metric(Features(a, "t"), Features(b, "t"))["fd_t"]
    assert metric(Features(a + 1e3, "t"), Features(b + 1e3, "t"))["fd_t"] == pytest.approx(near, rel=1e-8)
    assert metric(Features(b + 3, "t"), Features(b, "t"))["fd_t"] == pytest.approx(9 * 20, rel=1e-12)


def test_the_order_of_the_sides_does_not_matter():
    a, b = gaussian(np.zeros(20), random_covariance(1, 20)), gaussian(np.ones(20), random_covariance(2, 20))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-13)


def test_statistics_serve_as_well_as_features():
    a, b = recorded_features(1, 60, 20), recorded_features(2, 70, 20)
    assert FrechetDistance()(a.statistics(), b) == FrechetDistance()(a, b.statistics()) == FrechetDistance()(a, b)


def test_one_image_and_other_extractors_are_refused():
    one = recorded_features(1, 1, 20)
    with pytest.raises(UsageError, match="at least 2"):
        FrechetDistance()(one, recorded_features(2, 70, 20))
    with pytest.raises(UsageError, match="same one"):
        frechet_distance(gaussian([0.0], [[1.0]]), gaussian([0.0], [[1.0]], "other"))


@pytest.mark.parametrize("n", [2, 50])
def test_a_set_without_variance_is_a_point(n: int) -> None:
    """|mu - p|^2 + tr B, whichever side the point is on."""
    rows = np.random.default_rng(0).standard_normal((200, 5))
    point = Features(torch.full((n, 5), 3.0, dtype=torch.float64), "f").statistics()
    cloud = Features(torch.from_numpy(rows), "f").statistics()
    expected = ((rows.mean(0) - 3) ** 2).sum() + np.cov(rows, rowvar=False).trace()
    assert frechet_distance(point, cloud) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(cloud, point) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(point, point) == 0
