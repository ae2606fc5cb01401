"""Production samplers, guidance and losses on data whose answers are known in closed form (float64)."""

import math

import pytest
import torch

import adm
from analytic import GaussianGuide, MixtureClassifier, MixtureDenoiser, gaussian, linear_map

F64 = torch.float64


@pytest.mark.parametrize(("links", "error"), [(25, -0.1005), (50, -0.0516), (100, -0.0261), (200, -0.0132)])
def test_t2_ddim_on_a_gaussian_has_the_known_relative_error(links, error):
    sigmas = torch.logspace(math.log10(0.002), math.log10(80), links + 1, dtype=F64)
    schedule = adm.Schedule.from_sigmas(sigmas)
    chain = adm.Chain(schedule, range(1, links + 1), end=0)
    mu, variance, x_max = 0.0, 0.25, 1.0
    x = torch.full((1, 1, 1, 1), x_max, dtype=F64) / math.sqrt(1 + 80**2)
    out = adm.sample(gaussian(schedule, variance, mu), chain, adm.DDIM(), None, x.shape, x=x)
    reached = float(out) * math.sqrt(1 + 0.002**2)
    exact = mu + (x_max - mu) * math.sqrt((variance + 0.002**2) / (variance + 80**2))
    assert reached / exact - 1 == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize("count", [4, 10, 50, 250, 1000])
def test_t3_ancestral_sampling_is_exact_at_any_respacing(count):
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.spaced(1000, count))
    denoiser = gaussian(schedule, 0.25, chain=chain)
    gain, noise = linear_map(denoiser, chain, adm.DDPM())
    # x_T of the exact process, not N(0, 1): then the only loss is the noise that the last step leaves out.
    start = 0.25 * float(chain[0].alpha_bar) + 1 - float(chain[0].alpha_bar)
    assert gain**2 * start + noise == pytest.approx(0.249900, abs=5e-7)
    left_out = float(chain[-1].log_var(denoiser(torch.zeros(1, 1), chain[-1].t).var_frac).exp())
    assert gain**2 * start + noise + left_out == pytest.approx(0.25, abs=2e-5)


@pytest.mark.parametrize(("variance", "expected"), [("small", 0.0237), ("large", 0.715)])
def test_t3_fixed_variances_are_wrong_at_four_steps(variance, expected):
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.spaced(1000, 4))
    exact = gaussian(schedule, 0.25)

    def denoiser(x_t, t, cond):
        p = exact(x_t, t)
        frac = torch.tensor(0.0 if variance == "small" or t == 0 else 1.0, dtype=F64)
        return adm.Prediction(p.x_t, p.x0, p.alpha, p.sigma, frac)

    denoiser.schedule = schedule
    gain, noise = linear_map(denoiser, chain, adm.DDPM())
    assert gain**2 + noise == pytest.approx(expected, abs=6e-4)


T5 = {
    "x_t": {25: 0.64837, 50: 0.61458, 100: 0.59861, 250: 0.58932, 1000: 0.58474},
    "mean": {25: 0.60448, 50: 0.59299, 100: 0.58791, 250: 0.58506, 1000: 0.58368},
    "ddim": {25: 0.41305, 50: 0.45554, 100: 0.47748, 250: 0.49090, 1000: 0.49768},
}


@pytest.mark.parametrize(("algorithm", "count"), [(a, n) for a in T5 for n in T5[a]])
def test_t5_guided_gaussian(algorithm, count):
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.spaced(1000, count))
    prior, given, scale = 2.0, 1.0, 2.0
    guidance = adm.ClassifierGuidance(GaussianGuide(schedule, prior, given), scale=scale)
    denoiser = adm.guide(gaussian(schedule, prior, chain=chain), guidance)
    sampler = adm.DDIM() if algorithm == "ddim" else adm.DDPM(grad_at=algorithm)
    cond = adm.Condition(label=torch.zeros(count + 1, dtype=torch.long))
    gain, noise = linear_map(denoiser, chain, sampler, cond)
    assert gain**2 + noise == pytest.approx(T5[algorithm][count], abs=6e-6)


def mixture(schedule):
    means = torch.tensor([[-0.8, 0.1], [0.7, 0.6], [0.2, -0.9]], dtype=F64)
    return MixtureDenoiser(schedule, means, torch.tensor([0.04, 0.09, 0.02]), torch.tensor([0.5, 0.3, 0.2]))


@pytest.mark.parametrize("sampler", [adm.DDPM(), adm.DDIM(), adm.DDIM(eta=0.5)])
def test_t8_guiding_with_the_exact_classifier_is_the_conditional_model(sampler):
    """Folding grad log p(y | x_t) at scale 1 into the unconditional prediction gives E[x_0 | x_t, y]."""
    schedule = adm.cosine(1000)
    everything = mixture(schedule)
    classifier = MixtureClassifier(everything, [0, 0, 1])
    part = MixtureDenoiser(schedule, everything.means[:2], everything.variances[:2], everything.weights[:2])
    x = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    label = torch.zeros(8, dtype=torch.long)
    for t in (0, 10, 500, 980):
        p = adm.guide(everything, adm.ClassifierGuidance(classifier))(x, t, adm.Condition(label=label))
        assert p.guidance is not None
        torch.testing.assert_close(p.fold(p.guidance(x, t)).eps, part(x, t).eps, rtol=0, atol=1e-10)
    # After the gradient has been folded (Clip with a bound that is never reached), every sampler agrees.
    chain = adm.Chain(schedule, adm.strided(1000, 20))
    guided = adm.guide(everything, adm.ClassifierGuidance(classifier), adm.Clip(limit=1e12, after=True))
    noise = adm.SeededNoise(range(8), dtype=F64)
    ours = adm.sample(guided, chain, sampler, noise, x.shape, adm.Condition(label=label))
    torch.testing.assert_close(ours, adm.sample(part, chain, sampler, noise, x.shape), rtol=0, atol=1e-10)


def test_t8_ddim_at_eta_one_has_the_small_variance_and_its_mean():
    schedule = adm.linear(1000)
    chain = adm.Chain(schedule, adm.spaced(1000, 30))
    noise = adm.SeededNoise(range(5), dtype=F64)
    shape = (5, 2, 1, 1)
    ddim = adm.sample(mixture(schedule), chain, adm.DDIM(eta=1.0), noise, shape)
    torch.testing.assert_close(ddim, adm.sample(mixture(schedule), chain, adm.DDPM(), noise, shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("links", "error"), [(25, -0.191), (50, -0.1005), (100, -0.0516), (200, -0.0261)])
def test_t7_ddim_inversion_and_back_is_first_order(links, error):
    """Encoding on the inverted links and decoding: the factor is (1 + e)^2 with T2's e, of twice the links."""
    sigmas = torch.logspace(math.log10(0.002), math.log10(80), links + 1, dtype=F64)
    schedule = adm.Schedule.from_sigmas(sigmas)
    denoiser = gaussian(schedule, 0.25)
    down = adm.Chain(schedule, range(1, links + 1), end=0)
    x0 = torch.ones(1, 1, 1, 1, dtype=F64)
    x, top = x0, len(schedule.alpha_bar) - 1
    # The last inverted link goes to pure noise; stop at the schedule's top to come back from there.
    for link in adm.Chain(schedule, range(links + 1)).inverted():
        if int(link.t) < top:
            x, _ = adm.DDIM().step(lambda x_t, t: denoiser(x_t, t), x, link, lambda draw: None, None)
    back = adm.sample(denoiser, down, adm.DDIM(), None, x.shape, x=x)
    assert float(back / x0) - 1 == pytest.approx(error, abs=1.5e-3)


def test_noise_on_the_way_up_is_refused():
    schedule = adm.linear(100)
    chain = adm.Chain(schedule, [0, 40]).inverted()
    x = torch.zeros(1, 1, 1, 1, dtype=F64)
    with pytest.raises(ValueError, match="only without noise; use eta=0"):
        adm.sample(gaussian(schedule, 0.25), chain, adm.DDIM(eta=0.5), adm.SeededNoise([0]), x.shape, x=x)


def test_a_network_without_weights_can_be_sampled():
    """The exact eps of N(0, 1) data as the network of a DiffusionModel: every x_T stays N(0, 1) under DDIM."""

    class Exact(torch.nn.Module):
        def forward(self, x, t, label, low_res):
            return (1 - schedule.alpha_bar_at(t)).sqrt().reshape(-1, 1, 1, 1) * x

    schedule = adm.linear(1000)
    model = adm.DiffusionModel(Exact(), schedule, variance="small")
    assert model.device is None
    noise = adm.SeededNoise(range(3), F64)
    x_T = noise.initial((3, 1, 2, 2))
    chain = adm.Chain(schedule, adm.spaced(1000, 1000))
    x = adm.sample(model, chain, adm.DDIM(), noise, x_T.shape)
    torch.testing.assert_close(x, x_T, rtol=1e-2, atol=1e-3)
