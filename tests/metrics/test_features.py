"""Moments are those of numpy, whichever way the rows arrive; unlike things are not compared."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features, Statistics, pixel_features, require_same_extractor
from adm.runtime.errors import UsageError


def rows(n: int, dim: int = 7, offset: float = 100.0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(n).standard_normal((n, dim)) + offset)


def test_statistics_are_numpys_mean_and_unbiased_covariance():
    x = rows(50)
    statistics = Features(x.float(), "test").statistics()
    expected = x.float().double().numpy()
    assert statistics.mean.dtype == statistics.cov.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean.numpy(), expected.mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.cov.numpy(), np.cov(expected, rowvar=False), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("sizes", [[1] * 40, [13, 1, 26], [40], [39, 0, 1]])
def test_merged_blocks_equal_all_rows_at_once(sizes):
    x = rows(40)
    streamed = Statistics.stream(x.split(sizes), "test")
    assert streamed.n == 40
    np.testing.assert_allclose(streamed.mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.cov.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12, atol=1e-12)


def test_an_offset_of_a_million_costs_no_digits_of_the_covariance():
    x = rows(500, offset=0.0)
    cov = Statistics.stream((x + 1e6).split(37), "test").cov
    np.testing.assert_allclose(cov.numpy(), np.cov(x.numpy(), rowvar=False), atol=1e-8)


@pytest.mark.parametrize(
    "values, match",
    [
        (torch.zeros(0, 3), "at least one row"),
        (torch.zeros(3), "floating"),
        (torch.zeros(2, 2, dtype=torch.int64), "floating"),
        (torch.tensor([[1.0, float("nan")]]), "NaN"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(values, match):
    with pytest.raises(UsageError, match=match):
        Features(values, "test")


def test_other_extractors_and_other_widths_are_refused():
    a = Features(rows(5), "inception")
    with pytest.raises(UsageError, match="'inception' and 'pixels'"):
        require_same_extractor(a, Features(rows(5), "pixels"))
    with pytest.raises(UsageError, match="7 and 3 columns"):
        require_same_extractor(a, Features(rows(5, 3), "inception").statistics())


def test_pixel_features_are_the_grey_levels():
    images = np.random.RandomState(0).randint(0, 256, (4, 3, 5, 2), dtype=np.uint8)
    features = pixel_features(images)
    assert np.array_equal(features.values.numpy(), images.reshape(4, -1)) and features.extractor == "pixels"
    with pytest.raises(UsageError, match="uint8"):
        pixel_features(images.astype(np.float32))


def test_there_is_one_label_a_row():
    with pytest.raises(UsageError, match="one each"):
        Features(rows(5), "test", label=torch.zeros(4, dtype=torch.int64))
