"""The Inception Score against closed forms and the value that OpenAI's evaluator printed."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.inception_score import InceptionScore
from adm.runtime.errors import UsageError
from evaluator_recipes import RECORDED, made


def score(logits: np.ndarray | torch.Tensor, split_size: int = 5000) -> float:
    return InceptionScore(split_size)(Features(torch.as_tensor(logits), "test.logits"))["inception_score"]


def one_hot(classes: list[int], num: int, height: float = 400.0) -> np.ndarray:
    return np.eye(num)[classes] * height


def test_the_recorded_value_of_the_released_evaluator():
    record = RECORDED["inception_score"]
    weight = (np.random.RandomState(9).standard_normal((2048, 1008)) * 0.05).astype(np.float32)
    logits = made(**record["features"]) @ weight
    assert len(logits) == 12_001 and score(logits) == pytest.approx(record["value"], rel=1e-4)
    # The last split has 2,001 samples and counts as much as the others: not so, another value comes out.
    assert score(logits, 12_001) != pytest.approx(record["value"], rel=1e-4)


def test_undecided_logits_score_one():
    assert score(np.full((7, 10), 3.0)) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("num", [2, 10, 1008])
def test_all_classes_equally_often_and_surely_score_their_number(num):
    assert score(one_hot(list(range(num)) * 2, num)) == pytest.approx(num, rel=1e-12)


def test_two_classes_of_unequal_share_score_the_exponential_of_their_entropy():
    expected = np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert score(one_hot([0] * 25 + [1] * 75, 2)) == pytest.approx(expected, rel=1e-12)


def test_unsure_predictions_in_closed_form():
    # p = (q, 1 - q) and its mirror image: the marginal is even, KL = log 2 - H(q).
    q = 0.8
    expected = np.exp(np.log(2) + q * np.log(q) + (1 - q) * np.log(1 - q))
    logits = np.log([[q, 1 - q], [1 - q, q]] * 10)
    assert score(logits) == pytest.approx(expected, rel=1e-13)


def test_a_short_last_split_counts_as_much_as_the_others_and_a_single_image_scores_one():
    logits = one_hot([0, 1] * 5 + [0], 2)
    assert score(logits, 5) == pytest.approx(np.mean([score(logits[:5]), score(logits[5:10]), 1.0]), rel=1e-13)
    assert InceptionScore().split_size == 5000


def test_order_matters_across_splits_and_not_within():
    mixed, sorted_ = one_hot([0, 1] * 10, 2), one_hot([0] * 10 + [1] * 10, 2)
    assert score(mixed, 10) == pytest.approx(2) and score(sorted_, 10) == pytest.approx(1)
    assert score(sorted_[::-1].copy(), 20) == pytest.approx(score(mixed, 20), rel=1e-14)


def test_large_logits_give_no_nan():
    # In float32 the smallest probability is 0 here, and 0 log 0 would be NaN.
    logits = np.random.RandomState(0).choice([-200.0, 200.0], (50, 20)).astype(np.float32)
    assert np.isfinite(score(logits)) and 1 <= score(logits) <= 20


def test_a_constant_in_all_logits_changes_nothing_and_a_bias_of_the_classes_does():
    logits = np.random.RandomState(0).standard_normal((50, 20))
    assert score(logits + 7) == pytest.approx(score(logits), rel=1e-12)
    assert score(logits + np.arange(20)) != pytest.approx(score(logits), rel=1e-2)


def test_no_split_is_empty():
    with pytest.raises(UsageError, match="at least 1"):
        InceptionScore(0)
