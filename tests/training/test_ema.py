"""Averages of the weights against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from adm.runtime.config import from_dict, override, to_dict
from adm.runtime.errors import UsageError
from adm.training.ema import EMA, EMAConfig, gamma_of_std, std_of_gamma


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


# ---- several at once ------------------------------------------------------------------------------


def walk(module: nn.Linear, step: int) -> None:
    with torch.no_grad():
        module.weight.copy_(torch.sin(torch.arange(12.0).reshape(3, 4) * (step + 1)) + 0.3 * step)


@pytest.mark.parametrize(("kind", "values"), [("power", (6.94, 16.97, 0.0)), ("constant", (0.9999, 0.5, 0.0))])
def test_each_of_several_averages_is_to_the_bit_what_it_is_alone(kind: str, values: tuple[float, ...]) -> None:
    module = nn.Linear(4, 3, bias=False)
    configs = [EMAConfig(kind, **{"gamma" if kind == "power" else "rate": v}) for v in values]  # type: ignore[arg-type]
    together = EMA(module, EMAConfig(kind, others=values[1:]))  # type: ignore[arg-type]
    alone = [EMA(module, config) for config in configs]
    for step in range(25):
        walk(module, step)
        for ema in (together, *alone):
            ema.update(module)
    groups = together.tensors()
    assert list(groups) == ["ema", "ema-1", "ema-2"] and groups["ema"] is together.weights
    assert [groups["ema-1"], groups["ema-2"]] == together.others
    for group, ema in zip(groups.values(), alone, strict=True):
        assert torch.equal(group["weight"], ema.weights["weight"])
    sums = {float(group["weight"].sum()) for group in groups.values()}
    assert len(sums) == 3  # the twin: they do differ


def test_averages_continue_from_their_stored_values_to_the_bit() -> None:
    module = nn.Linear(4, 3, bias=False)
    whole, config = EMA(module, EMAConfig(others=(16.97,))), EMAConfig(others=(16.97,))
    half = EMA(module, config)
    for step in range(10):
        walk(module, step)
        whole.update(module)
        if step < 5:
            half.update(module)
    stored = {group: {name: value.clone() for name, value in t.items()} for group, t in half.tensors().items()}
    later = EMA(nn.Linear(4, 3, bias=False), config)
    later.restore(stored | {"model": {"weight": torch.full((3, 4), torch.nan)}}, half.num_updates)
    for step in range(5, 10):
        walk(module, step)
        later.update(module)
    assert later.num_updates == 10
    assert all(torch.equal(later.tensors()[g]["weight"], whole.tensors()[g]["weight"]) for g in ("ema", "ema-1"))


# ---- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 6.94, 16.97, 300])
def test_the_width_is_the_standard_deviation_of_the_profile(gamma: float) -> None:
    """(gamma + 1) t^gamma on [0, 1] is the Beta(gamma + 1, 1) distribution."""
    assert std_of_gamma(gamma) == pytest.approx(stats.beta(gamma + 1, 1).std(), rel=1e-12)


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.2886])
def test_the_gamma_of_a_width_is_the_largest_root_of_the_cubic(std: float) -> None:
    """std^2 (g + 2)^2 (g + 3) = g + 1, multiplied out (EDM2 Eq. 126)."""
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    assert gamma_of_std(std) == pytest.approx(roots.real.max(), rel=1e-9)
    assert std_of_gamma(gamma_of_std(std)) == pytest.approx(std, rel=1e-12)


def test_the_widths_that_papers_name_have_the_gammas_that_they_name() -> None:
    """EDM2 section 3.1: sigma_rel = 0.05 and 0.10 are gamma = 16.97 and 6.94."""
    assert [round(gamma_of_std(std), 2) for std in (0.05, 0.1)] == [16.97, 6.94]
    assert gamma_of_std(math.sqrt(1 / 12)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("std", [0, -0.1, 0.2888, 1, math.nan, math.inf])
def test_no_power_average_has_such_a_width(std: float) -> None:
    with pytest.raises(ValueError, match=r"std is .*: must be above 0 and at most 0\.2887"):
        gamma_of_std(std)


# ---- after few steps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "usable"), [(EMAConfig(), True), (EMAConfig(gamma=16.97), True), (EMAConfig("constant"), False)]
)
def test_after_fifty_steps_the_power_average_is_as_good_as_the_weights(config: EMAConfig, usable: bool) -> None:
    """A denoiser of the digits at one noise level. The released rule still holds its initial weights (the twin)."""
    images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        eps = torch.randn(n, 64, generator=generator)
        return images[torch.randint(len(images), (n,), generator=generator)] + eps, eps

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))
    ema, optimizer = EMA(network, config), torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(50):
        x, eps = batch(128)
        (network(x) - eps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network)
    x, eps = batch(4096)
    with torch.no_grad():
        raw = (network(x) - eps).square().mean()
        averaged = (torch.func.functional_call(network, ema.weights, (x,)) - eps).square().mean()
    assert raw < 0.8  # something was learnt: 1 is to answer 0
    assert bool(averaged <= 1.2 * raw) is usable


# ---- settings -------------------------------------------------------------------------------------


def test_the_settings_survive_the_files_and_the_command_line() -> None:
    config = override(EMAConfig(), ["others=16.97", "snapshot_every=20"])
    assert (config.others, config.snapshot_every, config.values) == ((16.97,), 20, (6.94, 16.97))
    assert from_dict(EMAConfig, to_dict(config)) == config
    assert override(config, ["others=1,2.5", "snapshot_every=none"]) == EMAConfig(others=(1, 2.5))
    assert from_dict(EMAConfig, {"kind": "power", "gamma": 6.94, "rate": 0.9999}) == EMAConfig()  # of older runs
    with pytest.raises(UsageError, match="others has -1"):
        override(EMAConfig(), ["others=16.97,-1"])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"others": (-1.0,)}, "a gamma of the power rule"),
        ({"others": (math.inf,)}, "a gamma of the power rule"),
        ({"kind": "constant", "others": (6.94,)}, "a rate of the constant rule"),
        ({"others": (6.94,)}, "others repeats an average: 6.94, 6.94"),
        ({"others": (1.0, 1.0)}, "others repeats"),
        ({"snapshot_every": 0}, "snapshot_every is 0"),
        ({"kind": "constant", "snapshot_every": 5}, "snapshot_every is for kind=power"),
    ],
)
def test_further_averages_that_cannot_be_are_refused(bad: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EMAConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"gamma": -0.1}, {"gamma": math.nan}, {"rate": 1.0}, {"rate": -0.1}])
def test_averages_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EMAConfig(**bad)  # type: ignore[arg-type]
