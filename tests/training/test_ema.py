"""Averages of the weights against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adm.training.ema import EMA, EMAConfig


def averaged(config: EMAConfig, sequence: list[float], initial: float = 0.0) -> list[float]:
    """The average after each weight of the sequence, in float64."""
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, initial)
    ema = EMA(module, config)
    out = []
    for value in sequence:
        nn.init.constant_(module.weight, value)
        ema.update(module)
        out.append(ema.weights["weight"].item())
    return out


SEQUENCE = [math.sin(3 * n) + 0.1 * n for n in range(1, 41)]


@pytest.mark.parametrize("gamma", [0, 1, 2, 6.94])
def test_power_weighs_update_k_of_n_by_the_power_profile(gamma: float) -> None:
    """k counts prod (1 - (1 - 1/j)^(gamma+1)): written out, (k/n)^(gamma+1) - ((k-1)/n)^(gamma+1), the integral of
    (gamma + 1) t^gamma over the k-th part of the run."""
    got = averaged(EMAConfig("power", gamma=gamma), SEQUENCE, initial=1e6)
    for n in (1, 2, 7, 40):
        weights = [(k / n) ** (gamma + 1) - ((k - 1) / n) ** (gamma + 1) for k in range(1, n + 1)]
        assert sum(weights) == pytest.approx(1, rel=1e-12)
        expected = sum(w * x for w, x in zip(weights, SEQUENCE, strict=False))
        assert got[n - 1] == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_power_zero_is_the_plain_mean() -> None:
    got = averaged(EMAConfig("power", gamma=0), SEQUENCE, initial=1e6)
    assert got == pytest.approx([sum(SEQUENCE[:n]) / n for n in range(1, 41)], rel=1e-10)


def test_power_6_94_has_a_relative_width_of_ten_percent() -> None:
    """EDM2 Eq. 126: the standard deviation of the profile t^gamma is sqrt((g+1) / ((g+2)^2 (g+3))) of the run."""
    n, gamma = 4000, 6.94
    profile = torch.linspace(0, 1, n, dtype=torch.float64) ** gamma
    profile /= profile.sum()
    time = torch.linspace(0, 1, n, dtype=torch.float64)
    mean = (profile * time).sum()
    assert (profile * (time - mean) ** 2).sum().sqrt().item() == pytest.approx(0.1, abs=5e-4)
    # The average of the weights 0, 1, 2, ... is that mean.
    assert averaged(EMAConfig(), list(range(n)))[-1] / n == pytest.approx(mean.item(), abs=1e-3)


def test_power_forgets_the_initial_weights_at_the_first_update() -> None:
    assert averaged(EMAConfig(), [3.25], initial=1e30) == [3.25]


def test_constant_keeps_the_rate_and_starts_at_the_initial_weights() -> None:
    rate, initial = 0.9, -2.0
    got = averaged(EMAConfig("constant", rate=rate), SEQUENCE, initial)
    for n in (1, 5, 40):
        expected = rate**n * initial + sum((1 - rate) * rate ** (n - k) * SEQUENCE[k - 1] for k in range(1, n + 1))
        assert got[n - 1] == pytest.approx(expected, rel=1e-12)


def test_the_twin_neither_is_the_other() -> None:
    assert averaged(EMAConfig(), SEQUENCE)[-1] != pytest.approx(averaged(EMAConfig("constant"), SEQUENCE)[-1], rel=1e-3)


@pytest.mark.parametrize("config", [EMAConfig(), EMAConfig("constant", rate=0.99)])
def test_constant_weights_average_to_themselves(config: EMAConfig) -> None:
    assert averaged(config, [0.3] * 100, initial=0.3) == pytest.approx([0.3] * 100, rel=1e-12)


def test_whole_numbers_are_copied_and_the_module_is_left_alone() -> None:
    module = nn.BatchNorm1d(2)
    ema = EMA(module, EMAConfig("constant", rate=0.5))
    module.num_batches_tracked += 7
    nn.init.constant_(module.weight, 3)
    ema.update(module)
    assert ema.weights["num_batches_tracked"] == 7
    assert torch.equal(ema.weights["weight"], torch.tensor([2.0, 2.0]))
    assert torch.equal(module.weight.detach(), torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize("bad", [{"gamma": -0.1}, {"rate": 1.0}, {"rate": -0.1}])
def test_averages_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EMAConfig(**bad)  # type: ignore[arg-type]
