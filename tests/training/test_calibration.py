"""The scale of log-probabilities against a general minimiser, at its ends, and its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from adm.training._calibration import calibrate


def random_logits(seed: int, num: int = 60, classes: int = 4, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    rng = np.random.RandomState(seed)
    logits = rng.standard_normal((num, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = [rng.choice(classes, p=row) for row in p]
    return torch.from_numpy(scale * logits), torch.tensor(label)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [1e-6, 0.4, 1.0, 30.0, 1e5])
def test_the_scale_is_that_of_a_general_minimiser(seed: int, scale: float) -> None:
    logits, label = random_logits(seed, scale=scale)
    z = logits.numpy() / scale

    def cross_entropy(s: float) -> float:
        log_p = s * z - np.logaddexp.reduce(s * z, axis=1, keepdims=True)
        return float(-log_p[np.arange(len(z)), label.numpy()].mean())

    best = minimize_scalar(cross_entropy, bounds=(0, 20), method="bounded", options={"xatol": 1e-10})
    found = calibrate(logits, label)
    assert found.scale * scale == pytest.approx(best.x, rel=1e-5)
    assert found.cross_entropy == pytest.approx(best.fun, rel=1e-9)


def test_scales_at_the_ends() -> None:
    label = torch.tensor([0, 1])
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert calibrate(right, label).scale == math.inf and calibrate(right, label).cross_entropy == 0
    assert calibrate(-right, label).scale == 0  # worse than guessing, which the logarithm of 2 is
    assert calibrate(-right, label).cross_entropy == pytest.approx(math.log(2))
    assert calibrate(torch.zeros(2, 2), label).scale == 0
    tied = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])  # at best one of two: no scale is too large
    assert calibrate(tied, label).scale == math.inf
    assert calibrate(tied, label).cross_entropy == pytest.approx(math.log(2))


def test_the_standard_error_is_the_spread_over_samples_of_images() -> None:
    found = [calibrate(*random_logits(seed, num=300, scale=1.0)) for seed in range(100)]
    spread = np.std([c.scale for c in found])
    assert np.mean([c.standard_error for c in found]) == pytest.approx(spread, rel=0.2)


def test_several_views_of_an_image_count_as_one_in_the_standard_error() -> None:
    logits, label = random_logits(0)
    once, copies = calibrate(logits, label), calibrate(logits[:, None].expand(-1, 5, -1), label)
    assert copies.scale == pytest.approx(once.scale)
    assert copies.standard_error == pytest.approx(once.standard_error)  # the twin: 5 times the images, 1 / sqrt(5)
    many = calibrate(logits.repeat(5, 1), label.repeat(5))
    assert many.standard_error == pytest.approx(once.standard_error / math.sqrt(5))
