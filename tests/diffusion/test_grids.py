"""Grids of timesteps against their equations, and what a text may say."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import adm
from adm.diffusion.grids import GRIDS, karras, log_snr, spelled, timesteps_of
from adm.sampling import timesteps_for

SCHEDULES = {"linear": adm.linear(1000), "cosine": adm.cosine(1000), "edm": adm.edm(1000), "flow": adm.flow(1000)}
LARGEST = math.exp(5.1)


def ratios(schedule, timesteps):
    """sigma / alpha, from large to small, as a chain has them."""
    links = adm.Chain(schedule, timesteps)
    return [float(link.sigma / link.alpha) for link in links]


def ends(schedule):
    table = np.sqrt((1 - schedule.alpha_bar.numpy()) / schedule.alpha_bar.numpy())
    return table[0], table[table <= LARGEST][-1]


@pytest.mark.parametrize("num", [2, 5, 10, 60])
@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_grids_have_equal_differences_of_the_log_of_the_ratio(name, num):
    found = np.log(ratios(SCHEDULES[name], log_snr(SCHEDULES[name], num)))
    np.testing.assert_allclose(np.diff(found), (found[-1] - found[0]) / (num - 1), rtol=1e-9)
    np.testing.assert_allclose(np.exp(found[[-1, 0]]), ends(SCHEDULES[name]), rtol=1e-12)


@pytest.mark.parametrize("num", [2, 5, 18])
@pytest.mark.parametrize("name", SCHEDULES)
def test_karras_grids_are_edm_eq_5(name, num):
    low, high = ends(SCHEDULES[name])
    rho = 7
    steps = [(high ** (1 / rho) + i / (num - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(num)]
    assert ratios(SCHEDULES[name], karras(SCHEDULES[name], num)) == pytest.approx(steps, rel=1e-9)


def test_edms_own_schedule_gives_edms_own_noise_levels():
    """18 levels between 0.002 and 80 with rho = 7 (EDM Eq. 5), computed by hand: the first five."""
    known = [80.0, 57.58598, 40.78557, 28.37480, 19.35246]
    assert ratios(adm.edm(2000), karras(adm.edm(2000), 18))[:5] == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize("name", ["log-snr", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_single_link_starts_from_the_largest_ratio(schedule, name):
    (t,) = GRIDS[name](SCHEDULES[schedule], 1)
    assert t == int(t) and ratios(SCHEDULES[schedule], [t]) == pytest.approx([ends(SCHEDULES[schedule])[1]])


def test_no_grid_over_noise_levels_starts_where_the_cosine_schedule_is_noise_alone():
    for name in ("log-snr", "karras"):
        top = max(GRIDS[name](SCHEDULES["cosine"], 10))
        here, above = (ratios(SCHEDULES["cosine"], [t])[0] for t in (top, top + 1))
        assert here <= LARGEST < above


@pytest.mark.parametrize("text", ["log-snr:10", "karras:10"])
def test_real_timesteps_reach_the_network_as_they_are(text):
    """A float32 on the way would be an error floor for rules of high order."""
    schedule, name = SCHEDULES["cosine"], text.split(":")[0]
    given = timesteps_of(schedule, text)
    assert given == list(GRIDS[name](schedule, 10)) and any(t != round(t) for t in given)
    for again in (given, tuple(given), np.array(given), torch.tensor(given, dtype=torch.float64)):
        timesteps = timesteps_for(adm.DDIM(), schedule, again)
        assert adm.Chain(schedule, timesteps).timesteps.flip(0).tolist() == given
    assert json.loads(json.dumps(given)) == given
    seen = []

    class Recording:
        def __call__(self, x_t, t, cond):
            seen.append(float(t))
            alpha, sigma = schedule.alpha_sigma(t, x_t)
            return adm.Prediction(x_t, x_t * 0, alpha, sigma, torch.zeros(()))

    Recording.schedule = schedule
    adm.sample(Recording(), adm.Chain(schedule, given), adm.DDIM(), adm.SeededNoise([0]), (1, 1, 1, 1))
    assert seen == given[::-1]


def test_grids_of_whole_timesteps_are_the_released_ones():
    golden = json.loads((Path(__file__).parents[1] / "golden" / "diffusion" / "respacing.json").read_text())
    for case, timesteps in golden.items():
        T, counts = case.split(":")
        if int(T) > 20:
            assert timesteps_of(adm.linear(int(T)), counts) == timesteps, case
            if counts.isdecimal():
                assert timesteps_of(adm.linear(int(T)), f"even:{counts}") == timesteps
            if counts.startswith("ddim"):
                assert timesteps_of(adm.linear(int(T)), f"strided:{counts[4:]}") == timesteps


@pytest.mark.parametrize("steps", [10, "10", " 10 ", np.int64(10), torch.tensor(10)])
def test_a_number_is_the_samplers_own_grid(steps):
    schedule = SCHEDULES["linear"]
    assert timesteps_for(adm.DDIM(), schedule, steps) == adm.strided(1000, 10)
    assert timesteps_for(adm.DDPM(), schedule, steps) == adm.spaced(1000, 10)


def test_spelling_is_free_where_nothing_is_lost():
    for text in ("LOG_SNR: 10", " log-snr:10 ", "Log-SNR :10"):
        assert spelled(text) == "log-snr:10"
        assert timesteps_of(SCHEDULES["linear"], text) == log_snr(SCHEDULES["linear"], 10)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("karas:5", r"no grid 'karas'; did you mean 'karras'\? Choose one of: even, strided, log-snr, karras"),
        ("karras", "write karras:10"),
        ("karras:x", "write karras:10"),
        ("karras:5:5", "write karras:10"),
        ("karras:0", "use 1 to 1000"),
        ("log-snr:1001", "use 1 to 1000"),
        ("strided:300", "250 or 334"),
        ("karas10", "did you mean 'karras'"),
        ("ddim", "ddim25"),
        ("1e3", "Write 50"),
        ("-5", "Write 50"),
        ("", "Write 50"),
        ("10,,5", "Write 50"),
        (10.0, "give a number of links"),
        (None, "give a number of links"),
        ([0, float("nan")], "give a number of links"),
        ([[0, 1]], "give a number of links"),
        (["a"], "give a number of links"),
    ],
)
def test_what_is_no_grid_is_refused_in_a_line(steps, says):
    with pytest.raises(ValueError, match=says) as error:
        timesteps_for(adm.DDIM(), SCHEDULES["linear"], steps)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_rises_and_has_as_many_timesteps_as_asked_for(name, schedule):
    for num in (1, 4, 50, 1000):
        timesteps = list(GRIDS[name](SCHEDULES[schedule], num))
        assert len(timesteps) == num
        assert all(0 <= a < b <= 999 for a, b in itertools.pairwise(timesteps))
