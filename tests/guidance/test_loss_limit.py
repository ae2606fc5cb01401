"""How far a loss may move x_0: with an exact denoiser any rule does as asked; with a wrong one, thanks to the limit."""

import math

import pytest
import torch

import adm
from adm.diffusion.schedule import expand
from analytic import MixtureDenoiser, gaussian

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
SHORT = [(adm.DPMSolver2M(), 8), (adm.Heun(), 8), (adm.UniPC(), 8), (adm.Euler(), 10), (adm.DDIM(), 25)]
NOISY = [(adm.DPMSolverSDE(), 25), (adm.DDPM(), 50), (adm.DDPM("mean"), 50)]
"""Each on its own grid, which for those of SHORT but DDIM begins at a noise-to-signal ratio of 164."""

STRIPES = torch.tensor([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0]], dtype=F64) * 0.8
"""Means of three kinds of image with four pixels; the first two pixels do not tell the first kind from the third."""


def sampled(denoiser, sampler, links, *guidances, num=32, pixels=4):
    grid = getattr(sampler, "timesteps", None)
    timesteps = adm.spaced(1000, links) if grid is None else grid(SCHEDULE, links)
    chain = adm.Chain(SCHEDULE, timesteps)
    noise = adm.SeededNoise(range(num), F64)
    return adm.sample(adm.guide(denoiser, *guidances), chain, sampler, noise, (num, pixels, 1, 1))


def grey(x0):
    return x0.flatten(1).mean(1)


class Overconfident(MixtureDenoiser):
    """Whose eps is exact but for a part of x_t: as small an error as that of a network, and of no account unguided.

    eps + e x_t stands for x_0 - e sigma / alpha x_t, so the error of d x_0 / d x_t is -e sigma / alpha: negative, where
    the exact one is a covariance."""

    e = 0.02

    def __call__(self, x_t, t, cond=adm.Condition()):
        exact = super().__call__(x_t, t, cond)
        wrong = exact.x0 - self.e * exact.sigma / exact.alpha * x_t
        return adm.Prediction(x_t, wrong, exact.alpha, exact.sigma, exact.var_frac)


KINDS = MixtureDenoiser(SCHEDULE, torch.tensor([[0.5] * 4, [-0.5] * 4], dtype=F64), torch.tensor([0.04, 0.04]))
"""Bright images and dark ones."""


@pytest.mark.parametrize(
    ("sampler", "links", "limit"),
    [(*rule, limit) for limit in (1.0, math.inf) for rule in SHORT] + [(*rule, 1.0) for rule in NOISY],
    ids=str,
)
def test_with_the_exact_denoiser_every_rule_makes_darker_what_is_asked_to_be_darker(sampler, links, limit):
    """Sigma^2 / alpha d x_0 / d x_t is then the covariance of the images behind x_t, however large sigma is."""
    brightness = [
        float(grey(sampled(KINDS, sampler, links, adm.LossGuidance(grey, scale, limit))).mean())
        for scale in (-2.0, 0.0, 2.0)
    ]
    assert brightness[0] > brightness[1] + 0.1 and brightness[1] > brightness[2] + 0.1, brightness


def test_a_small_error_of_the_network_makes_the_loss_do_anything_unless_it_is_limited():
    """At sigma / alpha = 164 an error e of eps lets the gradient move x_0 by e sigma^3 / alpha^2, hundreds of times the
    range of images. The rules solve one equation, so limited they end alike; without a limit some end on the wrong
    side, some out of the images' range."""
    wrong = Overconfident(SCHEDULE, KINDS.means, KINDS.variances)

    def brightness(*guidances):
        return [float(grey(sampled(wrong, sampler, links, *guidances)).mean()) for sampler, links in SHORT[:4]]

    plain = brightness()
    limited, unlimited = brightness(adm.LossGuidance(grey, 2.0, 1.0)), brightness(adm.LossGuidance(grey, 2.0, math.inf))
    assert max(plain) - min(plain) < 0.05, "unguided the error is of no account"
    assert max(limited) < min(plain) - 0.1 and max(limited) - min(limited) < 0.25
    assert max(unlimited) > max(plain) + 0.5 and min(unlimited) < -1.5, "the twin"


@pytest.mark.parametrize("scale", [3.0, 30.0])
@pytest.mark.parametrize(("sampler", "links"), [(rule, max(15, links)) for rule, links in [*SHORT, *NOISY]], ids=str)
def test_what_is_not_known_follows_from_what_is(sampler, links, scale):
    """Of three kinds of image two pixels are given that only the second has: the other two are the second's as well,
    by every rule, and at any strength, since the limit bounds a step that would overshoot."""
    kinds = MixtureDenoiser(SCHEDULE, STRIPES, torch.full((3,), 0.01))
    second = STRIPES[1].reshape(4, 1, 1)

    def error_of_the_known(x0):
        return (x0 - second)[:, :2].square().flatten(1).sum(1)

    plain = sampled(kinds, sampler, links)
    found = sampled(kinds, sampler, links, adm.LossGuidance(error_of_the_known, scale, 1.0))
    of_the_second = (found - second).flatten(1).square().mean(1).sqrt() < 0.3
    assert ((plain - second).flatten(1).square().mean(1).sqrt() < 0.3).double().mean() < 0.5
    assert of_the_second.double().mean() > 0.95


X = torch.tensor([[-0.3, 0.7], [0.2, -0.1], [0.8, 2.5], [-3.0, 0.0]], dtype=F64).reshape(4, 2, 1, 1)


def weighted(x0):
    return x0.flatten(1) @ torch.tensor([3.0, -5.0], dtype=x0.dtype)


@pytest.mark.parametrize("t", [0, 300, 900, torch.tensor([5, 300, 600, 999])])
@pytest.mark.parametrize("limit", [0.5, 1.0, 4.0])
def test_x_0_goes_as_far_as_the_bound_and_no_further_pixel_by_pixel(t, limit):
    """x_0 + shift, held between the bounds; where x_0 lies outside by itself, held there, but free to come back."""
    denoiser = gaussian(SCHEDULE, 0.5)
    alpha, sigma = (expand(table, X) for table in SCHEDULE.alpha_sigma(t, X))

    class AtEach(MixtureDenoiser):
        def __call__(self, x_t, t, cond=adm.Condition()):
            x0 = alpha * 0.5 / (alpha**2 * 0.5 + sigma**2) * x_t
            return adm.Prediction(x_t, x0, alpha, sigma, torch.zeros(()))

    plain = AtEach(SCHEDULE, denoiser.means, denoiser.variances)
    free, held = (
        prediction.fold(prediction.guidance(X, t)).x0
        for prediction in (
            adm.guide(plain, adm.LossGuidance(weighted, 2.0, bound))(X, t) for bound in (math.inf, limit)
        )
    )
    x0 = plain(X, t).x0
    lowest, highest = x0.clamp(max=-limit), x0.clamp(min=limit)
    torch.testing.assert_close(held, torch.minimum(torch.maximum(free, lowest), highest))
    assert ((free - held).abs() > 0.1).any() or limit == 4.0 or t == 0


def test_a_gradient_within_the_bounds_is_the_same_to_the_bit():
    denoiser = gaussian(SCHEDULE, 0.25)
    x = X.clamp(-0.4, 0.4)
    held, free = (adm.guide(denoiser, adm.LossGuidance(weighted, 0.1, bound))(x, 300) for bound in (1.0, math.inf))
    assert torch.equal(held.guidance(x, 300), free.guidance(x, 300))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("inside", [True, False])
def test_at_clean_data_it_is_finite_and_can_be_differentiated(dtype, inside):
    """sigma is 0 there: whatever the gradient, it moves nothing."""
    x = (X if inside else 3 * X).to(dtype).requires_grad_()
    prediction = adm.guide(gaussian(SCHEDULE, 0.25), adm.LossGuidance(weighted, limit=1.0))(x, -1)
    found = prediction.guidance(x, -1)
    assert found.isfinite().all() and torch.equal(prediction.fold(found).x0, prediction.x0)
    (slope,) = torch.autograd.grad((prediction.x0 + found).sum(), x)
    assert slope.isfinite().all()


def test_the_sum_of_losses_is_bounded_and_other_bounds_are_their_own():
    """Two of one limit are one loss; two that pull apart do not each use up the room."""
    denoiser = gaussian(SCHEDULE, 0.5)

    def moved(*guidances):
        prediction = adm.guide(denoiser, *guidances)(X, 600)
        return prediction.fold(prediction.guidance(X, 600)).x0

    both = moved(adm.LossGuidance(weighted, 2.0, 1.0), adm.LossGuidance(weighted, 1.0, 1.0))
    torch.testing.assert_close(both, moved(adm.LossGuidance(weighted, 3.0, 1.0)))
    against = moved(adm.LossGuidance(weighted, 50.0, 1.0), adm.LossGuidance(weighted, -50.0, 1.0))
    torch.testing.assert_close(against, denoiser(X, 600).x0)
    wide, narrow = adm.LossGuidance(weighted, 2.0, 2.0), adm.LossGuidance(weighted, 2.0, 0.5)
    torch.testing.assert_close(moved(wide, narrow), moved(wide) + moved(narrow) - denoiser(X, 600).x0)


def test_unless_told_otherwise_the_limit_is_there_where_x_0_was_bounded_before():
    x = torch.randn(8, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64) * 3
    wrong = Overconfident(SCHEDULE, KINDS.means, KINDS.variances)

    def gradient(*guidances, **limit):
        prediction = adm.guide(wrong, *guidances, adm.LossGuidance(grey, 2.0, **limit))(x, 990)
        return prediction.guidance(x, 990)

    wide = adm.Clip(100.0)  # which clips nothing here
    for bound in ([adm.Clip()], [adm.DynamicThreshold()], [wide]):
        assert torch.equal(gradient(*bound), gradient(*bound, limit=1.0))
    assert torch.equal(gradient(), gradient(limit=math.inf))
    assert not torch.equal(gradient(wide), gradient(wide, limit=math.inf))
