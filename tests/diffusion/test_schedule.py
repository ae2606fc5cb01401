"""Schedules, respacing and links against the released code's tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import adm

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusion"
SCHEDULES = {"linear": adm.linear, "cosine": adm.cosine}


@pytest.fixture(scope="module")
def tables():
    with np.load(GOLDEN / "schedules.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("T", [400, 1000, 4000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_are_the_released_ones(tables, name, T):
    schedule = SCHEDULES[name](T)
    link = adm.Chain(schedule, range(T))[torch.arange(T).flip(0)]
    one, zero = torch.ones(T, 1, dtype=torch.float64), torch.zeros(T, 1, dtype=torch.float64)
    ours = {
        "betas": link.beta,
        "alphas_cumprod": schedule.alpha_bar,
        "posterior_variance": link.beta_tilde,
        "posterior_log_variance_clipped": link.log_beta_tilde,
        "posterior_mean_coef1": link.mean(one, zero)[:, 0],
        "posterior_mean_coef2": link.mean(zero, one)[:, 0],
    }
    for key, values in ours.items():
        np.testing.assert_allclose(values, tables[f"{name}_{T}_{key}"], rtol=1e-11 if T == 4000 else 1e-12, atol=0)


def test_respacing_is_the_released_one():
    for case, timesteps in json.loads((GOLDEN / "respacing.json").read_text()).items():
        T, counts = case.split(":")
        assert (adm.strided if counts.startswith("ddim") else adm.spaced)(int(T), counts) == timesteps, case


@pytest.mark.parametrize(
    ("schedule", "beta_0", "alpha_bar_T", "sigma_0", "sigma_T"),
    [
        (adm.linear(1000), 1e-4, 4.03583e-5, 0.0100005, 157.4073),
        (adm.cosine(1000), 4.128422e-5, 2.42877e-9, 0.00642541, 20291.17),
        (adm.linear(4000), 2.5e-5, 4.24665e-5, 0.00500006, 153.4502),
        (adm.cosine(4000), 9.86582e-6, 1.51798e-10, 0.00314101, 81164.65),
    ],
)
def test_ends_of_the_schedules(schedule, beta_0, alpha_bar_T, sigma_0, sigma_T):
    ab = schedule.alpha_bar
    sigma = ((1 - ab) / ab).sqrt()
    ours = [float(1 - ab[0]), float(ab[-1]), float(sigma[0]), float(sigma[-1])]
    assert ours == pytest.approx([beta_0, alpha_bar_T, sigma_0, sigma_T], rel=3e-6)


@pytest.mark.parametrize("T", [2, 10, 1000])
def test_edm_covers_its_noise_levels_evenly_in_the_logarithm(T):
    ab = adm.edm(T).alpha_bar
    log_sigma = ((1 - ab) / ab).sqrt().log().numpy()
    np.testing.assert_allclose(log_sigma, np.linspace(np.log(0.002), np.log(80), T), rtol=0, atol=1e-9)


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_flow_is_the_straight_path_in_even_steps_from_clean_data_to_noise(T):
    """In units of alpha + sigma, x_t lies at 1 - u of x_0 and u of eps; with the two ends u has T + 1 equal steps."""
    alpha, sigma = adm.flow(T).alpha_sigma(torch.arange(T), torch.zeros(T, 1, dtype=torch.float64))
    u = (sigma / (alpha + sigma))[:, 0]
    np.testing.assert_allclose(np.diff([0, *u.tolist(), 1]), 1 / (T + 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)
    # Symmetric: as much signal at the start as noise at the end.
    torch.testing.assert_close(sigma.flip(0), alpha, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("make", "T"), [(adm.edm, 1), (adm.edm, 0), (adm.flow, 0), (adm.linear, 20)])
def test_too_few_timesteps_are_refused_naming_how_many_it_takes(make, T):
    with pytest.raises(ValueError, match=rf"{make.__name__}\({T}\): .*use T >= \d+"):
        make(T)


def test_alpha_sigma_is_exact_at_integers_and_interpolates_log_snr():
    schedule = adm.cosine(1000)
    like = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0, 412, 999])
    alpha, sigma = schedule.alpha_sigma(t, like)
    assert alpha.shape == (3, 1, 1, 1)
    assert torch.equal(alpha.flatten(), schedule.alpha_bar[t].sqrt())
    assert torch.equal(schedule.alpha_sigma(t.double(), like)[1], sigma)
    log_snr = torch.logit(schedule.alpha_bar)
    alpha, sigma = schedule.alpha_sigma(412.25, like)
    assert float((alpha / sigma).log() * 2) == pytest.approx(
        float(0.75 * log_snr[412] + 0.25 * log_snr[413]), rel=1e-12
    )
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-15)
    assert [float(v) for v in schedule.alpha_sigma(-1, like)] == [1, 0]
    assert [float(v) for v in schedule.alpha_sigma(-1.0, like)] == [1, 0]
    with pytest.raises(IndexError):
        schedule.alpha_sigma(1000, like)


def test_alpha_sigma_has_the_dtype_of_the_image():
    schedule = adm.linear(1000)
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 1, 4, 4, dtype=dtype)
        assert schedule.q_sample(x, torch.tensor([3, 900]), x).dtype == dtype
        assert schedule.q_sample(x, 3, x).dtype == dtype


def test_a_schedule_can_be_tabulated_from_sigmas():
    sigmas = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    alpha, sigma = adm.Schedule.from_sigmas(sigmas).alpha_sigma(torch.arange(3), torch.zeros(3, 1, dtype=torch.float64))
    torch.testing.assert_close((sigma / alpha)[:, 0], sigmas, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha_bar", [[0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0], [[0.5]], [], [math.nan]])
def test_a_table_that_is_no_schedule_is_refused(alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar"):
        adm.Schedule(torch.tensor(alpha_bar))


@pytest.mark.parametrize("n", [37, 41, 43, 45, 47, 49, 51])
def test_strides_that_do_not_exist_name_their_neighbours(n):
    with pytest.raises(ValueError, match=r"\d+ or \d+ steps"):
        adm.strided(1000, n)


def test_sections_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="at most 100"):
        adm.spaced(300, "10,101,10")
    with pytest.raises(ValueError, match="whole numbers"):
        adm.spaced(300, "ten")


def test_a_chain_takes_timesteps_in_any_order_and_starts_at_the_largest():
    schedule = adm.linear(100)
    chain = adm.Chain(schedule, [5, 90, 0, 40])
    assert [int(link.t) for link in chain] == [90, 40, 5, 0]
    assert [int(link.s) for link in chain] == [40, 5, 0, -1]
    assert [bool(link.last) for link in chain] == [False, False, False, True]
    assert len(chain) == 4
    batch = chain[torch.tensor([3, 1])]
    assert batch.t.tolist() == [0, 40]
    assert batch.beta.shape == (2,)
    assert int(chain[-1].t) == 0
    with pytest.raises(IndexError):
        chain[4]


def test_a_chain_may_end_at_noise():
    schedule = adm.linear(100)
    link = adm.Chain(schedule, [90, 40], end=10)[-1]
    assert (int(link.s), bool(link.last)) == (10, False)
    assert float(link.alpha_bar_s) == float(schedule.alpha_bar[10])


@pytest.mark.parametrize("timesteps", [[], [3, 3], [-1, 4], [100], [[1, 2]]])
def test_chains_that_cannot_be_are_refused(timesteps):
    with pytest.raises(ValueError):
        adm.Chain(adm.linear(100), timesteps)


def test_inverted_links_go_up_and_end_at_pure_noise():
    chain = adm.Chain(adm.linear(100), [0, 40, 90]).inverted()
    assert [int(link.t) for link in chain] == [0, 40, 90]
    assert [int(link.s) for link in chain] == [40, 90, 100]
    assert float(chain[-1].alpha_bar_s) == 0


def test_the_first_links_of_a_chain_are_a_chain_that_ends_at_noise():
    chain = adm.Chain(adm.linear(100), [0, 40, 90])
    part = chain[:2]
    assert isinstance(part, adm.Chain) and [int(link.s) for link in part] == [40, 0]
    assert part.schedule is chain.schedule and not bool(part[-1].last)


def test_schedules_that_differ_at_either_end_are_not_the_same():
    schedule = adm.cosine(1000)
    assert schedule.same_as(adm.cosine(1000)) and not schedule.same_as(adm.cosine(999))
    for t, factor in ((999, 1.3), (0, 1 - 1e-6)):
        table = schedule.alpha_bar.clone()
        table[t] *= factor
        assert not schedule.same_as(adm.Schedule(table))


def test_counts_may_be_numpy_numbers():
    assert adm.spaced(1000, np.int64(10)) == adm.spaced(1000, [np.int64(10)]) == adm.spaced(1000, 10)
