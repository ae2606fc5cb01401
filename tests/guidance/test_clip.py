"""Bounding x_0, before the gradient and after it."""

from dataclasses import replace

import pytest
import torch

import adm
from analytic import MixtureClassifier, MixtureDenoiser

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-2.0], [2.0]], dtype=F64), torch.tensor([0.04, 0.09]))
GUIDE = adm.ClassifierGuidance(MixtureClassifier(MIXTURE, [0, 1]), 3.0)
COND = adm.Condition(label=[0, 1, 0])
X = torch.tensor([-1.9, 0.1, 2.5], dtype=F64).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("limit", [1.0, 0.5, 100.0])
def test_x_0_is_clamped_and_eps_follows(limit):
    p, plain = adm.guide(MIXTURE, adm.Clip(limit))(X, 200), MIXTURE(X, 200)
    torch.testing.assert_close(p.x0, plain.x0.clamp(-limit, limit))
    torch.testing.assert_close(p.eps, (X - p.alpha * p.x0) / p.sigma)
    assert torch.equal(p.var_frac, plain.var_frac)
    assert bool((plain.x0.abs() > 1).any())


def test_the_gradient_does_not_see_the_clip():
    guided = adm.guide(MIXTURE, GUIDE, adm.Clip())(X, 200, COND)
    torch.testing.assert_close(guided.x0, MIXTURE(X, 200).x0.clamp(-1, 1))
    torch.testing.assert_close(guided.guidance(X, 200), GUIDE(MIXTURE)(X, 200, COND).guidance(X, 200))
    # Folding it in leads out of the bounds again, as in the released code.
    assert bool((guided.fold(guided.guidance(X, 200)).x0.abs() > 1).any())


def test_after_clamps_what_the_gradient_has_made():
    p = adm.guide(MIXTURE, adm.Clip(after=True), GUIDE)(X, 200, COND)
    unclipped = GUIDE(MIXTURE)(X, 200, COND)
    folded = unclipped.fold(unclipped.guidance(X, 200))
    assert p.guidance is None
    torch.testing.assert_close(p.x0, folded.x0.clamp(-1, 1))
    assert not torch.allclose(p.x0, adm.guide(MIXTURE, GUIDE, adm.Clip())(X, 200, COND).x0)


def test_after_bounds_what_ddim_returns_and_before_alone_does_not():
    chain = adm.Chain(SCHEDULE, [200])
    before, both = [adm.Clip()], [adm.Clip(), adm.Clip(after=True)]
    largest = [
        float(adm.sample(adm.guide(MIXTURE, GUIDE, *clips), chain, adm.DDIM(), None, X.shape, COND, x=X).abs().max())
        for clips in (before, both)
    ]
    assert largest[0] > 1 >= largest[1]


def test_clipping_twice_is_clipping_once():
    once, twice = (adm.guide(MIXTURE, *[adm.Clip()] * n)(X, 200) for n in (1, 2))
    assert torch.equal(once.x0, twice.x0) and torch.equal(once.eps, twice.eps)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_bound_must_be_positive(limit):
    with pytest.raises(ValueError, match="choose a positive bound"):
        adm.Clip(limit)


def test_a_function_is_innermost_and_an_unknown_stage_is_refused():
    def doubled(denoiser):
        def predict(x_t, t, cond=adm.Condition()):
            prediction = denoiser(x_t, t, cond)
            return replace(prediction, x0=2 * prediction.x0)

        predict.schedule = denoiser.schedule
        return predict

    clipped = adm.guide(MIXTURE, adm.Clip(limit=0.1), doubled)(X, 300)
    torch.testing.assert_close(clipped.x0, (2 * MIXTURE(X, 300).x0).clamp(-0.1, 0.1))
    doubled.stage = "later"
    with pytest.raises(ValueError, match="stage 'later' does not exist: give the guidance one of mix, clip"):
        adm.guide(MIXTURE, doubled)


def test_a_plain_clip_leaves_the_gradient_alone_even_around_it():
    """The gradient never sees the clip: only `after` folds it."""
    guided = adm.guide(MIXTURE, GUIDE)
    around, flat = adm.Clip()(guided)(X, 300, COND), adm.guide(MIXTURE, adm.Clip(), GUIDE)(X, 300, COND)
    assert torch.equal(around.x0, flat.x0)
    assert torch.equal(around.guidance(X, 300), flat.guidance(X, 300))
    assert adm.Clip(after=True)(guided)(X, 300, COND).guidance is None
