"""DDPM's variances on Gaussian data, where the variance that comes out follows from a recursion."""

import dataclasses

import pytest
import torch

import adm
from adm.runtime import lookup
from adm.runtime.errors import UsageError
from analytic import GaussianGuide, gaussian, linear_map

F64 = torch.float64
LINEAR = adm.linear(1000)


class Fraction:
    """N(0, v) with f = Var(x_0 | x_t) / (1 - alpha_bar) + shift, which no respacing changes."""

    def __init__(self, schedule, v, shift=0.0):
        self.schedule, self.v, self.shift = schedule, v, shift
        self.mean = gaussian(schedule, v)

    def __call__(self, x_t, t, cond=adm.Condition()):
        p = self.mean(x_t, t)
        return dataclasses.replace(p, var_frac=self.v / (p.alpha**2 * self.v + p.sigma**2) + self.shift)


class Fixed(Fraction):
    """N(0, v) whose fraction is a number."""

    def __call__(self, x_t, t, cond=adm.Condition()):
        return dataclasses.replace(self.mean(x_t, t), var_frac=torch.tensor(self.shift, dtype=F64))


def reached(denoiser, sampler, count, start=1.0):
    """The variance of x_0 when x_T ~ N(0, start)."""
    chain = adm.Chain(denoiser.schedule, adm.spaced(1000, count))
    gain, noise = linear_map(denoiser, chain, sampler)
    return gain**2 * start + noise


RECORDED = [
    (0.25, "log", {10: (0.161, 5e-4), 25: (0.238, 5e-4), 50: (0.247, 5e-4), 100: (0.249, 5e-4)}),
    (0.25, "linear", {10: (0.2502, 5e-5), 25: (0.2501, 5e-5), 50: (0.2500, 5e-5), 100: (0.24995, 5e-6)}),
    (0.04, "log", {10: (0.0088, 5e-5), 25: (0.0267, 5e-5), 50: (0.0365, 6e-5)}),
    (0.04, "linear", {10: (0.0401, 5e-5), 25: (0.0400, 6e-5), 50: (0.0400, 5e-5)}),
]
"""Data variance, interpolation, steps: what comes out, and half a unit of its last digit (adm-spec 2.4)."""


@pytest.mark.parametrize(("v", "interpolation", "by_steps"), RECORDED)
def test_a_fraction_learned_at_1000_steps_gives_the_recorded_variance_at_few(v, interpolation, by_steps):
    learned = gaussian(LINEAR, v, chain=adm.Chain(LINEAR, range(1000)))  # optimal for Eq. 15 at 1000 steps
    for count, (value, within) in by_steps.items():
        assert reached(learned, adm.DDPM(interpolation=interpolation), count) == pytest.approx(value, abs=within)


@pytest.mark.parametrize("schedule", [LINEAR, adm.cosine(1000), adm.flow(1000)])
@pytest.mark.parametrize("v", [0.0625, 0.25, 2.0])
@pytest.mark.parametrize("count", [1, 4, 10, 100])
def test_t3_the_linear_interpolation_of_the_posterior_variance_is_exact_at_any_respacing(schedule, v, count):
    """Only Var(x_0 | x_t) at the last t is missing, the noise that the last step leaves out."""
    chain = adm.Chain(schedule, adm.spaced(1000, count))
    alpha_bar, lowest = float(chain[0].alpha_bar), float(chain[-1].alpha_bar)
    missing = v * (1 - lowest) / (lowest * v + 1 - lowest)
    variance = reached(Fraction(schedule, v), adm.DDPM(interpolation="linear"), count, alpha_bar * v + 1 - alpha_bar)
    assert variance == pytest.approx(v - missing, rel=1e-9)


def test_a_fraction_below_0_is_taken_as_0():
    below, zero = Fixed(LINEAR, 0.25, -0.2), Fixed(LINEAR, 0.25, 0.0)
    sampler = adm.DDPM(interpolation="linear")
    assert reached(below, sampler, 10) == reached(zero, sampler, 10)
    assert reached(Fixed(LINEAR, 0.25, 0.1), sampler, 10) > reached(zero, sampler, 10)


@pytest.mark.parametrize(("variance", "at_4", "at_10"), [("small", 0.0237, 0.104), ("large", 0.715, 0.359)])
def test_fixed_variances_give_the_recorded_ones_whatever_the_model_says(variance, at_4, at_10):
    for shift in (0.0, 0.7):
        denoiser = Fraction(LINEAR, 0.25, shift)
        assert reached(denoiser, adm.DDPM(variance=variance), 4) == pytest.approx(at_4, abs=6e-4)
        assert reached(denoiser, adm.DDPM(variance=variance), 10) == pytest.approx(at_10, abs=6e-4)


class Net(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x, t, label=None, low_res=None):
        return torch.cat([torch.sin(2 * x), torch.cos(3 * x)], 1)[:, : self.channels]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_fixed_variance_is_that_of_a_model_made_with_it_to_the_bit(variance, dtype):
    """Of a network that has learned its variance; guided too, which needs Sigma at the last step as well."""
    shape = (3, 1, 4, 4)
    learned = adm.DiffusionModel(Net(2), LINEAR)
    made = adm.DiffusionModel(Net(1), LINEAR, variance=variance)
    guidance = adm.ClassifierGuidance(GaussianGuide(LINEAR, 2.0, 1.0), scale=2.0)
    chain, noise = adm.Chain(LINEAR, adm.spaced(1000, 6)), adm.SeededNoise(range(3), dtype)
    cond = adm.Condition(label=[0, 0, 0])
    for ours, theirs in ((learned, made), (adm.guide(learned, guidance), adm.guide(made, guidance))):
        x = adm.sample(ours, chain, adm.DDPM(variance=variance), noise, shape, cond)
        assert torch.equal(x, adm.sample(theirs, chain, adm.DDPM(), noise, shape, cond))
    assert not torch.equal(x, adm.sample(adm.guide(learned, guidance), chain, adm.DDPM(), noise, shape, cond))


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match=r"variance 'medium': choose model \(its own\), small or large"):
        adm.DDPM(variance="medium")
    with pytest.raises(ValueError, match=r"interpolation 'cubic': choose log"):
        adm.DDPM(interpolation="cubic")
    with pytest.raises(ValueError, match="leave one out"):
        adm.DDPM(variance="small", interpolation="linear")
    with pytest.raises(UsageError, match="leave one out"):
        lookup.build("sampling", "ddpm:variance=large,interpolation=linear")
    assert lookup.build("sampling", "ddpm:interpolation=linear") == adm.DDPM(interpolation="linear")
