"""iPNDM: its weights against the integrals they stand for, the rule by hand, and identities."""

import itertools
import math

import pytest
import torch

import adm
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule
from adm.runtime import lookup
from adm.runtime.errors import UsageError
from analytic import GaussianGuide, MixtureDenoiser, gaussian, linear_map

F64 = torch.float64


class Slope:
    """A denoiser whose eps is sigma^degree, sigma the noise-to-signal ratio, whatever x is."""

    def __init__(self, schedule, degree):
        self.schedule, self.degree = schedule, degree

    def __call__(self, x_t, t, cond=adm.Condition()):
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return adm.Prediction(x_t, (x_t - sigma * (sigma / alpha) ** self.degree) / alpha, alpha, sigma, sigma * 0)


def misses(order, degree):
    """Of each step, from sigma 4 to 1 in even steps: how far x / alpha lands from the integral of sigma^degree."""
    sigmas = torch.linspace(1, 4, 9, dtype=F64)
    schedule = Schedule.from_sigmas(sigmas)
    chain, found = adm.Chain(schedule, range(1, 9), end=0), []

    def on_step(event):
        (x, sigma), (x_s, sigma_s) = (
            (float(x / schedule.alpha_sigma(t, x)[0]), float(sigmas[t]))
            for x, t in ((event.x_t, event.t), (event.x_s, event.s))
        )
        found.append(x_s - x - (sigma_s ** (degree + 1) - sigma ** (degree + 1)) / (degree + 1))

    x = torch.ones(1, 1, 1, 1, dtype=F64)
    adm.sample(Slope(schedule, degree), chain, adm.IPNDM(order), None, x.shape, x=x, on_step=on_step)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_each_order_is_exact_for_slopes_of_one_degree_less_and_no_more(order):
    """Adams-Bashforth's defining property, on even steps, once the rule has the values that it needs."""
    for degree in range(order):
        assert misses(order, degree)[order - 1 :] == pytest.approx([0] * (9 - order), abs=1e-11)
    assert min(map(abs, misses(order, order)[order - 1 :])) > 1e-3
    for start in range(order - 1):  # the first steps are those of the lower orders
        assert misses(order, 4)[start] == pytest.approx(misses(start + 1, 4)[start], abs=1e-11)


class Crooked(torch.nn.Module):
    """A network that is no exact solution of anything."""

    def forward(self, x, t, label=None, low_res=None):
        return torch.sin(2 * x + t.reshape(-1, 1, 1, 1) / 100) - 0.3 * x


def test_the_chain_is_the_published_rule_by_hand():
    """Fourth order with warm-up by lower ones, in EDM's coordinates, and x_0 at the end."""
    model = adm.DiffusionModel(Crooked(), adm.linear(1000), "eps", "small")
    chain = adm.Chain(model.schedule, adm.spaced(1000, 7))
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    ours = adm.sample(model, chain, adm.IPNDM(), None, x.shape, x=x)
    alpha_bars = [float(model.schedule.alpha_bar[t]) for t in chain.timesteps] + [1.0]
    y, past = x / math.sqrt(alpha_bars[0]), []
    for t, (here, there) in zip(chain.timesteps, itertools.pairwise(alpha_bars), strict=True):
        past.append(Crooked()(y * math.sqrt(here), t.expand(3)))
        match past[-4:]:
            case [d]:
                slope = d
            case [c, d]:
                slope = (3 * d - c) / 2
            case [b, c, d]:
                slope = (23 * d - 16 * c + 5 * b) / 12
            case [a, b, c, d]:
                slope = (55 * d - 59 * c + 37 * b - 9 * a) / 24
        sigma, sigma_s = (math.sqrt((1 - value) / value) for value in (here, there))
        y = y - sigma * past[-1] if there == 1 else y + (sigma_s - sigma) * slope
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [adm.linear(1000), adm.cosine(1000)])
def test_t8_the_first_order_is_ddim(schedule):
    means = torch.tensor([[-0.8, 0.1], [0.7, 0.6], [0.2, -0.9]], dtype=F64)
    denoiser = MixtureDenoiser(schedule, means, torch.tensor([0.04, 0.09, 0.02]))
    chain = adm.Chain(schedule, adm.spaced(1000, 12)[:-1])
    x = adm.SeededNoise(range(4), F64).initial((4, 2, 1, 1))
    for walked in (chain, chain.inverted()):
        a, b = (adm.sample(denoiser, walked, sampler, None, x.shape, x=x) for sampler in (adm.IPNDM(1), adm.DDIM()))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    single = [adm.sample(denoiser, chain[-1:], s, None, x.shape, x=x) for s in (adm.IPNDM(), adm.DDIM())]
    torch.testing.assert_close(*single, rtol=0, atol=1e-12)


def test_the_last_step_is_x_0_as_predicted():
    denoiser, seen = gaussian(adm.linear(1000), 0.25), []
    chain = adm.Chain(denoiser.schedule, adm.spaced(1000, 9))
    x = adm.sample(denoiser, chain, adm.IPNDM(), adm.SeededNoise([0], F64), (1, 1, 4, 4), on_step=seen.append)
    assert torch.equal(x, seen[-1].prediction.x0)


def test_it_is_guided_as_the_ode_is():
    """T5: the exact classifier at scale 2 makes the ODE's variance 2^(1 - 2) from a = 2, b = 1."""
    schedule = adm.edm(1000)
    denoiser = adm.guide(gaussian(schedule, 2.0), adm.ClassifierGuidance(GaussianGuide(schedule, 2.0, 1.0), scale=2.0))
    chain, cond = adm.Chain(schedule, log_snr(schedule, 60)), adm.Condition(label=torch.zeros(61, dtype=torch.long))
    gain, noise = linear_map(denoiser, chain, adm.IPNDM(), cond)
    assert noise == 0 and gain**2 == pytest.approx(0.5, rel=5e-3)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_remembers_no_more_than_it_needs(order):
    rule, denoiser = adm.IPNDM(order), gaussian(adm.linear(1000), 0.25)
    x, state = torch.ones(1, 1, 1, 1), rule.init()
    for link in adm.Chain(denoiser.schedule, adm.spaced(1000, 6)):
        x, state = rule.step(lambda x, t: denoiser(x, t), x, link, lambda draw: None, state)
    assert len(state) == order - 1


def test_an_order_that_there_is_not_is_refused():
    for order in (0, 5):
        with pytest.raises(UsageError, match=rf"ipndm: order {order}: choose 1 \(DDIM\) to 4"):
            lookup.build("sampling", f"ipndm:order={order}")
