"""Moments are those of numpy, whichever way the rows arrive; unlike things are not compared."""

import subprocess
import sys
from functools import reduce

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


@pytest.mark.parametrize("blocks", [[9000], [5000, 3999, 1], [1500] * 6])
def test_streamed_in_memory_and_sharded_agree_also_far_from_zero(blocks):
    # Multiples of 1/64 up to 2^14: adding the offset rounds nothing, so the covariance is that without it.
    x = np.round(np.random.RandomState(0).standard_normal((9000, 5)) * 64) / 64
    shifted = torch.from_numpy(x + 2.0**14).float()
    expected = np.cov(x, rowvar=False)
    shards = [Statistics.of(part, "test") for part in shifted.split(blocks)]
    sharded = reduce(Statistics.merge, shards)
    for found in (Statistics.of(shifted, "test"), Statistics.stream(shifted.split(blocks), "test"), sharded):
        assert found.n == 9000
        np.testing.assert_allclose(found.cov.numpy(), expected, rtol=0, atol=1e-12 * expected.max())
        np.testing.assert_allclose(found.mean.numpy(), x.mean(0) + 2.0**14, rtol=1e-15)


def test_products_about_zero_would_lose_what_centred_ones_keep():
    x = np.random.RandomState(0).standard_normal((9000, 5)) + 2.0**14
    naive = x.T @ x / 8999 - np.outer(x.mean(0), x.mean(0)) * 9000 / 8999
    assert np.abs(naive - np.cov(x, rowvar=False)).max() > 1e-9


def test_a_part_taken_away_leaves_the_statistics_of_the_rest():
    x = rows(200)
    whole, part = (Statistics.of(some, "test") for some in (x, x[:10]))
    rest = whole.without(part)
    assert rest.n == 190
    np.testing.assert_allclose(rest.mean.numpy(), x[10:].numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(rest.cov.numpy(), np.cov(x[10:].numpy(), rowvar=False), rtol=1e-11, atol=1e-12)
    with pytest.raises(UsageError, match="leave none"):
        part.without(part)


def test_stored_statistics_of_an_unknown_number_of_rows_are_not_merged():
    stored = Statistics(torch.zeros(7).double(), torch.eye(7).double(), None, "test")
    with pytest.raises(UsageError, match="how many rows"):
        stored.merge(Statistics.of(rows(5), "test"))


def test_rows_left_out_take_their_labels_with_them():
    x = Features(rows(5), "test", label=torch.arange(5), predicted=torch.arange(5) + 10)
    rest = x.without(torch.tensor([1, 3]))
    assert rest.label.tolist() == [0, 2, 4] and rest.predicted.tolist() == [10, 12, 14]
    assert torch.equal(rest.values, x.values[[0, 2, 4]]) and rest.extractor == "test"


@pytest.mark.slow
def test_fifty_thousand_features_are_measured_in_little_more_memory_than_their_own():
    # 50,000 x 2,048 in float32 are 410 MB, in float64 819 MB; all their distances would be 10 GB.
    program = """
import resource, torch
from adm.metrics import Features
from adm.metrics.precision_recall import PrecisionRecall
sides = [torch.randn(n, 2048, generator=torch.Generator().manual_seed(n)) / 2 for n in (50_000, 10_000)]
def extra():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
before = 0
before = extra()
sample, reference = (Features(x, "test") for x in sides)
sample.statistics()
print(extra())
for precision in ("fp16", "fp32"):
    PrecisionRecall(precision=precision)(sample, reference)
print(extra())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    statistics, distances = (int(line) for line in found.stdout.split())
    assert statistics < 0.6e9 and distances < 1.5e9


@pytest.mark.parametrize(
    "values, match",
    [
        (torch.zeros(0, 3), "at least one row"),
        (torch.zeros(3), "floating"),
        (torch.zeros(2, 2, dtype=torch.int64), "floating"),
        (torch.tensor([[1.0, float("nan")]]), "NaN"),
        (torch.tensor([[1.0, 2.0], [float("-inf"), 3.0]]), "infinity"),
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
