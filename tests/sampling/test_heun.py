"""Euler and Heun, with and without churn: EDM's algorithm by hand, identities, and closed forms on Gaussian data."""

import itertools
import math

import pytest
import torch

import adm
from adm.diffusion.schedule import Schedule
from adm.runtime import lookup
from adm.runtime.errors import UsageError
from analytic import GaussianGuide, MixtureClassifier, MixtureDenoiser, gaussian, linear_map

F64 = torch.float64


class Crooked(torch.nn.Module):
    """A network that is no exact solution of anything."""

    def forward(self, x, t, label=None, low_res=None):
        return torch.sin(2 * x + t.reshape(-1, 1, 1, 1) / 100) - 0.3 * x


class Counted:
    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.times = denoiser, denoiser.schedule, []

    def __call__(self, x_t, t, cond=adm.Condition()):
        self.times.append(float(t))
        return self.denoiser(x_t, t, cond)


def mixture(schedule):
    means = torch.tensor([[-0.8, 0.1], [0.7, 0.6], [0.2, -0.9]], dtype=F64)
    return MixtureDenoiser(schedule, means, torch.tensor([0.04, 0.09, 0.02]), torch.tensor([0.5, 0.3, 0.2]))


def edm_alg_2(model, sigmas, x, noises, churn=0.0, low=0.0, high=math.inf, strength=1.0, heun=True):
    """EDM Alg. 2, line by line, on x of variance sigma^2. sigmas: falling, the last is 0."""
    N = len(sigmas) - 1

    def D(x, sigma):
        x_t, t = x / math.sqrt(1 + sigma**2), model.schedule.time_at(sigma)
        return model(x_t, t).x0

    for i, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(churn / N, math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        hat = min(sigma + gamma * sigma, max(sigmas))
        x = x + math.sqrt(hat**2 - sigma**2) * strength * noises[i]
        d = (x - D(x, hat)) / hat
        ahead = x + (lower - hat) * d
        if lower != 0 and heun:
            ahead = x + (lower - hat) * (d + (ahead - D(ahead, lower)) / lower) / 2
        x = ahead
    return x


CHURNS = [{}, {"churn": 3.0}, {"churn": 80.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}]


@pytest.mark.parametrize("options", CHURNS)
@pytest.mark.parametrize("rule", [adm.Euler, adm.Heun])
def test_the_chain_is_edms_algorithm_line_by_line(rule, options):
    model = adm.DiffusionModel(Crooked(), adm.edm(200), "edm", "small")
    chain = adm.Chain(model.schedule, adm.spaced(200, 9))
    x_T, *noises = torch.randn(10, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise = adm.RecordedNoise([x_T, *noises])
    ours = adm.sample(model, chain, rule(**options), noise, x_T.shape)
    sigmas = [*(chain.timesteps.double() / 199 * math.log(80 / 0.002) + math.log(0.002)).exp().tolist(), 0.0]
    words = {"churn_min": "low", "churn_max": "high", "churn_noise": "strength"}
    theirs = {words.get(name, name): value for name, value in options.items()}
    y = edm_alg_2(model, sigmas, x_T * math.sqrt(1 + 80**2), noises, heun=rule is adm.Heun, **theirs)
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-6)  # 1 - alpha_bar at sigma .002 has 1e-10 of itself


@pytest.mark.parametrize("schedule", [adm.linear(1000), adm.cosine(1000), adm.edm(1000)])
def test_t8_euler_without_churn_is_ddim(schedule):
    """On the way down and, as an encoder, up; guided too."""
    denoiser = mixture(schedule)
    classifier = adm.ClassifierGuidance(MixtureClassifier(denoiser, [0, 0, 1]), scale=2.0)
    cond = adm.Condition(label=torch.tensor([0, 1, 0, 1]))
    noise = adm.SeededNoise(range(4), F64)
    down = adm.Chain(schedule, adm.spaced(1000, 12)[:-1])
    for chain, model in ((down, denoiser), (down, adm.guide(denoiser, classifier)), (down.inverted(), denoiser)):
        x = noise.initial((4, 2, 1, 1))
        a, b = (adm.sample(model, chain, sampler, None, x.shape, cond, x=x) for sampler in (adm.Euler(), adm.DDIM()))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_n_steps_of_heun_cost_2_n_less_1_evaluations_at_the_ends_of_the_links():
    denoiser = Counted(gaussian(adm.linear(1000), 0.25))
    chain = adm.Chain(denoiser.schedule, [900, 500, 200, 0])
    adm.sample(denoiser, chain, adm.Heun(), adm.SeededNoise([0]), (1, 1, 1, 1))
    assert denoiser.times == [900, 500, 500, 200, 200, 0, 0]


@pytest.mark.parametrize("churn", [0.5, 4.0, 1e9])
@pytest.mark.parametrize("schedule", [adm.linear(1000), adm.cosine(1000)])
def test_churn_costs_no_correction(schedule, churn):
    """The cosine schedule goes on above the highest level where a step is corrected, e^5.1; churn stays at it."""
    denoiser = Counted(gaussian(schedule, 0.25))
    rule = adm.Heun(churn=churn)
    for num in (1, 3, 8):
        denoiser.times.clear()
        chain = adm.Chain(schedule, rule.timesteps(schedule, num))
        adm.sample(denoiser, chain, rule, adm.SeededNoise([0], F64), (1, 1, 2, 2))
        assert len(denoiser.times) == 2 * num - 1
        assert float((1 / schedule.alpha_bar_at(max(denoiser.times)) - 1).sqrt()) <= math.exp(5.1) * (1 + 1e-9)
        assert num == 1 or denoiser.times[0] > float(chain[0].t) or schedule.same_as(adm.linear(1000))


def test_above_all_levels_of_edm_a_step_is_eulers():
    """The cosine schedule's last timestep, noise-to-signal 2e4: few even steps stay near the data all the same."""
    denoiser = Counted(gaussian(adm.cosine(1000), 0.25))
    chain = adm.Chain(denoiser.schedule, adm.spaced(1000, 6))
    x = adm.sample(denoiser, chain, adm.Heun(), adm.SeededNoise([0], F64), (1, 1, 60, 60))
    assert denoiser.times[:3] == [999, 799, 599]
    assert float(x.std()) == pytest.approx(0.5, rel=0.2)


def test_both_evaluations_are_guided():
    """T5: the exact classifier at scale 2 makes the ODE's variance 2^(1 - 2) from a = 2, b = 1."""
    schedule, prior, given = adm.edm(1000), 2.0, 1.0
    guidance = adm.ClassifierGuidance(GaussianGuide(schedule, prior, given), scale=2.0)
    denoiser = adm.guide(gaussian(schedule, prior), guidance)
    chain = adm.Chain(schedule, adm.diffusion.grids.log_snr(schedule, 120))
    cond = adm.Condition(label=torch.zeros(121, dtype=torch.long))
    gain, _ = linear_map(denoiser, chain, adm.Heun(), cond)
    top = 80.0**2
    start = prior + top  # of y = x / alpha, exact marginal of the prior; guided as in adm-spec T5
    exact = start * (given / (given + top)) ** 2 * (prior / (prior + top)) ** -1
    assert gain**2 * start / (1 + top) == pytest.approx(exact, rel=4e-3)


def churned_variance(sampler, num_steps, v=0.25):
    """Of data from N(0, v), walked from the exact marginal at sigma 20 to that at sigma 0.05, less the exact one."""
    schedule = Schedule.from_sigmas(torch.logspace(math.log10(0.05), math.log10(40), 4 * num_steps + 1, dtype=F64))
    top = int(schedule.time_at(20.0))
    chain = adm.Chain(schedule, torch.linspace(0, top, num_steps + 1, dtype=F64)[1:], end=0)
    gain, noise = linear_map(gaussian(schedule, v), chain, sampler)
    first, end = chain[0].alpha_bar, chain[-1].alpha_bar_s
    return float(gain**2 * (first * v + 1 - first) + noise - (end * v + 1 - end))


@pytest.mark.parametrize(("rule", "order"), [(adm.Euler, 1), (adm.Heun, 2)])
@pytest.mark.parametrize("options", [{"churn": 4.0}, {"churn": 20.0, "churn_min": 0.3, "churn_max": 5.0}])
def test_churn_keeps_the_variance_of_the_data_with_the_order_of_the_rule(rule, order, options):
    """Noise and the steps against it balance (EDM section 4): what is left falls as it does without churn."""
    errors = [churned_variance(rule(**options), num) for num in (50, 100, 200)]
    assert abs(errors[-1]) < {1: 2e-2, 2: 8e-4}[order]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_churn_forgets_where_the_walk_began():
    """With gamma at its most, sqrt 2 - 1, what is left of x_T's own share is small; without churn it is all."""
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.diffusion.grids.log_snr(schedule, 100))
    kept, noise = linear_map(gaussian(schedule, 0.25), chain, adm.Heun(churn=1000.0))
    assert kept**2 < 1e-6 and noise == pytest.approx(0.25, rel=0.05)
    kept, noise = linear_map(gaussian(schedule, 0.25), chain, adm.Heun())
    assert kept**2 == pytest.approx(0.25, rel=0.01) and noise == 0


def test_churn_noise_multiplies_the_noise_alone():
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.diffusion.grids.log_snr(schedule, 30))
    denoiser = gaussian(schedule, 0.25)
    (gain, noise), (same, more) = (
        linear_map(denoiser, chain, adm.Heun(churn=10.0, churn_noise=strength)) for strength in (1.0, 1.1)
    )
    assert same == gain and more == pytest.approx(1.1**2 * noise, rel=1e-12)
    still, none = linear_map(denoiser, chain, adm.Heun(churn=10.0, churn_noise=0.0))
    assert still == gain and none == 0


@pytest.mark.parametrize("churn", [1e9, 5.0])
def test_no_level_above_the_schedules_top_is_asked(churn):
    schedule = adm.linear(1000)
    denoiser = Counted(gaussian(schedule, 0.25))
    chain = adm.Chain(schedule, [999, 990, 500])
    x = adm.sample(denoiser, chain, adm.Euler(churn=churn), adm.SeededNoise([0], F64), (1, 1, 2, 2))
    assert torch.isfinite(x).all()
    assert denoiser.times[:2] == [999, 999] and 500 < denoiser.times[2] < 600
    churned = float((schedule.alpha_bar_at(denoiser.times[2]) ** -1 - 1).sqrt() / (chain[2].sigma / chain[2].alpha))
    assert churned == pytest.approx(min(1 + churn / 3, math.sqrt(2)), rel=1e-9)


def test_outside_of_its_range_churn_draws_nothing_and_asks_at_t_itself():
    denoiser = Counted(gaussian(adm.linear(1000), 0.25))
    chain = adm.Chain(denoiser.schedule, [900, 500, 100])
    ratio = float(chain[1].sigma / chain[1].alpha)
    x = torch.ones(1, 1, 1, 1)
    for only in ({"churn_min": 1e6}, {"churn_max": 1e-6}):
        denoiser.times.clear()
        churned = adm.sample(denoiser, chain, adm.Euler(churn=9.0, **only), None, x.shape, x=x)
        assert torch.equal(churned, adm.sample(denoiser, chain, adm.Euler(), None, x.shape, x=x))
        assert denoiser.times[:3] == [900, 500, 100]
    denoiser.times.clear()
    one = adm.Heun(churn=0.3, churn_min=ratio, churn_max=ratio)
    adm.sample(denoiser, chain, one, adm.SeededNoise([0]), x.shape, x=x)
    assert denoiser.times[0] == 900 and denoiser.times[2] > 500 and denoiser.times[4] == 100


@pytest.mark.parametrize("sampler", [adm.Euler(churn=30.0), adm.Heun(churn=30.0)])
def test_a_chain_in_two_pieces_is_the_chain(sampler):
    """S_churn is shared out over the whole chain, not over a piece of it."""
    denoiser = gaussian(adm.linear(1000), 0.25)
    chain, noise = adm.Chain(denoiser.schedule, adm.spaced(1000, 8)), adm.SeededNoise([0], F64)
    whole = adm.sample(denoiser, chain, sampler, noise, (1, 1, 4, 4))

    class Later:
        def at(self, i, shape, draw=0):
            return noise.at(i + 3, shape, draw)

    x = adm.sample(denoiser, chain[:3], sampler, noise, whole.shape)
    assert torch.equal(whole, adm.sample(denoiser, chain[3:], sampler, Later(), whole.shape, x=x))


@pytest.mark.parametrize("links", [25, 50, 100])
def test_t7_heuns_inversion_and_back_is_nearer_than_ddims(links):
    """Second order: (1 + e)^2 with an e that falls by 4, where DDIM's is -.19 at 25."""
    sigmas = torch.logspace(math.log10(0.002), math.log10(80), links + 1, dtype=F64)
    schedule = Schedule.from_sigmas(sigmas)
    denoiser = gaussian(schedule, 0.25)
    x0 = torch.ones(1, 1, 1, 1, dtype=F64)
    up = adm.Chain(schedule, range(links + 1)).inverted()[:-1]
    down = adm.Chain(schedule, range(1, links + 1), end=0)
    x = adm.sample(denoiser, up, adm.Heun(), None, x0.shape, x=x0)
    back = adm.sample(denoiser, down, adm.Heun(), None, x0.shape, x=x)
    assert abs(float(back) - 1) < 16 / links**2


def test_a_whole_inverted_chain_ends_at_noise():
    schedule = adm.linear(1000)
    denoiser = gaussian(schedule, 0.25)
    x = adm.SeededNoise([0], F64).initial((1, 1, 40, 40)) / 2
    up = adm.sample(denoiser, adm.Chain(schedule, adm.spaced(1000, 60)).inverted(), adm.Heun(), None, x.shape, x=x)
    assert float(up.std() / x.std()) == pytest.approx(2, rel=0.03)
    with pytest.raises(ValueError, match="inverted chain is walked only without noise; use churn=0"):
        adm.sample(denoiser, adm.Chain(schedule, [5]).inverted(), adm.Heun(churn=1), adm.SeededNoise([0]), x.shape, x=x)


@pytest.mark.parametrize("rule", ["euler", "heun"])
def test_options_come_from_text_and_impossible_ones_are_refused(rule):
    built = lookup.build("sampling", f"{rule}:churn=80,churn_min=0.05,churn_max=50,churn_noise=1.003")
    assert (built.churn, built.churn_min, built.churn_max, built.churn_noise) == (80, 0.05, 50, 1.003)
    for options in ("churn=-1", "churn_min=3,churn_max=2", "churn_min=-1", "churn_noise=-1"):
        with pytest.raises(UsageError, match=rf"{rule}: .*(choose|give) "):
            lookup.build("sampling", f"{rule}:{options}")
