"""Error bars are those of sampling distributions that are known, or measured over many draws."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features, Statistics
from adm.metrics._jackknife import jackknife
from adm.metrics.fid import FID
from adm.metrics.fid_infinity import FIDInfinity
from adm.metrics.inception_score import InceptionScore
from adm.metrics.label_accuracy import LabelAccuracy
from adm.metrics.precision_recall import PrecisionRecall
from adm.runtime.errors import UsageError


def normal(seed: int, n: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Features:
    x = np.random.RandomState(seed).standard_normal((n, dim)) * scale + shift
    return Features(torch.from_numpy(x), "test")


def standard(dim: int) -> Statistics:
    return Statistics(torch.zeros(dim).double(), torch.eye(dim).double(), None, "test")


def mean_error(metric, draw, reference, key, repeats=40):
    return np.mean([jackknife(metric, draw(i), reference)[f"{key}_error"] for i in range(repeats)])


def test_of_a_shifted_gaussian_the_error_is_known():
    # FID = |m|^2 + ..., m ~ N(mu, 1/n): the error is 2 |mu| / sqrt(n), all else is of order 1/n.
    n, dim, shift = 400, 3, 2.0
    found = mean_error(FID(), lambda i: normal(i, n, dim, shift=shift), standard(dim), "fid")
    assert found == pytest.approx(2 * shift * dim**0.5 / n**0.5, rel=0.1)


def test_of_a_wider_gaussian_the_error_is_known():
    # In one dimension FID = m^2 + (s - 1)^2, s ~ N(sigma, sigma^2 / 2n): 2 (sigma - 1) sigma / sqrt(2n).
    n, sigma = 800, 3.0
    found = mean_error(FID(), lambda i: normal(i, n, 1, scale=sigma), standard(1), "fid")
    assert found == pytest.approx(2 * (sigma - 1) * sigma / (2 * n) ** 0.5, rel=0.1)


def test_of_a_share_it_is_the_binomial_error():
    n = 2000
    right = np.random.RandomState(0).random_sample(n) < 0.3
    sample = Features(torch.ones(n, 1), "t", torch.ones(n).long(), torch.from_numpy(right.astype(np.int64)))
    scores = jackknife(LabelAccuracy(), sample, num_blocks=200)
    p = scores["label_accuracy"]
    assert p == right.mean() and scores["label_accuracy_error"] == pytest.approx((p * (1 - p) / n) ** 0.5, rel=0.15)


@pytest.mark.parametrize("num", [400, 437])
def test_of_an_inception_score_it_is_the_spread_over_draws(num):
    def draw(seed):
        return Features(torch.from_numpy(np.random.RandomState(seed).standard_normal((num, 5)) * 3), "t.logits")

    metric = InceptionScore(split_size=100)
    spread = np.std([metric(draw(i))["inception_score"] for i in range(1000, 1400)])
    assert mean_error(metric, draw, None, "inception_score") == pytest.approx(spread, rel=0.12)


def test_of_precision_it_is_the_spread_over_draws():
    reference, metric = normal(0, 300, 4), PrecisionRecall(precision="fp32")
    spread = np.std([metric(normal(i, 300, 4, shift=0.3), reference)["precision"] for i in range(1000, 1150)])
    found = mean_error(metric, lambda i: normal(i, 300, 4, shift=0.3), reference, "precision", repeats=8)
    assert found == pytest.approx(spread, rel=0.25)


def test_leaving_out_by_moments_is_leaving_out_the_rows():
    sample, reference = normal(1, 205, 4, shift=0.5), normal(2, 150, 4)

    class ByRows(FID):
        accepts_statistics = False

    by_moments, by_rows = jackknife(FID(), sample, reference), jackknife(ByRows(), sample, reference)
    assert by_moments == pytest.approx(by_rows, rel=1e-9) and by_moments["fid"] == FID()(sample, reference)["fid"]


def test_leaving_out_of_splits_is_leaving_out_the_rows_where_there_is_one_split():
    sample = Features(torch.from_numpy(np.random.RandomState(0).standard_normal((90, 5))), "t.logits")
    blocks = torch.arange(90).split(30)
    found = InceptionScore().leave_one_out(sample, None, blocks)
    assert found == [pytest.approx(InceptionScore()(sample.without(block)), rel=1e-13) for block in blocks]


def test_infinity_has_an_error_too():
    scores = jackknife(FIDInfinity(num_points=4, smallest=20), normal(0, 80, 2), standard(2), num_blocks=4)
    assert set(scores) == {"fid_infinity", "fid_infinity_error"} and scores["fid_infinity_error"] > 0


def test_too_few_samples_for_the_blocks_are_refused():
    with pytest.raises(UsageError, match="39 samples do not make 20 blocks"):
        jackknife(FID(), normal(0, 39, 2), standard(2))
