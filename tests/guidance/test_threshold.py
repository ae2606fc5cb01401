"""Dynamic thresholding, and what both bounds owe to guided samples (T14)."""

import numpy as np
import pytest
import torch

import adm
from adm.runtime import lookup
from adm.sampling import timesteps_for
from analytic import MixtureClassifier, MixtureDenoiser

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.8, 0.3], [0.8, 0.5]], dtype=F64), torch.tensor([0.03, 0.05]))
GUIDE = adm.ClassifierGuidance(MixtureClassifier(MIXTURE, [0, 1]), 30.0)
COND = adm.Condition(label=torch.arange(6) % 2)


class Push:
    """log p(y | x_t) = x_t up to a constant: it never has enough."""

    schedule = SCHEDULE

    def grad_log_prob(self, x_t, t, label):
        return torch.ones_like(x_t)


WIDE = MixtureDenoiser(SCHEDULE, torch.zeros(1, 2), torch.tensor([4.0]))
PUSH = adm.ClassifierGuidance(Push(), 30.0)
SHAPE = (6, 2, 1, 1)
BOUNDS = [adm.Clip(after=True), adm.DynamicThreshold(after=True), adm.DynamicThreshold(0.6, after=True)]


class Fixed:
    """Predicts these x_0, whatever it is asked."""

    schedule = SCHEDULE

    def __init__(self, x0):
        self.x0 = x0

    def __call__(self, x_t, t, cond=adm.Condition()):
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        return adm.Prediction(x_t, self.x0, alpha, sigma, torch.zeros((), dtype=F64))


def pictures(n=4, size=9, spread=1.5):
    return spread * torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("quantile", [0.3, 0.9, 0.995, 1.0])
def test_it_is_the_published_formula_for_each_image(quantile):
    x0 = pictures() * torch.tensor([0.2, 1.0, 1.0, 3.0]).reshape(4, 1, 1, 1)
    found = adm.DynamicThreshold(quantile)(Fixed(x0))(x0, 300)
    expected = []
    for image in x0.numpy():
        s = max(1.0, np.quantile(np.abs(image), quantile))
        expected.append(np.clip(image, -s, s) / s)
    np.testing.assert_allclose(found.x0.numpy(), np.array(expected), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.eps, (x0 - found.alpha * found.x0) / found.sigma)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 2), (3, 3, 5, 7)])
@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.77, 1.0])
def test_images_of_any_size_have_quantiles(shape, quantile):
    x0 = 2 + torch.arange(float(torch.tensor(shape).prod()), dtype=F64).reshape(shape)
    s = np.quantile(x0.flatten(1).numpy(), quantile, axis=1).reshape(-1, 1, 1, 1)
    found = adm.DynamicThreshold(quantile).bound(x0).numpy()
    np.testing.assert_allclose(found, np.minimum(x0.numpy(), s) / s, rtol=1e-14)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("bound", [adm.Clip, adm.DynamicThreshold])
def test_t14_inside_the_range_of_images_nothing_changes_to_the_bit(bound, after):
    x0 = torch.linspace(-1, 1, 48, dtype=F64).reshape(1, 3, 4, 4)
    assert torch.equal(bound(after=after)(Fixed(x0))(x0, 300).x0, x0)


def test_quantile_1_rescales_and_clips_nothing():
    x0 = pictures()
    found = adm.DynamicThreshold(1.0).bound(x0)
    torch.testing.assert_close(found, x0 / x0.abs().amax((1, 2, 3), keepdim=True))


@pytest.mark.slow
def test_what_is_too_large_for_the_quantile_of_torch_is_not_too_large_here():
    x0 = torch.linspace(-3, 3, 2**24 + 2, dtype=torch.float32).reshape(2, 1, 1, -1)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x0.abs().flatten(), 0.995)
    assert float(adm.DynamicThreshold().bound(x0).abs().max()) == 1


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("sampler", lookup.available("sampling"))
def test_t14_samples_at_scale_30_are_bounded_by_any_rule(sampler, bound):
    rule = lookup.build("sampling", sampler)
    chain = adm.Chain(SCHEDULE, timesteps_for(rule, SCHEDULE, 10))
    noise = adm.SeededNoise(range(6), F64)

    def largest(*guidances):
        x = adm.sample(adm.guide(WIDE, PUSH, *guidances), chain, rule, noise, SHAPE, COND)
        return float(x.abs().max())

    assert largest(bound) <= 1
    assert not largest() <= 1.5  # nor is what overflows bounded


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
def test_after_acts_on_what_the_gradient_has_made(bound):
    x = adm.SeededNoise(range(6), F64).initial(SHAPE)
    found = adm.guide(MIXTURE, bound, GUIDE)(x, 200, COND)
    guided = GUIDE(MIXTURE)(x, 200, COND)
    folded = guided.fold(guided.guidance(x, 200))
    assert found.guidance is None and torch.equal(found.x0, bound.bound(folded.x0))
    assert float(folded.x0.abs().max()) > 1.5


def test_the_gradient_does_not_see_a_bound_before_it():
    x = adm.SeededNoise(range(6), F64).initial(SHAPE)
    found = adm.guide(MIXTURE, GUIDE, adm.DynamicThreshold())(x, 200, COND)
    torch.testing.assert_close(found.guidance(x, 200), GUIDE(MIXTURE)(x, 200, COND).guidance(x, 200))


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.01, float("nan")])
def test_a_quantile_is_a_share(quantile):
    with pytest.raises(ValueError, match=r"choose a share of the pixels between 0 and 1, such as 0\.995"):
        adm.DynamicThreshold(quantile)
