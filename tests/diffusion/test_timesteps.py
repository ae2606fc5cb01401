"""Log-normal timesteps against scipy's normal distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

import adm
from adm.diffusion.timesteps import LogNormal

SCHEDULES = {"linear": adm.linear(1000), "cosine": adm.cosine(400), "edm": adm.edm(1000), "flow": adm.flow(50)}


def log_sigma(schedule):
    ab = schedule.alpha_bar.numpy()
    return 0.5 * np.log((1 - ab) / ab)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 1.0), (3.0, 0.1), (-40.0, 0.5)])
def test_each_timestep_has_the_normals_mass_of_what_lies_nearest_to_it(name, mean, std):
    schedule = SCHEDULES[name]
    middle = log_sigma(schedule)
    borders = np.concatenate([[-np.inf], (middle[1:] + middle[:-1]) / 2, [np.inf]])
    expected = np.diff(stats.norm.cdf(borders, loc=mean, scale=std))
    p = LogNormal.new(schedule, mean, std).probability
    assert p.dtype == torch.float64 and p.shape == (schedule.num_timesteps,)
    np.testing.assert_allclose(p, expected, rtol=1e-9, atol=1e-15)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


def test_an_even_grid_of_uniforms_draws_edms_mean_and_deviation_with_weight_one():
    schedule = SCHEDULES["edm"]
    t, weight = LogNormal.new(schedule, -1.2, 1.2).draw((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert t.dtype == torch.int64 and weight.dtype == torch.float32 and bool((weight == 1).all())
    drawn = log_sigma(schedule)[t]
    assert drawn.mean() == pytest.approx(-1.2, abs=1e-3) and drawn.std() == pytest.approx(1.2, abs=1e-3)
    # The whole distribution: no further from the normal's CDF than half a cell of the table.
    levels = np.linspace(-4, 2, 25)
    shares = [(drawn <= level).mean() for level in levels]
    assert np.abs(shares - stats.norm.cdf(levels, -1.2, 1.2)).max() < 0.5 * 0.0107 * stats.norm.pdf(0) / 1.2 + 1e-4


def test_standard_normal_on_the_straight_path_is_the_logit_normal():
    schedule = adm.flow(999)
    t, _ = LogNormal.new(schedule, 0.0, 1.0).draw((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    u = (t + 1) / 1000
    logits = torch.logit(u.double()).numpy()
    assert stats.kstest(logits, "norm").statistic < 2e-3


@pytest.mark.parametrize("u", [1e-300, 2**-54, 0.5, 1 - 2**-53])
def test_every_uniform_draws_a_timestep(u):
    for schedule in SCHEDULES.values():
        for sampler in (LogNormal.new(schedule), LogNormal.new(schedule, 60.0, 0.1), LogNormal.new(schedule, -60.0)):
            t, _ = sampler.draw(torch.tensor([u], dtype=torch.float64))
            assert 0 <= int(t) < schedule.num_timesteps and float(sampler.probability[t]) > 0


def test_it_learns_nothing_and_has_nothing_to_store():
    sampler = LogNormal.new(adm.edm(10))
    assert sampler.updated(torch.tensor([1]), torch.tensor([5.0])) is sampler
    assert sampler.state() == {} and sampler.restored({}) is sampler
