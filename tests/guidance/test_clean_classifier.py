"""Guidance by a classifier of clean images, and what makes one fit to guide."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

import adm
from adm.guidance import fit_temperature, smoothed
from adm.nn import ClassifierConfig, EncoderClassifier
from analytic import MixtureDenoiser

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
W = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.5]], dtype=F64)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.9, 0.2], [0.9, -1.4]], dtype=F64), torch.tensor([0.04, 0.09]))
X = torch.tensor([[-0.3, 0.7], [0.2, -0.1], [0.8, -1.5]], dtype=F64).reshape(3, 2, 1, 1)
LABEL = torch.tensor([0, 2, 1])
COND = adm.Condition(label=LABEL)
PLAIN = {"tau2": 1.0, "gamma": 0.0, "jacobian": "identity"}
"""The gradient of the softmax in x_0 and nothing else."""


def matrix(images):
    return images.flatten(1) @ W.T


def asked(guidance, x=X, t=300, cond=COND, denoiser=MIXTURE):
    prediction = adm.guide(denoiser, guidance)(x, t, cond)
    return prediction.guidance(x, t)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("tau1", "tau2", "temperature"), [(1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (2.0, 0.3, 4.0)])
def test_the_gradient_of_a_matrix_is_the_closed_form_at_the_clipped_x_0(tau1, tau2, temperature):
    """grad log [e^(tau1 f_y) / sum_j e^(tau2 f_j)] = tau1 W_y - tau2 sum_j p_j W_j with p the softmax of tau2 f."""
    x0 = MIXTURE(X, 300).x0
    assert bool((x0.abs() > 1).any())
    f = matrix(x0.clamp(-1, 1)) / temperature
    exact = (tau1 * W[LABEL] - tau2 * torch.softmax(tau2 * f, 1) @ W) / temperature
    options = PLAIN | {"tau1": tau1, "tau2": tau2, "temperature": temperature}
    found = asked(adm.CleanClassifierGuidance(matrix, 1.5, **options))
    torch.testing.assert_close(found, 1.5 * exact.reshape(X.shape))


@pytest.mark.parametrize("t", [0, 300, 999, torch.tensor([5, 500, 990])])
def test_the_gaussian_jacobian_is_the_chain_rule_for_normal_data_of_sigma_data(t):
    """Against autograd through the exact denoiser of N(0, 0.25)."""
    x = 0.4 * X[:, :1]
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)

    def denoiser(x_t, t, cond=adm.Condition()):
        return adm.Prediction(x_t, alpha * 0.25 * x_t / (alpha**2 * 0.25 + sigma**2), alpha, sigma, torch.zeros(()))

    denoiser.schedule = SCHEDULE

    def two(images):
        return torch.cat([images.flatten(1).sin(), images.flatten(1).square()], 1)

    def loss(x0):
        return -two(x0).log_softmax(1).gather(1, label[:, None])[:, 0]

    label = torch.tensor([0, 1, 1])
    exact = asked(adm.LossGuidance(loss), x, t, denoiser=denoiser)
    options = PLAIN | {"jacobian": "gaussian"}
    found = asked(adm.CleanClassifierGuidance(two, **options), x, t, adm.Condition(label=label), denoiser)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("links", [1000, 250])
def test_the_strength_is_the_published_one_for_ddpm_on_the_linear_schedule(links):
    """Published is (Sigma + gamma Sigma_max sin(pi i / n)) g at link i. Ours times Sigma is that to 5 % from T / 10."""
    schedule, gamma = adm.linear(1000), 0.3
    chain = adm.Chain(schedule, adm.strided(1000, links))
    sigma = torch.stack([link.beta for link in chain]).flip(0)
    i = torch.arange(links, dtype=F64)
    published = (sigma + gamma * sigma.max() * torch.sin(math.pi * i / links)) / sigma
    ours = adm.CleanClassifierGuidance(matrix, gamma=gamma).strength(chain.timesteps.flip(0), 1000)
    tail = slice(links // 10, None)
    torch.testing.assert_close(ours[tail], published[tail], rtol=0.05, atol=0)
    assert published[tail].max() > 1.8 > 1.1 > published[-1]
    # The twin: sin(pi u) alone, without 1 / u, has another shape.
    assert ((1 + gamma * torch.sin(math.pi * i / links) - published) / published).abs().max() > 0.3


def test_the_strength_multiplies_the_gradient_at_a_t_for_each_image_and_ends_well():
    plain = asked(adm.CleanClassifierGuidance(matrix, **PLAIN))
    guided = adm.guide(MIXTURE, adm.CleanClassifierGuidance(matrix, 2.0, **PLAIN | {"gamma": 0.4}))
    found = guided(X, 300, COND).guidance(X, torch.tensor([0, 250, 500]))
    factors = [1 + 0.4 * math.pi, 1 + 0.4 * math.sin(math.pi / 4) / 0.25, 1 + 0.4 * 2]
    torch.testing.assert_close(found, 2 * torch.tensor(factors, dtype=F64).reshape(3, 1, 1, 1) * plain)
    guidance = adm.CleanClassifierGuidance(matrix)
    assert guidance.strength(-1, 1000) == guidance.strength(0, 1000)


class Counting(MixtureDenoiser):
    calls = 0

    def __call__(self, x_t, t, cond=adm.Condition()):
        assert not x_t.requires_grad and not torch.is_grad_enabled()
        self.calls += 1
        return super().__call__(x_t, t, cond)


def test_nothing_is_differentiated_through_the_network_and_the_classifier_is_asked_once_a_step():
    denoiser, seen = Counting(SCHEDULE, MIXTURE.means, MIXTURE.variances), []

    def watched(images):
        seen.append(images.shape)
        return matrix(images)

    chain = adm.Chain(SCHEDULE, adm.strided(1000, 5))
    for sampler in (adm.DDIM(), adm.DDPM(), adm.DDPM("mean")):
        denoiser.calls, seen[:] = 0, []
        guided = adm.guide(denoiser, adm.CleanClassifierGuidance(watched))
        adm.sample(guided, chain, sampler, adm.SeededNoise(range(3), F64), X.shape, COND)
        assert denoiser.calls == len(seen) == 5


def test_wherever_a_sampler_asks_the_gradient_is_that_of_the_prediction():
    guidance = adm.CleanClassifierGuidance(matrix, **PLAIN)
    prediction = adm.guide(MIXTURE, guidance)(X, 300, COND)
    assert torch.equal(prediction.guidance(X + 1, 299), prediction.guidance(X, 300))


def test_gradients_of_others_add_up_and_the_prediction_stays():
    guidance = adm.CleanClassifierGuidance(matrix, 0.5)
    loss = adm.LossGuidance(lambda x0: x0.square().flatten(1).sum(1))
    both = adm.guide(MIXTURE, loss, guidance)(X, 300, COND)
    torch.testing.assert_close(both.guidance(X, 300), asked(guidance) + asked(loss))
    assert torch.equal(both.x0, MIXTURE(X, 300).x0) and torch.equal(both.eps, MIXTURE(X, 300).eps)


def test_label_minus_1_is_not_guided_and_others_are_as_without_it():
    guidance = adm.CleanClassifierGuidance(matrix)
    found = asked(guidance, cond=adm.Condition(label=[0, -1, 1]))
    assert torch.equal(found[1], torch.zeros(2, 1, 1))
    torch.testing.assert_close(found[[0, 2]], asked(guidance)[[0, 2]])


def network_classifier(size=8):
    config = ClassifierConfig(
        image_size=size, in_channels=1, num_classes=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,), num_head_channels=8,
    )  # fmt: skip
    network = EncoderClassifier(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return adm.NoisyClassifier(network, adm.linear(1000)).eval()


def image_denoiser(size):
    class Still:
        schedule, image_shape = SCHEDULE, (1, size, size)

        def __call__(self, x_t, t, cond=adm.Condition()):
            alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
            return adm.Prediction(x_t, 0.5 * x_t, alpha, sigma, torch.zeros(()))

    return Still()


def test_a_noisy_classifier_is_asked_at_t_0_whatever_its_schedule():
    classifier = network_classifier().double()
    x = torch.linspace(-1.5, 1.5, 3 * 64, dtype=F64).reshape(3, 1, 8, 8)
    found = asked(adm.CleanClassifierGuidance(classifier, **PLAIN), x, denoiser=image_denoiser(8))
    torch.testing.assert_close(found, classifier.grad_log_prob(0.5 * x, 0, LABEL), rtol=1e-9, atol=0)
    assert (found - classifier.grad_log_prob(0.5 * x, 9, LABEL)).abs().max() > 1e-2 * found.abs().max()


def test_a_classifier_of_another_size_is_shown_x_0_in_its_own():
    classifier = network_classifier(8)
    x = torch.randn(3, 1, 16, 16)
    found = asked(adm.CleanClassifierGuidance(classifier, **PLAIN), x, denoiser=image_denoiser(16))
    assert found.shape == x.shape and bool((found != 0).any())


@pytest.mark.parametrize("size", [8, 5, 24])
def test_resizing_is_pillow_s(size):
    seen = []

    def watched(images):
        seen.append(images)
        return images.flatten(1)[:, :3]

    x = torch.rand(3, 1, 16, 16, dtype=torch.float32)
    asked(adm.CleanClassifierGuidance(watched, size=size), x, denoiser=image_denoiser(16))
    pictures = [
        Image.fromarray((0.5 * image[0]).numpy(), "F").resize((size, size), Image.Resampling.BILINEAR) for image in x
    ]
    expected = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])
    torch.testing.assert_close(seen[0].detach(), expected, rtol=0, atol=1e-5)


def test_images_are_normalised_as_the_classifier_s_were_and_the_gradient_follows():
    mean, std = (0.4, 0.6), (0.2, 0.5)
    x0 = MIXTURE(X, 300).x0.clamp(-1, 1).flatten(1)
    u = ((x0 + 1) / 2 - torch.tensor(mean)) / torch.tensor(std)
    exact = (W[LABEL] - torch.softmax(u @ W.T, 1) @ W) / (2 * torch.tensor(std))
    found = asked(adm.CleanClassifierGuidance(matrix, mean=mean, std=std, **PLAIN))
    torch.testing.assert_close(found, exact.reshape(X.shape))
    grey = asked(adm.CleanClassifierGuidance(matrix, mean=(0.5,), std=(0.5,), **PLAIN))
    torch.testing.assert_close(grey, asked(adm.CleanClassifierGuidance(matrix, **PLAIN)))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_classifier_computes_in_its_own_dtype_and_the_gradient_has_the_image_s(dtype):
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.Dropout(0.0))
    assert asked(adm.CleanClassifierGuidance(module), X.to(dtype)).dtype == dtype
    assert all(p.grad is None for p in module.parameters())


TWO = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.5], [0.5]], dtype=F64), torch.tensor([0.04, 0.04]))


def two_classes(images):
    """The exact p(y | x_0) of the two components, up to what they share."""
    return -((images.flatten(1) - TWO.means[:, 0]) ** 2) / (2 * TWO.variances)


class Normals:
    """Noise that is cheap to draw for many images."""

    def initial(self, shape):
        return self.at(-1, shape)

    def at(self, i, shape, draw=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(i + 1), dtype=F64)


def guided_samples(sampler, links, n=1000, **options):
    guidance = adm.CleanClassifierGuidance(two_classes, **PLAIN | {"jacobian": "gaussian"} | options)
    chain = adm.Chain(SCHEDULE, adm.strided(1000, links))
    cond = adm.Condition(label=torch.ones(n, dtype=torch.long))
    denoiser = adm.guide(TWO, adm.Clip(), guidance)
    return adm.sample(denoiser, chain, sampler, Normals(), (n, 1, 1, 1), cond).flatten()


def test_the_exact_classifier_turns_a_mixture_into_its_class():
    """N(0.5, 0.2^2), whose share above 0 is 0.994."""
    x = guided_samples(adm.DDPM(), 250)
    assert float((x > 0).double().mean()) > 0.98
    assert float(x.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(x.std()) == pytest.approx(0.2, abs=0.02)


def test_in_an_ode_rule_the_gaussian_jacobian_keeps_images_apart_and_the_identity_does_not():
    x = guided_samples(adm.DDIM(), 50)
    assert float((x > 0).double().mean()) > 0.97 and float(x.std()) > 0.08
    assert float(x.mean()) == pytest.approx(0.5, abs=0.12)
    assert float(guided_samples(adm.DDIM(), 50, jacobian="identity").std()) < 1e-6


class TestSmoothed:
    def test_each_relu_becomes_a_softplus_on_the_same_weights(self):
        module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()))
        module.double().eval()
        smooth = smoothed(module, beta=3.0)
        x = torch.randn(5, 2, dtype=F64)

        def softplus(z):
            return torch.log1p(torch.exp(3 * z)) / 3

        torch.testing.assert_close(smooth(x), softplus(module[2][0](softplus(module[0](x)))))
        tensors = [*module.parameters(), *module.buffers()]
        assert all(a is b for a, b in zip(tensors, [*smooth.parameters(), *smooth.buffers()], strict=True))
        torch.testing.assert_close(module(x), F.relu(module[2][0](F.relu(module[0](x)))))
        torch.testing.assert_close(smoothed(module, beta=1e8)(x), module(x), rtol=0, atol=1e-7)
        assert not smooth.training

    def test_an_activation_that_stands_in_two_places_is_replaced_in_both(self):
        act, first, second = nn.ReLU(), nn.Linear(2, 4), nn.Linear(4, 2)
        smooth = smoothed(nn.Sequential(first, act, second, act))
        x = torch.randn(5, 2)
        torch.testing.assert_close(smooth(x), F.softplus(second(F.softplus(first(x), beta=3.0)), beta=3.0))

    def test_a_module_without_relu_is_refused(self):
        for module in (nn.Sequential(nn.Linear(2, 2), nn.SiLU()), nn.ReLU()):
            with pytest.raises(ValueError, match=r"has no nn\.ReLU to smooth: write its activations as modules"):
                smoothed(module)

    @pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
    def test_beta_is_positive(self, beta):
        with pytest.raises(ValueError, match="choose a positive number; 3 was published"):
            smoothed(nn.Sequential(nn.ReLU()), beta)


class TestFitTemperature:
    @staticmethod
    def images(values):
        return torch.as_tensor(values, dtype=F64).reshape(len(values), -1, 1, 1)

    def test_two_classes_of_one_margin_have_a_closed_form(self):
        """Logits (c, 0), right k times of n: the likeliest sigmoid(c / T) is k / n, so T = c / log(k / (n - k))."""
        c, k, n = 3.0, 17, 20
        images = self.images([[c, 0.0]] * n)
        labels = torch.tensor([0] * k + [1] * (n - k))
        found = fit_temperature(lambda x: x.flatten(1), images, labels)
        assert found == pytest.approx(c / math.log(k / (n - k)), rel=1e-9)

    @pytest.mark.parametrize("factor", [0.2, 1.0, 7.5])
    def test_logits_that_are_too_large_by_a_factor_give_it_back(self, factor):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(300, 5)) * 2
        labels = np.array([rng.choice(5, p=np.exp(row) / np.exp(row).sum()) for row in logits])
        scaled = self.images(factor * logits)
        found = fit_temperature(lambda x: x.flatten(1), scaled, torch.from_numpy(labels), batch_size=64)

        def nll(log_temperature):
            z = factor * logits / np.exp(log_temperature)
            return (np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[range(300), labels]).mean()

        oracle = float(np.exp(minimize_scalar(nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}).x))
        assert found == pytest.approx(oracle, rel=1e-5)
        # The labels are drawn from the honest softmax: its temperature is the factor, up to how many there are.
        assert found == pytest.approx(factor, rel=0.15)

    def test_what_it_finds_makes_the_guidance_s_own_logits_honest(self):
        images = self.images([[2.0, 0.0]] * 10)
        labels = torch.tensor([0] * 7 + [1] * 3)
        guidance = adm.CleanClassifierGuidance(lambda x: 5 * x.flatten(1), mean=(0.0,), std=(1.0,))
        found = fit_temperature(guidance.logits, images, labels)
        honest = adm.CleanClassifierGuidance(guidance.classifier, mean=(0.0,), std=(1.0,), temperature=found)
        assert fit_temperature(honest.logits, images, labels) == pytest.approx(1.0, rel=1e-6)
        torch.testing.assert_close(honest.logits(images).softmax(1)[0, 0], torch.tensor(0.7, dtype=F64))

    def test_where_none_is_best_it_says_so(self):
        images = self.images([[2.0, 0.0], [0.0, 1.0]])
        with pytest.raises(ValueError, match="no image contradicts the classifier, so no temperature is best: give it"):
            fit_temperature(lambda x: x.flatten(1), images, torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="does no better than chance here: check the order of its classes"):
            fit_temperature(lambda x: x.flatten(1), images, torch.tensor([1, 0]))

    def test_labels_that_do_not_fit_are_refused(self):
        images = self.images([[2.0, 0.0], [0.0, 1.0]])
        for labels, message in (
            ([0], "give at least one image"),
            ([0, 2], "label 2 is no class"),
            ([0, -1], "label -1"),
        ):
            with pytest.raises(ValueError, match=message):
                fit_temperature(lambda x: x.flatten(1), images, torch.tensor(labels))
        with pytest.raises(ValueError, match="give at least one image"):
            fit_temperature(lambda x: x.flatten(1), images[:0], torch.tensor([]))


class TestRefusals:
    def test_what_is_no_classifier(self):
        with pytest.raises(
            ValueError, match=r"a str is no classifier: give a function from images to logits, or adm\.load"
        ):
            adm.CleanClassifierGuidance("runs/clf")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": 0.0}, "temperature 0.0: choose a positive number"),
            ({"jacobian": "exact"}, "jacobian 'exact': choose gaussian, or identity"),
            ({"mean": (0.5,)}, "mean and std belong together: give both, or neither"),
            ({"mean": (0.5,), "std": (0.0,)}, r"std \(0.0,\): give positive numbers"),
            ({"std": (math.inf,), "mean": (0.5,)}, r"std \(inf,\): give positive numbers"),
            ({"mean": (math.nan,), "std": (0.5,)}, r"mean \(nan,\): give numbers"),
            ({"size": 0}, "size 0: give the side of the classifier's images"),
            ({"scale": math.nan}, "scale nan: choose a number; 0 is no guidance"),
            *[({name: math.inf}, f"{name} inf: choose a number") for name in ("scale", "tau1", "tau2", "gamma")],
        ],
    )
    def test_options_that_cannot_be(self, options, message):
        with pytest.raises(ValueError, match=message):
            adm.CleanClassifierGuidance(matrix, **options)

    @pytest.mark.parametrize(
        ("classifier", "message"),
        [
            (lambda x: x, r"returned \(3, 2, 1, 1\) for 3 images: it must return logits of shape \(3, num_classes\)"),
            (lambda x: matrix(x)[:1], r"returned \(1, 3\) for 3 images"),
            (lambda x: 1.0, "returned float for 3 images"),
            (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2)), r"in training mode.*: call classifier\.eval\(\) first"),
            (nn.Sequential(nn.Flatten(), nn.Dropout(0.1)), r"in training mode, where it mixes or drops"),
            (lambda x: matrix(x)[:, :2], "label 2 is no class of this classifier: give 0 to 1"),
        ],
    )
    def test_classifiers_that_do_something_else(self, classifier, message):
        with pytest.raises(ValueError, match=message):
            asked(adm.CleanClassifierGuidance(classifier))

    def test_a_classifier_of_other_channels_before_anything_is_drawn(self):
        class Grey:
            schedule, image_shape = SCHEDULE, (1, 8, 8)

        class Colour:
            image_shape = (3, 8, 8)

            def __call__(self, images):
                return images.flatten(1)

        with pytest.raises(
            ValueError, match="takes 3-channel images, the model makes 1-channel ones: use a classifier of"
        ):
            adm.CleanClassifierGuidance(Colour())(Grey())
        for options in ({"mean": (0.5, 0.5), "std": (1.0,)}, {"mean": (0.5,), "std": (1.0, 1.0)}):
            with pytest.raises(ValueError, match="has 2 numbers, but the number of channels is 1: give one for all"):
                adm.CleanClassifierGuidance(matrix, **options)(Grey())

    def test_normalisation_of_other_channels_where_the_model_does_not_say_its_own(self):
        with pytest.raises(ValueError, match="mean has 3 numbers, but the number of channels is 2"):
            asked(adm.CleanClassifierGuidance(matrix, mean=(0.5,) * 3, std=(1.0,) * 3))

    def test_a_module_that_cannot_take_the_images_says_which(self):
        colour = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
        with pytest.raises(ValueError, match=r"cannot take images of shape \(3, 2, 1, 1\) \(.*channels.*\): give one"):
            asked(adm.CleanClassifierGuidance(colour))

    def test_no_label(self):
        with pytest.raises(ValueError, match=r"needs to know which class: give Condition\(label=...\)"):
            adm.guide(MIXTURE, adm.CleanClassifierGuidance(matrix))(X, 300)

    def test_scale_0_is_the_denoiser_itself_and_asks_nothing(self):
        def never(images):
            raise AssertionError("was asked")

        assert adm.CleanClassifierGuidance(never, 0)(MIXTURE) is MIXTURE
