"""Classifier guidance, against gradients that are known in closed form."""

import pytest
import torch

import adm
from adm.nn import ClassifierConfig, EncoderClassifier
from analytic import MixtureClassifier, MixtureDenoiser

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MIXTURE = MixtureDenoiser(SCHEDULE, torch.tensor([[-0.9], [0.9]], dtype=F64), torch.tensor([0.04, 0.09]))
CLASSIFIER = MixtureClassifier(MIXTURE, [0, 1])
LABEL = torch.tensor([0, 1, 1])
COND = adm.Condition(label=LABEL)
X = torch.tensor([-0.3, 0.2, 0.8], dtype=F64).reshape(3, 1, 1, 1)


def network_classifier(schedule=SCHEDULE, size=8, **options):
    torch.manual_seed(0)
    config = ClassifierConfig(
        image_size=size, in_channels=1, num_classes=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,), num_head_channels=8, **options,
    )  # fmt: skip
    network = EncoderClassifier(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return adm.NoisyClassifier(network, schedule).eval()


@pytest.fixture(autouse=True)
def _generator_left_alone():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def gradient(denoiser, x=X, t=300, cond=COND):
    prediction = denoiser(x, t, cond)
    assert prediction.guidance is not None
    return prediction.guidance(x, t)


def test_the_gradient_travels_beside_an_unchanged_prediction():
    plain, guided = MIXTURE(X, 300), adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER, 2.0))(X, 300, COND)
    assert plain.guidance is None and guided.guidance is not None
    assert torch.equal(plain.x0, guided.x0) and torch.equal(plain.eps, guided.eps)


def test_the_scale_multiplies_the_closed_form():
    """For two Gaussians of the same prior weight: grad log p(y | x) = grad log p_y(x) - sum_k r_k grad log p_k(x)."""
    alpha, sigma = SCHEDULE.alpha_sigma(300, X)
    means, variances = MIXTURE.means[:, 0], MIXTURE.variances
    scores = -(X.reshape(3, 1) - alpha.flatten() * means) / (alpha.flatten() ** 2 * variances + sigma.flatten() ** 2)
    r = MIXTURE.responsibilities(X, 300)
    exact = (scores[range(3), LABEL] - (r * scores).sum(-1)).reshape(X.shape)
    for scale in (1.0, 4.0, -1.5):
        torch.testing.assert_close(
            gradient(adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER, scale))), scale * exact
        )


def test_it_is_evaluated_where_the_sampler_asks():
    prediction = adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER))(X, 300, COND)
    torch.testing.assert_close(prediction.guidance(X + 0.1, 120), CLASSIFIER.grad_log_prob(X + 0.1, 120, LABEL))


def test_two_classifiers_add_up():
    other = MixtureClassifier(MIXTURE, [1, 0])
    both = adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER, 2.0), adm.ClassifierGuidance(other, 0.5))
    expected = 2 * CLASSIFIER.grad_log_prob(X, 300, LABEL) + 0.5 * other.grad_log_prob(X, 300, LABEL)
    torch.testing.assert_close(gradient(both), expected)


def test_scale_0_asks_the_classifier_nothing():
    class Silent:
        schedule = SCHEDULE

        def grad_log_prob(self, x_t, t, label):
            raise AssertionError("was asked")

    assert adm.ClassifierGuidance(Silent(), 0)(MIXTURE) is MIXTURE
    with pytest.raises(AssertionError, match="was asked"):
        gradient(adm.guide(MIXTURE, adm.ClassifierGuidance(Silent(), 1e-9)))


@pytest.mark.parametrize("t", [0, 500])
def test_label_minus_1_is_not_guided_and_others_are_as_without_it(t):
    classifier = network_classifier()
    x = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    mixed = classifier.grad_log_prob(x, t, torch.tensor([2, -1, 0]))
    assert torch.equal(mixed[1], torch.zeros(1, 8, 8)) and bool((mixed[0] != 0).any())
    torch.testing.assert_close(mixed[[0, 2]], classifier.grad_log_prob(x[[0, 2]], t, torch.tensor([2, 0])))


def test_the_gradient_of_a_network_is_that_of_differences():
    classifier = network_classifier().double()
    x = torch.linspace(-1, 1, 64, dtype=F64).reshape(1, 1, 8, 8)
    label, step = torch.tensor([1]), 1e-6
    found = classifier.grad_log_prob(x, 100, label)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        shift = torch.zeros_like(x)
        shift[0, 0, row, column] = step
        with torch.no_grad():
            difference = classifier.log_prob(x + shift, 100, label) - classifier.log_prob(x - shift, 100, label)
        assert float(found[0, 0, row, column]) == pytest.approx(float(difference) / (2 * step), rel=1e-5, abs=1e-9)
    assert not found.requires_grad and all(p.grad is None for p in classifier.parameters())


class TestTemperature:
    """A network that is a matrix: grad log p(y | x) = (W_y - sum_k p_k W_k) / T with p the softmax of W x / T."""

    W = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.5]], dtype=F64)
    X = torch.tensor([[0.3, -0.8], [1.2, 0.1], [-0.4, 0.9]], dtype=F64).reshape(3, 2, 1, 1)

    class Matrix(torch.nn.Module):
        def forward(self, x, t):
            return x.flatten(1) @ TestTemperature.W.T

    def gradient(self, **options):
        guidance = adm.ClassifierGuidance(adm.NoisyClassifier(self.Matrix(), SCHEDULE), **options)
        return gradient(adm.guide(MIXTURE, guidance), self.X, cond=adm.Condition(label=[0, 2, -1])).flatten(1)

    @pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
    def test_it_divides_the_logits(self, temperature):
        p = torch.softmax(self.X.flatten(1) @ self.W.T / temperature, dim=1)
        exact = (self.W[[0, 2, 0]] - p @ self.W) / temperature
        exact[2] = 0  # no label
        torch.testing.assert_close(self.gradient(temperature=temperature, scale=2.0), 2 * exact)

    def test_1_is_the_classifier_as_it_is_to_the_bit(self):
        assert torch.equal(self.gradient(temperature=1.0), self.gradient())
        classifier = network_classifier()
        x = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
        leaf = x.clone().requires_grad_()
        log_prob = classifier(leaf, 100).log_softmax(-1).gather(1, LABEL[:, None]).sum()
        assert torch.equal(classifier.grad_log_prob(x, 100, LABEL), torch.autograd.grad(log_prob, leaf)[0])

    def test_a_classifier_without_one_is_taken_at_1_alone(self):
        assert not isinstance(adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER, temperature=1.0)), type(MIXTURE))
        with pytest.raises(ValueError, match="of a MixtureClassifier takes no temperature: leave it at 1, or give"):
            adm.ClassifierGuidance(CLASSIFIER, temperature=0.5)

    def test_one_that_takes_anything_is_given_it(self):
        class Anything:
            schedule = SCHEDULE

            def grad_log_prob(self, x_t, t, label, **options):
                return torch.full_like(x_t, options["temperature"])

        found = gradient(adm.guide(MIXTURE, adm.ClassifierGuidance(Anything(), 2.0, temperature=0.25)))
        assert torch.equal(found, torch.full_like(X, 0.5))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
    def test_it_must_be_a_positive_number(self, temperature):
        with pytest.raises(ValueError, match="choose a positive number"):
            adm.ClassifierGuidance(network_classifier(), temperature=temperature)


def test_a_label_is_needed_when_the_gradient_is():
    guided = adm.guide(MIXTURE, adm.ClassifierGuidance(CLASSIFIER))
    with pytest.raises(ValueError, match=r"which class: give Condition\(label=...\)"):
        guided(X, 300)


def test_a_label_that_the_classifier_does_not_know_is_refused():
    classifier = network_classifier()
    with pytest.raises(ValueError, match=r"label 3 is no class of this classifier: give 0 to 2"):
        classifier.log_prob(torch.zeros(1, 1, 8, 8), 0, torch.tensor([3]))


class TestFit:
    class Model:
        schedule, image_shape = SCHEDULE, (1, 8, 8)

        def __call__(self, x_t, t, cond=adm.Condition()):
            raise AssertionError("not reached")

    def test_its_own_schedule_and_size_or_unknown_ones_are_accepted(self):
        for classifier in (network_classifier(), network_classifier(schedule=None), CLASSIFIER):
            assert adm.guide(self.Model(), adm.ClassifierGuidance(classifier)).schedule is SCHEDULE
        assert adm.guide(MIXTURE, adm.ClassifierGuidance(network_classifier())).schedule is MIXTURE.schedule

    @pytest.mark.parametrize("schedule", [adm.linear(1000), adm.cosine(999)])
    @pytest.mark.parametrize("scale", [1.0, 0.0])
    def test_another_schedule_is_refused_saying_how_they_differ(self, schedule, scale):
        with pytest.raises(ValueError, match=r"another noise schedule \(T = \d+, alpha_bar = .* use a classifier"):
            adm.guide(self.Model(), adm.ClassifierGuidance(network_classifier(schedule), scale))

    def test_another_size_is_refused(self):
        with pytest.raises(ValueError, match="16x8 with 1 channel, the model makes 8x8 with 1 channel: "):
            adm.guide(self.Model(), adm.ClassifierGuidance(network_classifier(size=(16, 8))))

    def test_it_is_refused_through_other_guidances_too(self):
        with pytest.raises(ValueError, match="another noise schedule"):
            adm.guide(self.Model(), adm.ClassifierGuidance(network_classifier(adm.linear(1000))), adm.Clip())

    @pytest.mark.parametrize("thing", ["runs/clf", MIXTURE])
    def test_what_is_no_classifier_is_refused(self, thing):
        with pytest.raises(ValueError, match=r"is no classifier: give an adm\.NoisyClassifier"):
            adm.guide(self.Model(), adm.ClassifierGuidance(thing))
