"""What every guidance owes: parametrised over the files of the room, so that a new file is tested by being there."""

import dataclasses
import inspect
import itertools

import pytest
import torch

import adm
from adm.guidance import GuidedDenoiser
from adm.guidance._protocol import STAGES
from adm.runtime import lookup
from analytic import MixtureClassifier, MixtureDenoiser

F64 = torch.float64
SCHEDULE = adm.cosine(1000)


class Perturbable(MixtureDenoiser):
    """Whose attention, if it had any, would keep the components apart: without, they are wider."""

    def with_identity_attention(self, layers):
        return MixtureDenoiser(self.schedule, self.means, 4 * self.variances, self.weights)


MIXTURE = Perturbable(
    SCHEDULE,
    torch.tensor([[-0.9, 0.1], [0.9, 0.6], [0.2, -0.9]], dtype=F64),
    torch.tensor([0.04, 0.09, 0.02]),
    torch.tensor([0.5, 0.3, 0.2]),
)
CLASSIFIER = MixtureClassifier(MIXTURE, [0, 0, 1])
WIDER = MixtureDenoiser(SCHEDULE, MIXTURE.means, 2 * MIXTURE.variances, MIXTURE.weights)
MODELS = {
    "classifier": CLASSIFIER,
    "denoiser": MIXTURE,
    "function": lambda x0: x0.square().flatten(1).sum(1),
    "model": WIDER,
    "of": adm.ClassifierFreeGuidance(2.0, WIDER),
}
"""Arguments for those that need a model or a function, by the names that such arguments have."""
VARIANTS = {
    "apg": ["apg:parallel=0.5,norm=0.3,momentum=-0.5"],
    "autoguidance": ["autoguidance:weight=0.5"],
    "classifier_free": ["classifier_free:model=none,weight=1.5"],
    "dynamic_threshold": ["dynamic_threshold:after=true"],
    "epsilon_scaling": ["epsilon_scaling:factor=1.02,slope=1e-5"],
    "interval": ["interval:low=0.3,high=5"],
    "clip": ["clip:after=true"],
    "classifier": ["classifier:scale=3.5"],
    "clean_classifier": ["clean_classifier:jacobian=identity,tau2=1"],
}
SPECS = [spec for name in lookup.available("guidance") for spec in (name, *VARIANTS.get(name, []))]

pytestmark = pytest.mark.parametrize("spec", SPECS)


def guidance(spec):
    return lookup.build("guidance", spec, given=MODELS)


def inputs(n=6, dtype=F64):
    x = torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x, adm.Condition(label=torch.arange(n) % 2)


def parts(prediction, x, t):
    gradient = torch.zeros_like(x) if prediction.guidance is None else prediction.guidance(x, t)
    return prediction.x0, prediction.eps, gradient


def test_the_class_of_the_file_is_public(spec):
    assert getattr(adm, type(guidance(spec)).__name__) is type(guidance(spec))


def test_it_has_a_stage_and_makes_a_denoiser_of_a_denoiser(spec):
    made = guidance(spec)
    assert made.stage in STAGES
    guided = made(MIXTURE)
    x, cond = inputs()
    prediction = guided(x, 500, cond)
    assert isinstance(prediction, adm.Prediction) and prediction.x0.shape == x.shape


def test_the_schedule_the_device_and_the_size_are_those_of_the_model(spec):
    class Model:
        schedule, device, image_shape = SCHEDULE, torch.device("cpu"), (2, 1, 1)

        def __call__(self, x_t, t, cond=adm.Condition()):
            return MIXTURE(x_t, t)

        def with_identity_attention(self, layers):
            return self

    guided = guidance(spec)(Model())
    assert guided.schedule is SCHEDULE
    if isinstance(guided, GuidedDenoiser):
        assert (guided.device, guided.image_shape) == (torch.device("cpu"), (2, 1, 1))
        assert guidance(spec)(MIXTURE).device is None


def test_x_t_is_still_what_was_asked_and_nothing_is_changed_in_place(spec):
    x, cond = inputs()
    before, label = x.clone(), cond.label.clone()
    prediction = guidance(spec)(MIXTURE)(x, 300, cond)
    parts(prediction, x, 300)
    assert torch.equal(x, before) and torch.equal(cond.label, label) and torch.equal(prediction.x_t, x)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_x_0_and_eps_stay_one_prediction(spec, t):
    x, cond = inputs()
    p = guidance(spec)(MIXTURE)(x, t, cond)
    torch.testing.assert_close(p.alpha * p.x0 + p.sigma * p.eps, x, rtol=0, atol=1e-9)


def test_an_image_does_not_depend_on_its_batch(spec):
    x, cond = inputs()
    guided = guidance(spec)(MIXTURE)
    together = parts(guided(x, 200, cond), x, 200)
    rows = slice(2, 4)
    alone = parts(guided(x[rows], 200, cond[rows]), x[rows], 200)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_stays(spec, dtype):
    x, cond = inputs(dtype=dtype)
    assert guidance(spec)(MIXTURE)(x, 400, cond).x0.dtype == dtype


def test_scale_0_is_neutral_to_the_bit(spec):
    if "scale" not in inspect.signature(type(guidance(spec))).parameters:
        pytest.skip("has no scale")
    off = lookup.build("guidance", f"{spec.partition(':')[0]}:scale=0", given=MODELS)
    x, cond = inputs()
    for a, b in zip(parts(off(MIXTURE)(x, 100, cond), x, 100), parts(MIXTURE(x, 100), x, 100), strict=True):
        assert torch.equal(a, b)


def test_weight_1_is_the_denoiser_itself(spec):
    if "weight" not in inspect.signature(type(guidance(spec))).parameters:
        pytest.skip("has no weight")
    off = lookup.build("guidance", f"{spec.partition(':')[0]}:weight=1", given=MODELS)
    assert off(MIXTURE) is MIXTURE


def test_strengths_that_are_no_numbers_are_refused(spec):
    made = guidance(spec)
    strengths = {"scale", "weight", "parallel", "tau1", "tau2", "gamma", "factor", "slope"}
    for name in strengths & set(inspect.signature(type(made)).parameters):
        for value in ("nan", "inf", "-inf"):
            with pytest.raises(ValueError, match=rf"{name} {value}: choose a number; "):
                dataclasses.replace(made, **{name: float(value)})


@pytest.mark.parametrize("other", SPECS)
def test_stages_and_not_the_order_of_arguments_decide(spec, other):
    first, second = guidance(spec), guidance(other)
    if first.stage == second.stage:
        pytest.skip("same stage: the order given holds")
    x, cond = inputs()
    for a, b in zip(
        parts(adm.guide(MIXTURE, first, second)(x, 50, cond), x, 50),
        parts(adm.guide(MIXTURE, second, first)(x, 50, cond), x, 50),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_beside_one_of_each_stage_it_finds_its_place(spec):
    made = [guidance(s) for s in dict.fromkeys(["epsilon_scaling", "clip", "classifier", "clip:after=true", spec])]
    by_hand = MIXTURE
    for one in sorted(made, key=lambda one: STAGES.index(one.stage)):
        by_hand = one(by_hand)
    x, cond = inputs()
    expected = parts(by_hand(x, 50, cond), x, 50)
    stable = [list(group) for _, group in itertools.groupby(sorted(made, key=lambda g: g.stage), lambda g: g.stage)]
    for order in itertools.permutations(stable):
        found = parts(adm.guide(MIXTURE, *itertools.chain(*order))(x, 50, cond), x, 50)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_samples_under_it_are_finite(spec):
    chain = adm.Chain(SCHEDULE, adm.strided(1000, 20))
    x, cond = inputs()
    for sampler in (adm.DDPM(), adm.DDIM()):
        out = adm.sample(
            adm.guide(MIXTURE, guidance(spec)), chain, sampler, adm.SeededNoise(range(6), F64), x.shape, cond
        )
        assert torch.isfinite(out).all()
