"""Neighbours, radii and counts of balls equal a plain search in float64, bit by bit, wherever float32 cannot tell."""

import numpy as np
import pytest
import torch

from adm.metrics._balls import covered, num_balls
from adm.metrics._distances import Pairs, squared_distances
from adm.metrics._neighbours import kth_neighbour, nearest


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def normal(seed: int, n: int, dim: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((n, dim))


def lattice(seed: int, n: int, dim: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 3, (n, dim)).astype(float)


def clusters(seed: int, n: int, dim: int) -> np.ndarray:
    side = np.random.RandomState(seed + 100).choice([-1.0, 1.0], (n, 1))
    return normal(seed, n, dim) * 1e-3 + 50 * side


def outlier(seed: int, n: int, dim: int) -> np.ndarray:
    x = normal(seed, n, dim)
    x[0] = 1e6
    return x


def copies(seed: int, n: int, dim: int) -> np.ndarray:
    return np.repeat(normal(seed, -(-n // 5), dim), 5, axis=0)[:n]


def far_from_zero(seed: int, n: int, dim: int) -> np.ndarray:
    return normal(seed, n, dim) + 1e5


KINDS = [normal, lattice, clusters, outlier, copies, far_from_zero]
each_kind = pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
each_tile = pytest.mark.parametrize("tile", [17, 1024])


def squares(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return ((u[:, None] - v[None]) ** 2).sum(-1)


def others(x: np.ndarray) -> np.ndarray:
    d = squares(x, x)
    np.fill_diagonal(d, np.inf)
    return d


@each_kind
@each_tile
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kth_neighbour_is_that_of_a_plain_search(make, tile, dtype):
    x = make(1, 90, 12).astype(dtype)
    for k in (1, 3, 5):
        expected = np.sort(others(x.astype(np.float64)), axis=1)[:, k - 1]
        np.testing.assert_allclose(kth_neighbour(tensor(x), k, tile).numpy(), expected, rtol=1e-13)


@each_kind
@each_tile
def test_the_nearest_rows_of_another_set_are_those_of_a_plain_search(make, tile):
    a, b = make(1, 60, 12), make(2, 80, 12)
    d = squares(a, b)
    distance, index = nearest(tensor(a), tensor(b), 4, tile)
    np.testing.assert_allclose(distance.numpy(), np.sqrt(np.sort(d, axis=1)[:, :4] / 12), rtol=1e-13)
    np.testing.assert_allclose(np.take_along_axis(d, index.numpy(), 1), np.sort(d, axis=1)[:, :4], rtol=1e-13)


@each_kind
@each_tile
def test_coverage_and_counts_are_those_of_the_definition(make, tile):
    a, b = make(1, 90, 12), make(2, 70, 12)
    radius_a, radius_b = (kth_neighbour(tensor(x), 3) for x in (a, b))
    i, j = np.indices((90, 70)).reshape(2, -1)
    d = squared_distances(tensor(a), tensor(b), tensor(i), tensor(j)).view(90, 70)  # each pair by itself
    np.testing.assert_allclose(d.numpy(), squares(a, b), rtol=1e-13)
    in_b, in_a = covered(tensor(a), tensor(b), radius_a, radius_b, tile)
    assert torch.equal(in_b, (d <= radius_b).any(1)) and torch.equal(in_a, (d <= radius_a[:, None]).any(0))
    assert torch.equal(num_balls(tensor(a), tensor(b), radius_b, tile), (d < radius_b).sum(1))


@pytest.mark.parametrize("make", [normal, clusters, outlier], ids=lambda f: f.__name__)
def test_the_bound_on_float32_products_holds(make):
    a, b = tensor(make(1, 200, 3000).astype(np.float32)), tensor(make(2, 150, 3000).astype(np.float32))
    pairs = Pairs.of(a, b)
    exact = torch.cat([product for _, product in pairs.in_float64(torch.arange(200))])
    for rows, columns, product in pairs.tiles(64):
        error = (product.double() - exact[rows, columns]).abs().amax(1)
        slack = pairs.slack(torch.float32, pairs.norm_a[rows], float(pairs.norm_b.max()))
        assert (error <= slack).all() and slack.max() < 2e-3


def test_a_pair_is_summed_alike_alone_and_in_company():
    a, b = tensor(normal(1, 40, 70_000)), tensor(normal(2, 40, 70_000))
    i = torch.arange(40)
    together = squared_distances(a, b, i, i)
    assert all(torch.equal(squared_distances(a, b, i[n : n + 1], i[n : n + 1])[0], together[n]) for n in range(40))


def test_settings_for_faster_products_do_not_reach_the_decisions(monkeypatch):
    a = tensor(clusters(1, 300, 256).astype(np.float32))
    expected, seen, product = kth_neighbour(a, 3, 64), set(), Pairs.product

    def watched(pairs, rows, columns):
        seen.add(torch.get_float32_matmul_precision())
        return product(pairs, rows, columns)

    monkeypatch.setattr(Pairs, "product", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(kth_neighbour(a, 3, 64), expected)
        assert seen == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
