"""UniPC's corrector: what it computes, and when it holds back."""

import itertools
import math

import pytest
import torch

import adm
from odes import UNEVEN, Polynomial, no_noise

F64 = torch.float64


def walk(rule, denoiser, replace=None):
    """(link, where the step left from, what it predicted) of each step; replace: i, x_s -> what comes in its place."""
    x, state, steps = torch.full((1, 1, 1, 1), 0.7, dtype=F64), rule.init(), []
    for i, link in enumerate(UNEVEN):
        x_s, state = rule.step(denoiser, x, link, no_noise, state)
        steps.append((link, state.x_t, x_s))
        x = x_s if replace is None else replace(i, x_s)
    return steps


@pytest.mark.parametrize(("order", "coefficients"), [(2, (0.3, -0.5, 0.8)), (3, (0.3, -0.5, 0.8, 0.2))])
def test_the_corrected_end_is_exact_for_polynomials_of_the_order(order, coefficients):
    """p predictions and the one at the end, p + 1, lie on one polynomial of degree p."""
    denoiser = Polynomial(*coefficients)
    steps = walk(adm.UniPC(order, reach=math.inf), denoiser)
    for (link, start, predicted), (_, corrected, _) in list(itertools.pairwise(steps))[order - 1 :]:
        exact = denoiser.exact_step(start, link)
        torch.testing.assert_close(corrected, exact, rtol=0, atol=1e-11)
        assert float((predicted - exact).abs()) > 1e-4


def test_unip_3_is_exact_for_a_parabola():
    denoiser = Polynomial(0.3, -0.5, 0.8)
    for link, start, predicted in walk(adm.UniPC(3, reach=math.inf), denoiser)[2:]:
        torch.testing.assert_close(predicted, denoiser.exact_step(start, link), rtol=0, atol=1e-11)


@pytest.mark.parametrize("b", ["bh1", "bh2"])
def test_unip_2_has_half_of_b_for_the_slope(b):
    """x_s = sigma_s / sigma_t x_t + alpha_s (1 - e^-h) x_0 + alpha_s B(h) / 2 (x_0 - x_0') / r, r = h' / h."""
    denoiser, lam = Polynomial(0.3, -0.5, 0.8), [math.log(float(link.alpha / link.sigma)) for link in UNEVEN]
    steps = walk(adm.UniPC(2, b, reach=math.inf), denoiser)
    for i in (1, 2, 3):
        link, start, predicted = steps[i]
        h, r = lam[i + 1] - lam[i], (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
        B = h if b == "bh1" else -math.expm1(-h)
        x0, before = denoiser.at(lam[i]), denoiser.at(lam[i - 1])
        expected = float(link.sigma_s / link.sigma) * start - float(link.alpha_s) * math.expm1(-h) * x0
        expected = expected + float(link.alpha_s) * B / 2 * (x0 - before) / r
        torch.testing.assert_close(predicted, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [2, 3])
def test_what_takes_the_place_of_an_end_is_not_corrected(order):
    """And what was there has no trace: with predictions that x_t does not change, all that follows is the same."""
    rule, denoiser = adm.UniPC(order), Polynomial(0.3, -0.5, 0.8)
    put = torch.full((1, 1, 1, 1), -0.2, dtype=F64)
    steps = walk(rule, denoiser, lambda i, x_s: put if i == 2 else x_s)
    assert steps[3][1] is put
    assert all(corrected is not predicted for (_, _, predicted), (_, corrected, _) in itertools.pairwise(steps[3:]))

    def ends(x_T):
        x = torch.full((1, 1, 1, 1), x_T, dtype=F64)
        return adm.sample(
            denoiser, UNEVEN, rule, None, x.shape, x=x, on_step=lambda event: put if event.i == 2 else None
        )

    assert torch.equal(ends(0.7), ends(-3.0))


def test_watching_is_not_taking_the_place():
    denoiser, x = Polynomial(0.3, -0.5, 0.8), torch.full((1, 1, 1, 1), 0.7, dtype=F64)
    plain, watched = (
        adm.sample(denoiser, UNEVEN, adm.UniPC(), None, x.shape, x=x, on_step=on_step)
        for on_step in (None, lambda event: event.x_s)
    )
    assert torch.equal(plain, watched)
