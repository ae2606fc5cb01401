"""Guidance by a loss of x_0, against what is known in closed form for Gaussian data and linear measurements."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

import adm
from adm.nn import UNet, UNetConfig
from analytic import MixtureClassifier, MixtureDenoiser, gaussian

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.9, 0.2], [0.9, -0.4]], dtype=F64), torch.tensor([0.04, 0.09]))
X = torch.tensor([[-0.3, 0.7], [0.2, -0.1], [0.8, 1.5]], dtype=F64).reshape(3, 2, 1, 1)


def square(x0):
    return 0.5 * x0.square().flatten(1).sum(1)


def asked(denoiser, x=X, t=300, cond=adm.Condition()):
    prediction = denoiser(x, t, cond)
    return prediction, prediction.guidance(x, t)


class Measured:
    """y = H x_0 + s n of data N(m, v I): everything about p(x_0 | y) in closed form, by numpy's linear algebra."""

    H = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 1.5]], dtype=F64)
    y = torch.tensor([0.7, -1.1], dtype=F64)
    s, v, m = 0.5, 0.25, 0.3

    @classmethod
    def loss(cls, x0):
        return (x0.flatten(1) @ cls.H.T - cls.y).square().sum(1) / (2 * cls.s**2)

    @classmethod
    def data(cls):
        return MixtureDenoiser(SCHEDULE, torch.full((1, 3), cls.m, dtype=F64), torch.tensor([cls.v]))

    @classmethod
    def posterior_mean(cls):
        """m + v H^T (v H H^T + s^2 I)^-1 (y - H m)."""
        prior = torch.full((3,), cls.m, dtype=F64)
        spread = cls.v * cls.H @ cls.H.T + cls.s**2 * torch.eye(2, dtype=F64)
        return prior + cls.v * cls.H.T @ torch.linalg.solve(spread, cls.y - cls.H @ prior)


@pytest.mark.parametrize("t", [0, 250, 800, torch.tensor([10, 400])])
def test_the_gradient_of_a_linear_measurement_is_the_closed_form_through_the_denoiser(t):
    """x_0(x) = m + k (x - a m) with k = a v / (a^2 v + sigma^2), so -grad = k H^T (y - H x_0) / s^2."""
    x = torch.tensor([[0.4, -0.2, 1.0], [-1.0, 0.3, 0.1]], dtype=F64).reshape(2, 3, 1, 1)
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)
    k = alpha * Measured.v / (alpha**2 * Measured.v + sigma**2)
    x0 = Measured.m + k * (x - alpha * Measured.m)
    exact = k * (((Measured.y - x0.flatten(1) @ Measured.H.T) @ Measured.H) / Measured.s**2).reshape(x.shape)

    class AtEach(MixtureDenoiser):
        def __call__(self, x_t, t, cond=adm.Condition()):
            return adm.Prediction(x_t, Measured.m + k * (x_t - alpha * Measured.m), alpha, sigma, torch.zeros(()))

    data = Measured.data()
    denoiser = AtEach(SCHEDULE, data.means, data.variances) if isinstance(t, torch.Tensor) else data
    prediction, found = asked(adm.guide(denoiser, adm.LossGuidance(Measured.loss, 1.7)), x, t)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(found, 1.7 * exact)


def test_the_exact_likelihood_of_a_measurement_leads_to_the_posterior_mean():
    """For Gaussian data p(y | x_t) = N(y; H x_0(x_t), s^2 + H Cov H^T). With that spread in the loss the guided score
    is the posterior's, and the deterministic way from the middle of x_T ends at E[x_0 | y]."""
    chain = adm.Chain(SCHEDULE, adm.strided(1000, 250))
    data = Measured.data()
    spread = {}

    def loss(x0, cond):
        error = x0.flatten(1) @ Measured.H.T - Measured.y
        return 0.5 * (error * torch.linalg.solve(spread["now"], error.T).T).sum(1)

    class Told(MixtureDenoiser):
        def __call__(self, x_t, t, cond=adm.Condition()):
            alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
            cov = Measured.v * sigma**2 / (alpha**2 * Measured.v + sigma**2)
            spread["now"] = cov * Measured.H @ Measured.H.T + Measured.s**2 * torch.eye(2, dtype=F64)
            return super().__call__(x_t, t, cond)

    told = Told(SCHEDULE, data.means, data.variances)
    start = torch.zeros(1, 3, 1, 1, dtype=F64)
    found = adm.sample(adm.guide(told, adm.LossGuidance(loss)), chain, adm.DDIM(), None, start.shape, x=start)
    plain = adm.sample(data, chain, adm.DDIM(), None, start.shape, x=start)
    torch.testing.assert_close(found.flatten(), Measured.posterior_mean(), rtol=0, atol=0.01)
    assert (plain.flatten() - Measured.posterior_mean()).abs().max() > 0.3


@pytest.mark.parametrize("sampler", [adm.DDPM(), adm.DDIM()])
def test_samples_of_an_inverse_problem_fit_the_measurement(sampler):
    """With the fixed spread that users know, DPS is no exact posterior; what its samples say of y is near y even so."""
    chain = adm.Chain(SCHEDULE, adm.strided(1000, 50))
    losses = []
    for guidances in ([], [adm.LossGuidance(Measured.loss)]):
        denoiser = adm.guide(Measured.data(), *guidances)
        losses.append(
            Measured.loss(adm.sample(denoiser, chain, sampler, adm.SeededNoise(range(100), F64), (100, 3, 1, 1))).mean()
        )
    assert losses[1] < 0.3 * losses[0]


def test_the_scale_multiplies_and_gradients_of_others_add_up():
    classifier = MixtureClassifier(MIXTURE, [0, 1])
    cond = adm.Condition(label=[0, 1, 1])
    one = asked(adm.guide(MIXTURE, adm.LossGuidance(square)), cond=cond)[1]
    given = classifier.grad_log_prob(X, 300, cond.label)
    for guidances in (
        [adm.LossGuidance(square, 3.0), adm.ClassifierGuidance(classifier, 2.0)],
        [adm.ClassifierGuidance(classifier, 2.0), adm.LossGuidance(square, 3.0)],
        [adm.LossGuidance(square), adm.ClassifierGuidance(classifier, 2.0), adm.LossGuidance(square, 2.0)],
        [adm.LossGuidance(square), adm.LossGuidance(square, 2.0), adm.ClassifierGuidance(classifier, 2.0)],
    ):
        prediction, found = asked(adm.guide(MIXTURE, *guidances), cond=cond)
        torch.testing.assert_close(found, 3 * one + 2 * given)
        assert not found.requires_grad
        assert torch.equal(prediction.x0, MIXTURE(X, 300).x0) and not prediction.x0.requires_grad


class Counting(MixtureDenoiser):
    calls = 0

    def __call__(self, x_t, t, cond=adm.Condition()):
        self.calls += 1
        return super().__call__(x_t, t, cond)


def counting():
    return Counting(SCHEDULE, MIXTURE.means, MIXTURE.variances)


def test_one_evaluation_serves_the_prediction_and_the_gradients_of_all_losses_there():
    denoiser = counting()
    asked(adm.guide(denoiser, adm.LossGuidance(square), adm.LossGuidance(square, 2.0)))
    assert denoiser.calls == 1
    chain = adm.Chain(SCHEDULE, adm.strided(1000, 5))
    for sampler, evaluations in ((adm.DDIM(), 5), (adm.DDPM(), 5), (adm.DDPM("mean"), 10)):
        denoiser = counting()
        adm.sample(adm.guide(denoiser, adm.LossGuidance(square)), chain, sampler, adm.SeededNoise(range(3)), X.shape)
        assert denoiser.calls == evaluations


def test_elsewhere_it_is_evaluated_again():
    prediction = adm.guide(MIXTURE, adm.LossGuidance(square))(X, 300)
    for x, t in ((X + 0.1, 300), (X, 120), (X + 0.1, torch.tensor(120))):
        torch.testing.assert_close(
            prediction.guidance(x, t), asked(adm.guide(MIXTURE, adm.LossGuidance(square)), x, t)[1]
        )
    assert torch.equal(prediction.guidance(X, torch.tensor(300)), prediction.guidance(X, 300))


def test_a_condition_is_given_to_a_function_that_asks_for_it():
    def to_target(x0, cond):
        return (x0 - cond.extra["target"]).square().flatten(1).sum(1)

    def to_target_with_weight(x0, weight=2.0, *, cond=None):
        return weight * to_target(x0, cond)

    cond = adm.Condition(extra={"target": X})
    fixed = asked(adm.guide(MIXTURE, adm.LossGuidance(lambda x0: (x0 - X).square().flatten(1).sum(1))))[1]
    torch.testing.assert_close(asked(adm.guide(MIXTURE, adm.LossGuidance(to_target)), cond=cond)[1], fixed)
    doubled = asked(adm.guide(MIXTURE, adm.LossGuidance(to_target_with_weight)), cond=cond)[1]
    torch.testing.assert_close(doubled, 2 * fixed)
    partial = functools.partial(to_target_with_weight, weight=1.0)
    torch.testing.assert_close(asked(adm.guide(MIXTURE, adm.LossGuidance(partial)), cond=cond)[1], fixed)


def test_a_module_may_be_the_function():
    class Score(nn.Module):
        def forward(self, x0, cond):
            return square(x0) + 0 * cond.label

    found = asked(adm.guide(MIXTURE, adm.LossGuidance(Score())), cond=adm.Condition(label=[0, 1, 1]))[1]
    torch.testing.assert_close(found, asked(adm.guide(MIXTURE, adm.LossGuidance(square)))[1])


CONFIG = UNetConfig(
    8, in_channels=1, out_channels=2, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=1
)


def network_model(checkpoint_blocks=False, dtype=F64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(replace(CONFIG, checkpoint_blocks=checkpoint_blocks)).to(dtype).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return adm.DiffusionModel(network, SCHEDULE)


IMAGE = torch.linspace(-1, 1, 128, dtype=F64).reshape(2, 1, 8, 8)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("checkpoint_blocks", [True, False])
def test_through_a_network_it_is_the_quotient_of_differences(frozen, checkpoint_blocks):
    model, step = network_model(checkpoint_blocks).requires_grad_(not frozen), 1e-5
    with torch.no_grad():  # as in the loop
        found = asked(adm.guide(model, adm.LossGuidance(square)), IMAGE, 400)[1]
        for row, column in ((0, 0), (3, 5), (7, 7)):
            shift = torch.zeros_like(IMAGE)
            shift[1, 0, row, column] = step
            difference = square(model(IMAGE + shift, 400).x0) - square(model(IMAGE - shift, 400).x0)
            expected = -float(difference[1]) / (2 * step)
            assert float(found[1, 0, row, column]) == pytest.approx(expected, rel=1e-5)
    assert not found.requires_grad and all(p.grad is None for p in model.parameters())


def test_under_autocast_it_stays_in_the_image_s_dtype():
    model = network_model(dtype=torch.float32)
    exact = asked(adm.guide(model, adm.LossGuidance(square)), IMAGE.float(), 400)[1]
    model.precision = torch.bfloat16
    found = asked(adm.guide(model, adm.LossGuidance(square)), IMAGE.float(), 400)[1]
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.1 * exact.norm()


def test_a_step_can_be_differentiated_through_it():
    """d/dx of (x_0 and the gradient): the second derivatives of a Gaussian are known, g = -k^2 x."""
    alpha, sigma = SCHEDULE.alpha_sigma(300, X)
    k = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    denoiser = adm.guide(gaussian(SCHEDULE, 0.25), adm.LossGuidance(square))
    x = torch.tensor([0.3, -1.2], dtype=F64).reshape(2, 1, 1, 1).requires_grad_()
    prediction, found = asked(denoiser, x)
    torch.testing.assert_close(found, -(k**2) * x)
    (slope,) = torch.autograd.grad((prediction.x0 + found).sum(), x)
    torch.testing.assert_close(slope, (k - k**2).expand_as(x))


def test_where_a_clip_holds_x_0_the_loss_pulls_no_more():
    """d clamp(x_0) / d x_0 is 0 outside: said in the docstring, and in the released DPS too."""
    x = torch.tensor([0.2, 5.0], dtype=F64).reshape(2, 1, 1, 1)
    wide, denoiser = adm.Clip(limit=100.0), gaussian(SCHEDULE, 0.25)
    clipped = asked(adm.guide(denoiser, adm.Clip(), adm.LossGuidance(square)), x, 100)[1].flatten()
    free = asked(adm.guide(denoiser, wide, adm.LossGuidance(square)), x, 100)[1].flatten()
    assert clipped[0] == free[0] != 0 and clipped[1] == 0 != free[1]


def test_scale_0_calls_nothing():
    def never(x0):
        raise AssertionError("was called")

    assert adm.LossGuidance(never, 0)(MIXTURE) is MIXTURE


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (
                lambda x0: x0.square().sum(),
                r"returned shape \(\) for 3 images: return one loss for each image, shape \(3,\)",
            ),
            (lambda x0: x0.square(), r"returned shape \(3, 2, 1, 1\) for 3 images"),
            (lambda x0: 1.0, "returned a float for 3 images"),
            (lambda x0: square(x0.detach()), "does not depend on x_0 differentiably: compute it from x_0 with torch"),
            (
                lambda x0: torch.tensor(x0.detach().numpy()).flatten(1).sum(1),
                "without detach, no_grad, rounding or numpy",
            ),
        ],
    )
    def test_what_is_no_loss_for_each_image(self, function, message):
        with pytest.raises(ValueError, match=message):
            adm.guide(MIXTURE, adm.LossGuidance(function))(X, 300)

    def test_what_cannot_be_called_so(self):
        def pair(x0, target):
            return square(x0 - target)

        for function in (pair, lambda: 0.0):
            with pytest.raises(
                ValueError, match=r"cannot be called with x_0 \(.*\): write it as .*\(x0\) or .*\(x0, cond\)"
            ):
                adm.LossGuidance(function)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
    def test_a_scale_is_a_number(self, scale):
        with pytest.raises(ValueError, match="choose a number; 0 is no guidance"):
            adm.LossGuidance(square, scale)

    @pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
    def test_a_limit_is_positive(self, limit):
        with pytest.raises(ValueError, match=r"limit .*: choose a positive bound; images lie in \[-1, 1\]"):
            adm.LossGuidance(square, limit=limit)

    def test_what_is_no_function(self):
        with pytest.raises(ValueError, match="a str is no function: give one from x_0 to a loss for each image"):
            adm.LossGuidance("mylab.losses.dark")
