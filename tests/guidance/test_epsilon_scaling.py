"""Epsilon scaling, against its formula and closed forms."""

import pytest
import torch

import adm
from adm.diffusion.chain import Chain
from analytic import MixtureDenoiser, gaussian, linear_map
from labelled import LabelledMixture

F64 = torch.float64
SCHEDULE = adm.linear(1000)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.9], [0.9]], dtype=F64), torch.tensor([0.04, 0.09]))
X = torch.tensor([-1.2, 0.1, 0.8], dtype=F64).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("t", [0, 250, 250.5, 999])
@pytest.mark.parametrize(("factor", "slope"), [(1.006, 0.0), (0.98, 0.0), (1.01, 1e-5), (1.0, -1e-4)])
def test_eps_is_divided_and_x_0_follows(factor, slope, t):
    found, plain = adm.EpsilonScaling(factor, slope)(MIXTURE)(X, t), MIXTURE(X, t)
    torch.testing.assert_close(found.eps, plain.eps / (factor + slope * t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.alpha * found.x0 + found.sigma * found.eps, X, rtol=0, atol=1e-12)


def test_the_learned_variance_is_untouched_and_the_gradient_travels_on():
    chain = Chain(SCHEDULE, adm.spaced(1000, 10))
    plain = gaussian(SCHEDULE, 0.25, chain=chain)
    assert torch.equal(adm.EpsilonScaling(1.1)(plain)(X, chain[3].t).var_frac, plain(X, chain[3].t).var_frac)

    class Guided:
        schedule = SCHEDULE

        def __call__(self, x_t, t, cond=adm.Condition()):
            return adm.Prediction(**{**vars(MIXTURE(x_t, t)), "guidance": lambda x, t: 3 * x})

    assert torch.equal(adm.EpsilonScaling(1.1)(Guided())(X, 5).guidance(X, 5), 3 * X)


def test_factor_1_is_the_denoiser_itself():
    assert adm.EpsilonScaling(1.0)(MIXTURE) is MIXTURE
    assert adm.EpsilonScaling(1.0, 1e-6)(MIXTURE) is not MIXTURE


@pytest.mark.parametrize("factor", [1.01, 1.1])
def test_ddim_of_a_gaussian_spreads_as_the_scaled_noise_says(factor):
    """x / alpha moves by (change of sigma / alpha) * eps / factor, and eps = sigma x / (alpha^2 v + sigma^2)."""
    chain, variance, exact = Chain(SCHEDULE, adm.strided(1000, 50)), 0.25, 1.0
    for link in chain:
        eps = link.sigma * exact / (link.alpha_bar * variance + 1 - link.alpha_bar) / factor
        exact = link.alpha_s * (exact - link.sigma * eps) / link.alpha + link.sigma_s * eps
    gain, _ = linear_map(adm.EpsilonScaling(factor)(gaussian(SCHEDULE, variance)), chain, adm.DDIM())
    plain, _ = linear_map(gaussian(SCHEDULE, variance), chain, adm.DDIM())
    assert gain == pytest.approx(float(exact), rel=1e-12) and gain > 1.01 * plain


def test_it_may_stand_before_or_after_classifier_free_guidance():
    """Both are linear in eps."""
    mixture, cond = LabelledMixture(MIXTURE, [0, 1]), adm.Condition(label=[0, 1, 1])
    free, scaling = adm.ClassifierFreeGuidance(3.0), adm.EpsilonScaling(1.02, 1e-5)
    one, other = (adm.guide(mixture, *order)(X, 400, cond).x0 for order in ([free, scaling], [scaling, free]))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_t_may_differ_between_images():
    mixture, cond = LabelledMixture(MIXTURE, [0, 1]), adm.Condition(label=[0, 1, -1])
    guided, t = adm.EpsilonScaling(1.02, 1e-4)(mixture), torch.tensor([3, 400, 999])
    together = guided(X, t, cond)
    for i in range(3):
        alone = guided(X[i : i + 1], t[i], cond[i])
        torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("factor", "slope"), [(0.0, 0.0), (-1.0, 0.1), (1.0, -0.01)])
def test_a_divisor_that_is_not_positive_everywhere_is_refused(factor, slope):
    with pytest.raises(ValueError, match=r"at t = 0 and by .* at t = 999: choose them so that both are positive"):
        adm.EpsilonScaling(factor, slope)(MIXTURE)
