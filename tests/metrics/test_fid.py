"""FID, sFID and FID-infinity: the recorded value, what must change them, and the limit that is extrapolated."""

import numpy as np
import pytest
import scipy.linalg
import torch

from adm.metrics._features import Features, Statistics
from adm.metrics.fid import FID
from adm.metrics.fid_infinity import FIDInfinity
from adm.metrics.sfid import SpatialFID
from adm.runtime.errors import UsageError
from evaluator_recipes import RECORDED, recorded_features


def normal(seed: int, n: int, dim: int = 6, scale: float = 1.0, shift: float = 0.0) -> Features:
    x = np.random.RandomState(seed).standard_normal((n, dim)) * scale + shift
    return Features(torch.from_numpy(x), "test")


def standard(dim: int = 6) -> Statistics:
    return Statistics(torch.zeros(dim).double(), torch.eye(dim).double(), None, "test")


@pytest.mark.slow
def test_the_recorded_value_of_the_released_evaluator_in_2048_dimensions():
    record = RECORDED["frechet_2048"]
    a, b = recorded_features(record["a"]), recorded_features(record["b"])
    assert FID()(a, b)["fid"] == pytest.approx(record["value"], rel=1e-4)
    assert FID()(a.statistics(), b)["fid"] == FID()(a, b)["fid"]


def test_the_recorded_value_where_the_rank_is_lacking():
    record = RECORDED["frechet_rank_deficient"]
    found = FID()(recorded_features(record["a"]), recorded_features(record["b"]))
    assert found["fid"] == pytest.approx(record["value"], rel=1e-6)


@pytest.mark.parametrize("metric", [FID(), SpatialFID()])
def test_a_column_exchanged_on_one_side_is_seen(metric):
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((200, 6)) * np.arange(1, 7))
    ordered, exchanged = Features(x, "test"), Features(x[:, [1, 0, 2, 3, 4, 5]], "test")
    assert list(metric(ordered, ordered).values()) == [pytest.approx(0, abs=1e-10)]
    a, b = np.cov(exchanged.values.numpy(), rowvar=False), np.cov(x.numpy(), rowvar=False)
    shift = (exchanged.values - x).mean(0).numpy()
    expected = shift @ shift + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert expected > 1 and list(metric(exchanged, ordered).values()) == [pytest.approx(expected, rel=1e-10)]


def test_the_two_read_different_taps():
    assert (FID.tap, SpatialFID.tap, FIDInfinity.tap) == ("pool", "spatial", "pool")
    assert all(m.accepts_statistics and m.extractor is None for m in (FID, SpatialFID, FIDInfinity))


def test_statistics_that_a_file_stores_without_a_number_serve():
    assert FID()(normal(0, 50, shift=3.0), standard())["fid"] == pytest.approx(54, rel=0.1)


@pytest.mark.parametrize("scale, limit", [(1.0, 0.0), (1.2, 20 * 0.2**2)])
def test_infinity_removes_the_bias_that_few_samples_have(scale, limit):
    # The reference is the standard normal in 20 dimensions; the samples are normal with standard deviation ``scale``.
    sets = [normal(i, 1000, 20, scale) for i in range(10)]
    few = [FID()(Features(s.values[:150], "test"), standard(20))["fid"] - limit for s in sets]
    extrapolated = [FIDInfinity(smallest=150)(s, standard(20))["fid_infinity"] - limit for s in sets]
    assert np.mean(few) > 0.5
    assert abs(np.mean(extrapolated)) < 0.1 * np.mean(few)


def test_a_straight_line_in_one_over_n_is_read_at_its_end(monkeypatch):
    from adm.metrics import fid_infinity

    monkeypatch.setattr(fid_infinity, "frechet_distance", lambda a, b: 3.5 + 20 / a.n)
    assert FIDInfinity(smallest=10)(normal(0, 100), standard())["fid_infinity"] == pytest.approx(3.5, rel=1e-12)


def test_infinity_is_a_function_of_the_seed_and_needs_the_samples_themselves():
    sample = normal(0, 60)
    first, again, other = (FIDInfinity(smallest=10, seed=s)(sample, standard()) for s in (0, 0, 1))
    assert first == again != other
    for side in (sample.statistics(), normal(0, 3)):
        with pytest.raises(UsageError, match="at least 4"):
            FIDInfinity()(side, standard())
