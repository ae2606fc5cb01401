"""Guidance that extrapolates between two predictions, on mixtures and Gaussians whose predictions are exact."""

import dataclasses

import numpy as np
import pytest
import torch

import adm
from adm.guidance import GuidedDenoiser
from adm.nn import UNet, UNetConfig
from analytic import MixtureClassifier, MixtureDenoiser, gaussian
from labelled import LabelledMixture

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MEANS = torch.tensor([[-0.9, 0.1], [0.9, 0.6], [0.2, -0.9]], dtype=F64)
VARIANCES, WEIGHTS, CLASSES = torch.tensor([0.04, 0.09, 0.02]), torch.tensor([0.5, 0.3, 0.2]), [0, 0, 1]
MIXTURE = MixtureDenoiser(SCHEDULE, MEANS, VARIANCES, WEIGHTS)
CLASSIFIER = MixtureClassifier(MIXTURE, CLASSES)
LABEL = torch.tensor([0, 1, -1, 1])
COND = adm.Condition(label=LABEL)
X = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)


def conditional():
    return LabelledMixture(MIXTURE, CLASSES)


def unet_model(num_classes=3, schedule=SCHEDULE, size=8):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(
            image_size=size, in_channels=1, out_channels=2, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(4,), num_head_channels=8, num_classes=num_classes,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    torch.set_rng_state(state)
    return adm.DiffusionModel(network, schedule).eval().double()


def halves(t):
    """(D_c, D_u), each asked by itself."""
    return conditional()(X, t, COND), conditional()(X, t, COND.null())


class TestClassifierFree:
    @pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 2.0, 7.5])
    @pytest.mark.parametrize("t", [0, 300, 412.5, 999])
    @pytest.mark.parametrize("model", [None, MIXTURE])
    def test_it_is_the_published_extrapolation(self, weight, t, model):
        with_label, without = halves(t)
        found = adm.ClassifierFreeGuidance(weight, model)(conditional())(X, t, COND)
        torch.testing.assert_close(found.x0, without.x0 + weight * (with_label.x0 - without.x0), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.alpha * found.x0 + found.sigma * found.eps, X, rtol=0, atol=1e-9)

    def test_both_halves_are_one_batch_and_two_models_one_each(self):
        alone, main, other = conditional(), conditional(), conditional()
        adm.ClassifierFreeGuidance(2.0)(alone)(X, 300, COND)
        adm.ClassifierFreeGuidance(2.0, other)(main)(X, 300, COND)
        assert (alone.calls, alone.rows) == (1, 8)
        assert [(d.calls, d.rows) for d in (main, other)] == [(1, 4), (1, 4)]

    @pytest.mark.parametrize("guidance", [adm.ClassifierFreeGuidance, adm.AdaptiveProjectedGuidance])
    @pytest.mark.parametrize("model", [None, MixtureDenoiser(SCHEDULE, MEANS, 2 * VARIANCES)])
    def test_an_image_with_label_minus_1_is_not_guided_to_the_bit(self, model, guidance):
        plain = conditional()(X, 300, COND)
        found = guidance(9.0, model)(conditional())(X, 300, COND)
        same = (found.x0 == plain.x0).flatten(1).all(1)
        assert same.tolist() == (LABEL == -1).tolist()

    @pytest.mark.parametrize("model", [None, MIXTURE])
    def test_variance_and_gradient_stay_those_of_the_conditional_prediction(self, model):
        inner = adm.ClassifierGuidance(CLASSIFIER, 2.0)(conditional())
        cond = adm.Condition(label=torch.tensor([0, 1, 0, 1]))
        plain = inner(X, 300, cond)
        found = adm.ClassifierFreeGuidance(3.0, model)(inner)(X, 300, cond)
        assert torch.equal(found.var_frac, plain.var_frac) and torch.equal(found.x_t, X)
        assert torch.equal(found.alpha, plain.alpha) and torch.equal(found.sigma, plain.sigma)
        for x, t in ((X, 300), (X + 0.1, 280)):
            expected = 2 * CLASSIFIER.grad_log_prob(x, t, cond.label)
            torch.testing.assert_close(found.guidance(x, t), expected, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("model", [None, MIXTURE])
    def test_t_may_differ_between_images(self, model):
        guided = adm.ClassifierFreeGuidance(3.0, None if model is None else conditional())(conditional())
        t = torch.tensor([300, 20, 5, 700])
        together = guided(X, t, COND)
        for i in range(4):
            alone = guided(X[i : i + 1], int(t[i]), COND[i])
            torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=0, atol=1e-12)
            torch.testing.assert_close(together.alpha[i], alone.alpha.reshape(1, 1, 1))

    def test_other_conditions_go_to_both_halves(self):
        seen = []

        def denoiser(x_t, t, cond):
            seen.append(cond)
            return MIXTURE(x_t, t)

        denoiser.schedule = SCHEDULE
        cond = adm.Condition(LABEL, low_res=torch.arange(4.0).reshape(4, 1, 1, 1), extra={"k": torch.arange(4)})
        adm.ClassifierFreeGuidance(2.0)(denoiser)(X, 3, cond)
        adm.ClassifierFreeGuidance(2.0, denoiser)(denoiser)(X, 3, cond)
        both, main, other = seen
        assert both.label.tolist() == [*LABEL.tolist(), -1, -1, -1, -1] and other.label.tolist() == [-1] * 4
        assert both.extra["k"].tolist() == [0, 1, 2, 3] * 2 and both.low_res.flatten().tolist() == [0, 1, 2, 3] * 2
        assert main is cond and torch.equal(other.low_res, cond.low_res)

    def test_a_network_is_asked_for_both_halves_as_for_each(self):
        model = unet_model()
        x = torch.linspace(-1, 1, 3 * 64, dtype=F64).reshape(3, 1, 8, 8)
        cond = adm.Condition(label=[2, 0, -1])
        with torch.no_grad():
            found = adm.ClassifierFreeGuidance(4.0)(model)(x, torch.tensor([5, 400, 999]), cond)
            with_label = model(x, torch.tensor([5, 400, 999]), cond)
            without = model(x, torch.tensor([5, 400, 999]), cond.null())
        expected = without.x0 + 4 * (with_label.x0 - without.x0)
        torch.testing.assert_close(found.x0, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.var_frac, with_label.var_frac)
        assert float((with_label.x0 - without.x0)[:2].abs().max()) > 1e-3

    def test_a_label_is_needed(self):
        for model in (None, MIXTURE):
            with pytest.raises(ValueError, match=r"which class: give Condition\(label=...\), -1 for images"):
                adm.ClassifierFreeGuidance(2.0, model)(conditional())(X, 300)

    @pytest.mark.parametrize("guidance", [adm.ClassifierFreeGuidance, adm.AdaptiveProjectedGuidance])
    def test_a_model_without_classes_is_refused_through_other_guidances_too(self, guidance):
        model = unet_model(num_classes=None)
        for denoiser in (model, adm.guide(model, adm.Clip(), adm.EpsilonScaling(1.01))):
            with pytest.raises(ValueError, match=r"this one is unconditional: guide it with a classifier or"):
                guidance(2.0)(denoiser)
        guidance(2.0, model)(unet_model())  # beside a conditional one it has its place


@pytest.mark.parametrize("guidance", [adm.ClassifierFreeGuidance, adm.AdaptiveProjectedGuidance, adm.Autoguidance])
class TestAllThree:
    def test_weight_1_is_the_denoiser_itself(self, guidance):
        assert guidance(model=MIXTURE, weight=1)(MIXTURE) is MIXTURE

    def test_another_schedule_or_size_is_refused(self, guidance):
        for weight in (1.0, 2.0):
            with pytest.raises(ValueError, match=r"model was trained for another noise schedule \(T = 1000, alpha_bar"):
                guidance(model=unet_model(schedule=adm.linear(1000)), weight=weight)(unet_model())
            with pytest.raises(
                ValueError, match=r"images of 16x16 with 1 channel, the model makes 8x8 with 1 channel: "
            ):
                guidance(model=unet_model(size=16), weight=weight)(unet_model())

    @pytest.mark.parametrize("thing", ["runs/small", 3, CLASSIFIER])
    def test_what_is_no_model_is_refused_at_once(self, guidance, thing):
        with pytest.raises(ValueError, match=r"is no .* model: give an adm\.DiffusionModel, or adm\.load one"):
            guidance(model=thing)

    @pytest.mark.parametrize("weight", [float("nan"), float("inf")])
    def test_a_weight_is_a_number(self, guidance, weight):
        with pytest.raises(ValueError, match="choose a number; 1 is no guidance"):
            guidance(model=MIXTURE, weight=weight)


class TestT8:
    """Identities on a mixture with its exact classifier."""

    @pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 5.0])
    @pytest.mark.parametrize("t", [1, 100, 600, 990])
    def test_classifier_guidance_is_classifier_free_guidance(self, weight, t):
        cond = adm.Condition(label=torch.tensor([0, 1, 0, 1]))
        guided = adm.ClassifierGuidance(CLASSIFIER, weight)(MIXTURE)(X, t, cond)
        free = adm.ClassifierFreeGuidance(weight)(conditional())(X, t, cond)
        folded = guided.fold(guided.guidance(X, t))
        torch.testing.assert_close(folded.x0, free.x0, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("weight", [1.0, 3.0])
    def test_so_it_is_in_samples(self, weight):
        cond, chain = adm.Condition(label=torch.tensor([0, 1, 0, 1])), adm.Chain(SCHEDULE, adm.strided(1000, 20))
        noise = adm.SeededNoise(range(4), F64)
        guided, free = (
            adm.sample(denoiser, chain, adm.DDIM(), noise, X.shape, cond)
            for denoiser in (
                adm.ClassifierGuidance(CLASSIFIER, weight)(MIXTURE),
                adm.ClassifierFreeGuidance(weight)(conditional()),
            )
        )
        assert float((guided - free).abs().max()) <= 1e-10
        if weight == 1:
            other = adm.sample(conditional(), chain, adm.DDIM(), noise, X.shape, cond)
            assert float((guided - other).abs().max()) <= 1e-10

    def test_autoguidance_by_itself_is_none_to_the_bit(self):
        assert torch.equal(adm.Autoguidance(MIXTURE, 4.0)(MIXTURE)(X, 300).x0, MIXTURE(X, 300).x0)


class TestAutoguidance:
    WORSE = LabelledMixture(MixtureDenoiser(SCHEDULE, MEANS, VARIANCES * 3, WEIGHTS), CLASSES)

    @pytest.mark.parametrize("weight", [0.0, 1.7, 4.0])
    def test_it_is_the_published_extrapolation_under_the_same_condition(self, weight):
        main, worse = conditional()(X, 300, COND), self.WORSE(X, 300, COND)
        found = adm.Autoguidance(self.WORSE, weight)(conditional())(X, 300, COND)
        torch.testing.assert_close(found.x0, worse.x0 + weight * (main.x0 - worse.x0), rtol=0, atol=1e-12)
        assert torch.equal(found.var_frac, main.var_frac)

    def test_it_needs_no_label_and_takes_a_model_that_knows_none(self):
        found = adm.Autoguidance(gaussian(SCHEDULE, 0.5), 2.0)(gaussian(SCHEDULE, 0.25))(X[:, :1], 300)
        exact = 2 * gaussian(SCHEDULE, 0.25)(X[:, :1], 300).x0 - gaussian(SCHEDULE, 0.5)(X[:, :1], 300).x0
        torch.testing.assert_close(found.x0, exact)
        unconditional, cond = unet_model(num_classes=None), adm.Condition(label=[1])
        x = torch.zeros(1, 1, 8, 8, dtype=F64)
        assert adm.Autoguidance(unconditional, 2.0)(unet_model())(x, 10, cond).x0.shape == x.shape


def apg(**options):
    return adm.AdaptiveProjectedGuidance(3.0, **options)


class TestAdaptiveProjected:
    @pytest.mark.parametrize("model", [None, MIXTURE])
    def test_with_everything_kept_it_is_classifier_free_to_the_bit(self, model):
        projected, free = (
            g(conditional())(X, 300, COND)
            for g in (apg(model=model, parallel=1.0), adm.ClassifierFreeGuidance(3.0, model))
        )
        assert torch.equal(projected.x0, free.x0)

    @pytest.mark.parametrize("parallel", [0.0, 0.4, 1.0, 2.0])
    @pytest.mark.parametrize("norm", [None, 0.05, 1e3])
    def test_the_difference_is_shortened_and_split_for_each_image(self, parallel, norm):
        with_label, without = halves(500)
        expected = []
        for row, other in zip(with_label.x0.flatten(1).numpy(), without.x0.flatten(1).numpy(), strict=True):
            delta = row - other
            length = np.linalg.norm(delta)
            if norm is not None and length > norm:
                delta = delta / length * norm
            unit = row / np.linalg.norm(row)
            along = unit * (unit @ delta)
            expected.append(row + 2 * ((delta - along) + parallel * along))
        found = apg(parallel=parallel, norm=norm)(conditional())(X, 500, COND)
        np.testing.assert_allclose(found.x0.flatten(1).numpy(), np.array(expected), rtol=0, atol=1e-12)

    def test_what_is_added_is_orthogonal_and_no_longer_than_allowed(self):
        plain = conditional()(X, 500, COND).x0.flatten(1)
        added = (apg(norm=0.05)(conditional())(X, 500, COND).x0.flatten(1) - plain) / 2
        assert float((added * plain).sum(1).abs().max()) < 1e-14
        assert float(added.norm(dim=1).max()) <= 0.05 and float(added.norm(dim=1)[0]) > 0

    @pytest.mark.parametrize("options", [{}, {"norm": 1.0}, {"momentum": -0.5}])
    def test_a_prediction_of_nothing_and_a_missing_difference_stay_finite(self, options):
        zero = MixtureDenoiser(SCHEDULE, torch.zeros(1, 2), torch.tensor([1e-300]))
        guided = apg(model=zero, **options)(zero)
        assert torch.equal(guided(X, 300, COND).x0, zero(X, 300).x0)

    def test_momentum_remembers_the_differences_of_one_trajectory(self):
        beta, chain = -0.5, adm.Chain(SCHEDULE, adm.strided(1000, 10))
        noise = adm.SeededNoise(range(4), F64)
        guided = apg(parallel=1.0, momentum=beta)(conditional())
        x, average = noise.initial(X.shape), torch.zeros_like(X)
        for link in chain:  # DDIM Eq. 12 by hand, with the running average of the paper
            with_label, without = (conditional()(x, link.t, c) for c in (COND, COND.null()))
            average = (with_label.x0 - without.x0) + beta * average
            average[LABEL == -1] = 0
            x0 = with_label.x0 + 2 * average
            eps = (x - link.alpha * x0) / link.sigma
            x = link.alpha_s * x0 + link.sigma_s * eps
        for _ in range(2):  # the second trajectory does not know the first
            found = adm.sample(guided, chain, adm.DDIM(), noise, X.shape, COND)
            torch.testing.assert_close(found, x, rtol=0, atol=1e-9)
        forgetful = apg(parallel=1.0)(conditional())
        assert float((adm.sample(forgetful, chain, adm.DDIM(), noise, X.shape, COND) - x).abs().max()) > 1e-3

    def test_beyond_a_trajectory_nothing_is_remembered(self):
        guided = apg(momentum=-0.5)(conditional())
        first, second = (guided(X, 300, COND).x0 for _ in range(2))
        within = guided.fresh()
        third, fourth = (within(X, 300, COND).x0 for _ in range(2))
        assert torch.equal(first, second) and torch.equal(first, third) and not torch.equal(third, fourth)
        assert torch.equal(within.fresh()(X, 300, COND).x0, first)

    def test_what_is_remembered_holds_no_graph(self):
        """A loss differentiates through each step: its graph must go with it."""
        projected = apg(momentum=-0.5)(conditional())
        within = adm.LossGuidance(lambda x0: x0.square().flatten(1).sum(1))(projected).fresh()
        for _ in range(2):
            within(X, 300, COND)
            assert not within.denoiser.average.requires_grad

    def test_memory_is_reached_through_other_guidances(self):
        guided = adm.guide(conditional(), apg(momentum=-0.5), adm.EpsilonScaling(1.01), adm.Clip())
        within = guided.fresh()
        assert not torch.equal(within(X, 300, COND).x0, within(X, 300, COND).x0)
        main = apg(momentum=-0.5)(conditional())
        inside_a_model = adm.Autoguidance(main, 2.0)(conditional()).fresh()
        assert not torch.equal(inside_a_model(X, 300, COND).x0, inside_a_model(X, 300, COND).x0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"norm": 0.0}, "choose a positive length"),
            ({"norm": float("inf")}, "choose a positive length, or None for no bound"),
            ({"momentum": 1.0}, "choose a number between -1 and 1"),
            ({"parallel": float("nan")}, "parallel nan: choose a number; 0 takes the part along D_c away"),
        ],
    )
    def test_options_out_of_range_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            apg(**options)


def test_they_are_frozen_values_and_their_denoisers_are_guided_ones():
    for made in (adm.ClassifierFreeGuidance(), adm.Autoguidance(MIXTURE), apg(), adm.EpsilonScaling()):
        assert isinstance(made(conditional()), GuidedDenoiser)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.weight = 2
