"""The multistep rules for x_0: DPM-Solver++ 2M, 3M and SDE, and what UniPC has in common with them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad

import adm
from adm.diffusion.grids import timesteps_of
from adm.sampling._log_snr import moments
from analytic import MixtureDenoiser, gaussian, linear_map
from odes import UNEVEN, Polynomial, mixture, no_noise

F64 = torch.float64
INF = math.inf
RULES = {
    "2m": adm.DPMSolver2M(),
    "3m": adm.DPMSolver3M(),
    "3m corrected": adm.DPMSolver3M("corrected"),
    "sde": adm.DPMSolverSDE(),
    "sde 0.5": adm.DPMSolverSDE(eta=0.5),
    "unipc 2": adm.UniPC(),
    "unipc 3": adm.UniPC(order=3),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_variance_of_the_sde_rule_converges_with_second_order(eta):
    """On N(0, 0.25) data its exact value at the last ratio is known, and linear_map knows the rule's."""
    variance, errors = 0.25, []
    for num in (40, 80, 160):
        schedule = adm.Schedule.from_sigmas(torch.logspace(math.log10(0.05), math.log10(80), num + 1, dtype=F64))
        chain = adm.Chain(schedule, range(1, num + 1), end=0)
        gain, noise = linear_map(gaussian(schedule, variance), chain, adm.DPMSolverSDE(eta=eta))
        first, last = float(chain[0].alpha_bar), float(chain[-1].alpha_bar_s)
        reached = gain**2 * (first * variance + 1 - first) + noise
        errors.append(abs(reached / (last * variance + 1 - last) - 1))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.25)
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("h", [1e-9, 1e-3, 0.3, 0.999, 1.0, 3.0, 12.0, 50.0, -0.7, -4.0])
def test_moments_are_the_integrals_that_they_stand_for(h):
    for k, value in enumerate(moments(torch.tensor(h, dtype=F64), 4)):
        integral, _ = quad(lambda v, k=k: abs(h) * math.exp((v - 1) * h) * v**k, 0, 1, epsabs=0, epsrel=1e-12)
        assert float(value) == pytest.approx(math.copysign(1, h) * integral, rel=1e-10)


def walked(rule, denoiser, chain=UNEVEN, x=None):
    """(x_t, x_s, the state after) of each step."""
    x = torch.full((1, 1, 1, 1), 0.7, dtype=F64) if x is None else x
    state, steps = rule.init(), []
    for link in chain:
        x_s, state = rule.step(lambda x_t, t: denoiser(x_t, t), x, link, no_noise, state)
        steps.append((x, x_s, state))
        x = x_s
    return steps


def test_3m_corrected_is_exact_where_x_0_is_a_parabola_and_3m_published_is_not():
    denoiser = Polynomial(0.3, -0.5, 0.8)
    for d2, holds in (("corrected", True), ("published", False)):
        steps = walked(adm.DPMSolver3M(d2, reach=INF), denoiser)
        for link, (x_t, x_s, _) in list(zip(UNEVEN, steps, strict=True))[2:]:
            away = float((x_s - denoiser.exact_step(x_t, link)).abs())
            assert away < 1e-11 if holds else away > 1e-3


@every_rule
def test_a_constant_x_0_is_solved_exactly(rule):
    if isinstance(rule, adm.DPMSolverSDE):
        rule = adm.DPMSolverSDE(eta=0)
    denoiser = Polynomial(0.4)
    for link, (x_t, x_s, _) in zip(UNEVEN, walked(rule, denoiser), strict=True):
        torch.testing.assert_close(x_s, denoiser.exact_step(x_t, link), rtol=0, atol=1e-12)


def test_2m_is_algorithm_2_of_its_paper():
    """Written as there, over three uneven steps, with D_i = (1 + 1 / (2 r_i)) x_0(i - 1) - 1 / (2 r_i) x_0(i - 2)."""
    denoiser = Polynomial(0.3, -0.5, 0.8)
    steps = walked(adm.DPMSolver2M(reach=INF), denoiser)
    lam = [math.log(float(link.alpha / link.sigma)) for link in UNEVEN]
    for i in (1, 2, 3):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        r = before / h
        D = (1 + 1 / (2 * r)) * denoiser.at(lam[i]) - 1 / (2 * r) * denoiser.at(lam[i - 1])
        link, (x_t, x_s, _) = UNEVEN[i], steps[i]
        expected = link.sigma_s / link.sigma * x_t - link.alpha_s * math.expm1(-h) * D
        torch.testing.assert_close(x_s, expected, rtol=1e-12, atol=0)


def test_the_sde_rule_without_noise_is_2m_to_the_bit():
    schedule = adm.cosine(1000)
    chain = adm.Chain(schedule, timesteps_of(schedule, "karras:7"))
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    plain, sde = (
        adm.sample(mixture(schedule), chain, r, None, x.shape, x=x)
        for r in (adm.DPMSolver2M(), adm.DPMSolverSDE(eta=0))
    )
    assert torch.equal(plain, sde)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_the_first_step_of_the_sde_rule_is_ddims_at_the_same_eta(eta):
    schedule = adm.cosine(1000)
    x, z = torch.randn(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    for link in adm.Chain(schedule, [3, 400, 700.5, 990]):
        ours, ddim = (
            rule.step(mixture(schedule), x, link, lambda draw: z, rule.init())[0]
            for rule in (adm.DPMSolverSDE(eta=eta), adm.DDIM(eta=eta))
        )
        torch.testing.assert_close(ours, ddim, rtol=0, atol=1e-12)


@every_rule
def test_on_equal_steps_in_lambda_the_reach_does_nothing(rule):
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, timesteps_of(schedule, "log-snr:12"))
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise = adm.SeededNoise(range(4), F64)
    ours, published = (
        adm.sample(mixture(schedule), chain, r, noise, x.shape, x=x) for r in (rule, type(rule)(**fields(rule, INF)))
    )
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-9)


def fields(rule, reach):
    return {**vars(rule), "reach": reach}


@pytest.mark.parametrize("grid", ["2,3,1", "3,4,8", "even:10"])
@every_rule
def test_a_long_step_after_a_short_one_enlarges_nothing(rule, grid):
    """Released sections put two timesteps side by side: the exact deviation of the samples is 0.5."""
    chain = adm.Chain(adm.cosine(1000), timesteps_of(adm.cosine(1000), grid))
    gain, noise = linear_map(gaussian(chain.schedule, 0.25), chain, rule)
    assert 0.25 < math.sqrt(gain**2 + noise) < 0.65


def test_published_such_a_step_ruins_the_sde_rule_and_unipc():
    chain = adm.Chain(adm.cosine(1000), timesteps_of(adm.cosine(1000), "2,3,1"))
    for rule in (adm.DPMSolverSDE(reach=INF), adm.UniPC(reach=INF)):
        gain, noise = linear_map(gaussian(chain.schedule, 0.25), chain, rule)
        assert math.sqrt(gain**2 + noise) > 1.5


@every_rule
def test_the_last_step_is_x_0_to_the_bit(rule):
    schedule = adm.cosine(1000)
    chain, seen = adm.Chain(schedule, timesteps_of(schedule, "log-snr:5")), []
    out = adm.sample(
        mixture(schedule), chain, rule, adm.SeededNoise(range(3)), (3, 2, 1, 1), on_step=lambda e: seen.append(e)
    )
    assert torch.equal(out, seen[-1].prediction.x0)


STEADY = [adm.DPMSolver2M(), adm.DPMSolverSDE(eta=0.5), adm.UniPC()]


class Bayes:
    """grad log p(y | x_t) = alpha (E[x_0 | x_t, y] - E[x_0 | x_t]) / sigma^2, for the last component: never 0 / 0."""

    def __init__(self, everything):
        self.schedule, self.all = everything.schedule, everything
        self.part = MixtureDenoiser(everything.schedule, everything.means[2:], everything.variances[2:])

    def grad_log_prob(self, x_t, t, label):
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return alpha / sigma**2 * (self.part(x_t, t).x0 - self.all(x_t, t).x0)


@pytest.mark.parametrize("grid", ["log-snr:10", "karras:10", "even:10", "strided:10"])
@every_rule
def test_ten_steps_guided_at_scale_10_on_the_cosine_schedule_stay_in_bounds(rule, grid):
    """Ten equal steps in lambda are too long for 3M, UniPC-3 and the SDE at this scale: those only stay finite."""
    schedule = adm.cosine(1000)
    everything = mixture(schedule)
    guided = adm.guide(everything, adm.ClassifierGuidance(Bayes(everything), scale=10))
    cond = adm.Condition(label=torch.zeros(8, dtype=torch.long))
    chain = adm.Chain(schedule, timesteps_of(schedule, grid))
    x = adm.sample(guided, chain, rule, adm.SeededNoise(range(8), F64), (8, 2, 1, 1), cond)
    assert torch.isfinite(x).all()
    if grid != "log-snr:10" or rule in STEADY:
        assert float(x.abs().max()) < 30


@pytest.mark.parametrize(
    "rule", [adm.DPMSolver2M(), adm.DPMSolver3M(), adm.DPMSolverSDE(eta=0), adm.UniPC(), adm.UniPC(order=3)], ids=str
)
def test_inversion_and_back_is_nearer_than_ddims(rule):
    schedule = adm.Schedule.from_sigmas(torch.logspace(math.log10(0.002), math.log10(80), 51, dtype=F64))
    down, x0 = adm.Chain(schedule, range(1, 51), end=0), torch.ones(1, 1, 1, 1, dtype=F64)
    up = adm.Chain(schedule, range(51)).inverted()[:-1]  # the last link goes on to pure noise

    def round_trip(rule):
        x = adm.sample(gaussian(schedule, 0.25), up, rule, None, x0.shape, x=x0)
        return abs(float(adm.sample(gaussian(schedule, 0.25), down, rule, None, x0.shape, x=x)) - 1)

    assert round_trip(rule) < round_trip(adm.DDIM()) / 5
    whole = adm.Chain(schedule, range(51)).inverted()
    assert torch.isfinite(adm.sample(gaussian(schedule, 0.25), whole, rule, None, x0.shape, x=x0)).all()


def test_noise_on_the_way_up_is_refused():
    chain = adm.Chain(adm.linear(100), [0, 40]).inverted()
    x = torch.zeros(1, 1, 1, 1, dtype=F64)
    with pytest.raises(ValueError, match="use eta=0 on an inverted chain"):
        adm.sample(gaussian(chain.schedule, 0.25), chain, adm.DPMSolverSDE(), adm.SeededNoise([0]), x.shape, x=x)


@every_rule
def test_a_step_with_a_memory_is_differentiable_through_all_before(rule):
    schedule = adm.cosine(1000)
    chain = adm.Chain(schedule, [100, 300, 500, 700], end=20)
    z = torch.randn(4, 1, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)

    def walk(x):
        state = rule.init()
        for i, link in enumerate(chain):
            x, state = rule.step(mixture(schedule), x, link, lambda draw, i=i: z[i], state)
        return x

    assert torch.autograd.gradcheck(walk, z[0].clone().requires_grad_())


@every_rule
def test_a_chain_for_each_image_is_as_each_by_itself(rule):
    schedule = adm.linear(1000)
    denoiser = mixture_at_each(schedule)
    chains = [adm.Chain(schedule, timesteps_of(schedule, grid)) for grid in ("log-snr:5", "karras:5", "even:5")]
    noise = torch.randn(6, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    x, state = noise[5], rule.init()
    for i in range(5):
        # Every link of the three at once, shape (3,).
        of_all = {name: torch.stack([getattr(c[i], name).double() for c in chains]) for name in TENSORS}
        of_all["last"] = of_all["last"].bool()
        x, state = rule.step(denoiser, x, replace(chains[0][i], **of_all), lambda draw, i=i: noise[i], state)
    for k, chain in enumerate(chains):
        recorded = adm.RecordedNoise(noise[[5, 0, 1, 2, 3, 4]][:, k : k + 1])
        alone = adm.sample(mixture(schedule), chain, rule, recorded, (1, 2, 1, 1))
        torch.testing.assert_close(x[k : k + 1], alone, rtol=0, atol=1e-10)


TENSORS = ("t", "s", "last", "alpha_bar", "alpha_bar_s", "beta", "beta_tilde", "log_beta", "log_beta_tilde")


def mixture_at_each(schedule):
    """The mixture's denoiser at a t for each image."""
    exact = mixture(schedule)

    def denoise(x_t, t):
        x0 = torch.cat([exact(x_t[k : k + 1], t[k]).x0 for k in range(len(x_t))])
        return adm.Prediction(x_t, x0, *schedule.alpha_sigma(t, x_t), torch.zeros((), dtype=F64))

    return denoise


@every_rule
def test_a_step_is_one_evaluation(rule):
    schedule, calls = adm.cosine(1000), []

    def counted(x_t, t, cond=adm.Condition()):
        calls.append(float(t))
        return mixture(schedule)(x_t, t)

    counted.schedule = schedule
    chain = adm.Chain(schedule, rule.timesteps(schedule, 9))
    adm.sample(counted, chain, rule, adm.SeededNoise([0]), (1, 2, 1, 1))
    assert calls == chain.timesteps.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adm.DPMSolver2M(reach=0), "reach 0: choose a positive number"),
        (lambda: adm.DPMSolver3M(reach=math.nan), "reach nan"),
        (lambda: adm.DPMSolver3M("half"), "choose published .* or corrected"),
        (lambda: adm.DPMSolverSDE(eta=1.5), "eta 1.5: choose a number from 0"),
        (lambda: adm.DPMSolverSDE(reach=-1), "reach -1"),
        (lambda: adm.UniPC(order=4), "order 4: choose 2 .* or 3"),
        (lambda: adm.UniPC(b="bh3"), "choose bh2 .* or bh1"),
        (lambda: adm.UniPC(reach=0), "reach 0"),
    ],
)
def test_options_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
