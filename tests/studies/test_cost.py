"""What images cost, against what each rule and guidance is known to evaluate."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import adm
from adm.studies._cost import Cost, cost_text, counted, models_in
from adm.studies.generate import batches
from adm.studies.request import prepare


class Net(nn.Module):
    """Any function of x and the label, with weights."""

    image_shape = (1, 4, 4)

    def __init__(self, num_classes=3, shift=0.0):
        super().__init__()
        self.config = SimpleNamespace(num_classes=num_classes, low_res_channels=0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.fill_(0.05)
            self.conv.bias.fill_(shift)

    def forward(self, x, t, label=None, low_res=None):
        return self.conv(x) + (0 if label is None else 0.01 * label.reshape(-1, 1, 1, 1))


class Logits(Net):
    def forward(self, x, t):
        return self.conv(x).flatten(1)[:, :3]


def diffusion(shift=0.0):
    model = adm.DiffusionModel(Net(shift=shift), adm.cosine(1000), variance="small").eval()
    return model.requires_grad_(False)


@pytest.fixture
def model():
    return diffusion()


@pytest.fixture
def classifier():
    return adm.NoisyClassifier(Logits(), adm.cosine(1000)).eval()


def cost(model, sampler="ddim", steps=10, guidance=(), labels=(0, 1, 2), batch_size=2):
    """Of each image; the second of two batches is filled up with an image that is thrown away."""
    request = prepare(model, steps, sampler, guidance)
    found = [batch.cost for batch in batches(request, list(labels), 0, batch_size)]
    assert all((c.network, c.classifier, c.gradients) == (found[0].network, found[0].classifier, found[0].gradients)
               for c in found)  # fmt: skip
    return found[0].network, found[0].classifier, found[0].gradients


@pytest.mark.parametrize(
    ("sampler", "network"),
    [
        *[(name, 10) for name in ("ddpm", "ddim", "ddim:eta=1", "euler", "ipndm", "dpm_solver_2m", "dpm_solver_3m")],
        *[(name, 10) for name in ("dpm_solver_sde", "unipc", "unipc:order=3")],
        *[(name, 19) for name in ("heun", "heun:churn=4", "heun:churn=1e9")],  # the last step has no second evaluation
    ],
)
def test_a_rule_costs_what_is_published_of_it(model, sampler, network):
    assert cost(model, sampler) == (network, 0, 0)


@pytest.mark.parametrize(("sampler", "both"), [("ddpm", 10), ("ddim", 10), ("heun", 19), ("dpm_solver_2m", 10)])
def test_a_classifier_is_gone_through_backwards_wherever_the_model_is_asked(model, classifier, sampler, both):
    assert cost(model, sampler, guidance=[adm.ClassifierGuidance(classifier, 2.0)]) == (both, both, both)
    assert cost(model, sampler, guidance=[adm.ClassifierGuidance(classifier, 0.0)]) == (both, 0, 0)


def test_classifier_free_guidance_pays_for_both_halves_of_its_batch(model):
    assert cost(model, guidance=["classifier_free:weight=2"]) == (20, 0, 0)
    assert cost(model, guidance=["classifier_free:weight=1"]) == (10, 0, 0)


def test_a_second_model_is_paid_for(model):
    other = diffusion(0.1)
    assert cost(model, guidance=[adm.Autoguidance(other, 2.0)]) == (20, 0, 0)
    assert cost(model, "heun", guidance=[adm.ClassifierFreeGuidance(2.0, other)]) == (38, 0, 0)


def test_an_interval_saves_what_lies_outside(model):
    ratios = [float(link.sigma / link.alpha) for link in adm.Chain(model.schedule, adm.strided(1000, 10))]
    low, high = sorted(ratios)[2] * 1.01, sorted(ratios)[6] * 1.01  # four of the ten are inside
    interval = f"interval:of=(classifier_free:weight=2),low={low},high={high}"
    assert cost(model, guidance=[interval]) == (14, 0, 0)


def test_an_interval_saves_a_classifier_too(model, classifier):
    ratios = sorted(float(link.sigma / link.alpha) for link in adm.Chain(model.schedule, adm.strided(1000, 10)))
    of = adm.ClassifierGuidance(classifier, 2.0)
    assert cost(model, guidance=[adm.Interval(of, low=ratios[6] * 1.01)]) == (10, 3, 3)


def test_a_loss_goes_backwards_through_the_network(model):
    assert cost(model, guidance=[adm.LossGuidance(lambda x0: x0.square().sum((1, 2, 3)), 0.1)]) == (10, 0, 10)


def test_any_module_that_guides_is_counted(model):
    clean = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    network, classifier, gradients = cost(model, guidance=[adm.CleanClassifierGuidance(clean, 0.1)])
    assert (network, classifier, gradients) == (10, 10, 10)


def test_models_in_closures_are_counted_and_nothing_stays_behind(model):
    def wrapped(x_t, t, cond=adm.Condition()):
        return model(x_t, t, cond)

    wrapped.schedule = model.schedule
    chain = adm.Chain(model.schedule, adm.strided(1000, 5))
    with counted(wrapped) as found:
        adm.sample(wrapped, chain, adm.DDIM(), adm.SeededNoise([0, 1]), (2, 1, 4, 4))
    assert (found.network_rows, found.network) == (10, 10)
    adm.sample(wrapped, chain, adm.DDIM(), adm.SeededNoise([0]), (1, 1, 4, 4))
    assert found.network_rows == 10 and not model.network._forward_hooks


AROUND = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()


def by_default(x0, net=AROUND):
    return net(x0)[:, 0]


def by_keyword_default(x0, *, net=AROUND):
    return net(x0)[:, 0]


def by_global(x0):
    return AROUND(x0)[:, 0]


def by_global_inside(x0):
    return sum(net(x0)[:, 0] for net in [AROUND for _ in range(1)])


def by_argument(net, x0):
    return net(x0)[:, 0]


class Judge:
    def __init__(self):
        self.net = AROUND

    def loss(self, x0):
        return self.net(x0)[:, 0]


@pytest.mark.parametrize(
    "function",
    [
        *[by_default, by_keyword_default, by_global, by_global_inside, Judge().loss],
        *[functools.partial(by_argument, AROUND), functools.partial(by_default, net=AROUND)],
        functools.partial(by_global),
    ],
)
def test_models_that_a_function_reaches_are_counted(model, function):
    assert cost(model, guidance=[adm.LossGuidance(function, 0.1)]) == (10, 10, 20)


def test_a_network_that_several_share_is_counted_once(model):
    twin = adm.DiffusionModel(model.network, model.schedule, variance="small")
    with counted(model, twin, [model, {"again": twin}], images=4) as found:
        model(torch.zeros(4, 1, 4, 4), 5, adm.Condition(label=[0] * 4))
    assert found.network == 1


def test_counting_changes_no_image(model, classifier):
    guidance = [adm.ClassifierGuidance(classifier, 2.0)]
    counting = adm.generate(model, [0, 1], steps=5, guidance=guidance)
    request = prepare(model, 5, "ddim", guidance)
    x = adm.sample(
        request.denoiser, request.chain, request.sampler, adm.SeededNoise([0, 1]), (2, 1, 4, 4), adm.Condition([0, 1])
    )
    plain = ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(counting, plain)


def test_models_are_found_at_any_depth_and_each_once(model, classifier):
    inner = adm.Autoguidance(model, 2.0)
    other = adm.ClassifierGuidance(classifier, 1.0)
    assert models_in(adm.Interval(inner), [adm.Interval(adm.Interval(other)), inner]) == [model, classifier]
    assert models_in(lambda: model, None, "text", model.network) == []


def test_in_words():
    assert cost_text(Cost(2, 20, 0, 0).per_image()) == "10 network evaluations an image"
    said = "19 network and 19 classifier evaluations an image, 19 with gradients"
    assert cost_text(Cost(2, 38, 38, 38).per_image()) == said
    assert cost_text(Cost(2, 2, 0, 0).per_image()) == "1 network evaluation an image"
    assert cost_text(Cost(1, 1, 1, 1).per_image()) == "1 network and 1 classifier evaluation an image, 1 with gradients"
    assert cost_text(Cost(1, 1, 2, 0).per_image()) == "1 network and 2 classifier evaluations an image"
    assert cost_text(Cost(4, 50, 0, 0).per_image()) == "12.5 network evaluations an image"
