"""What every sampler owes: parametrised over the files of the room, so that a new file is tested by being there."""

import dataclasses
import itertools

import pytest
import torch

import adm
from adm.diffusion.schedule import expand
from adm.runtime import lookup
from adm.sampling import StepEvent, timesteps_for
from analytic import GaussianGuide, gaussian

F64 = torch.float64
VARIANTS = {
    "ddim": ["ddim:eta=0.5"],
    "ddpm": ["ddpm:grad_at=mean", "ddpm:interpolation=linear"],
    "euler": ["euler:churn=5,churn_max=50"],
    "heun": ["heun:churn=40,churn_max=50"],
    "ipndm": ["ipndm:order=2"],
    "dpm_solver_sde": ["dpm_solver_sde:eta=0.5"],
    "unipc": ["unipc:order=3"],
}
"""More specs of a file, beside the one without options."""
SPECS = [spec for name in lookup.available("sampling") for spec in (name, *VARIANTS.get(name, []))]

pytestmark = pytest.mark.parametrize("spec", SPECS)


class Shrink:
    """The exact answer for pixels from N(0, 0.25), at a t for each image too, with a learned variance of its own."""

    schedule = adm.cosine(1000)
    variance = 0.25

    def __init__(self):
        self.calls = 0

    def __call__(self, x_t, t, cond=adm.Condition()):
        self.calls += 1
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x0 = alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t
        return adm.Prediction(x_t, x0, alpha, sigma, expand(torch.tensor(0.4, dtype=F64), x_t))


def sampler(spec):
    return lookup.build("sampling", spec)


def chain_of(spec, links=5, schedule=Shrink.schedule):
    return adm.Chain(schedule, timesteps_for(sampler(spec), schedule, links))


def drawn(noise, i, shape):
    return lambda draw=0: noise.at(i, shape, draw)


def test_the_class_of_the_file_is_public(spec):
    assert getattr(adm, type(sampler(spec)).__name__) is type(sampler(spec))


def test_gaussian_data_come_out_with_their_mean_and_variance(spec):
    schedule = adm.linear(1000)
    chain = chain_of(spec, 250, schedule)
    shape = (1, 1, 120, 120)  # every pixel is a sample
    x = adm.sample(gaussian(schedule, 0.25, 0.3, chain), chain, sampler(spec), adm.SeededNoise([0], F64), shape)
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)
    assert float(((x - x.mean()) / x.std()).pow(4).mean()) == pytest.approx(3, abs=0.2)


def test_the_exact_classifier_turns_the_prior_into_the_class(spec):
    schedule = adm.linear(1000)
    chain = chain_of(spec, 250, schedule)
    denoiser = adm.guide(
        gaussian(schedule, 2.0, chain=chain), adm.ClassifierGuidance(GaussianGuide(schedule, 2.0, 1.0))
    )
    cond = adm.Condition(label=torch.zeros(1, dtype=torch.long))
    x = adm.sample(denoiser, chain, sampler(spec), adm.SeededNoise([1], F64), (1, 1, 120, 120), cond)
    assert float(x.var()) == pytest.approx(1.0, rel=0.06)


def test_guidance_at_scale_0_changes_no_bit(spec):
    chain, noise = chain_of(spec), adm.SeededNoise(range(2))
    off = adm.ClassifierGuidance(GaussianGuide(Shrink.schedule, 2.0, 1.0), scale=0)
    cond = adm.Condition(label=[0, 1])
    plain, guided = (
        adm.sample(d, chain, sampler(spec), noise, (2, 1, 4, 4), cond) for d in (Shrink(), adm.guide(Shrink(), off))
    )
    assert torch.equal(plain, guided)


def test_an_image_does_not_depend_on_its_batch(spec):
    chain = chain_of(spec)

    def run(seeds):
        return adm.sample(Shrink(), chain, sampler(spec), adm.SeededNoise(seeds), (len(seeds), 2, 4, 4))

    together = run(range(8))
    for batch in ([5], [4, 5, 6], [5, 0]):
        torch.testing.assert_close(run(batch), together[batch], rtol=0, atol=1e-6)
    assert not torch.equal(together[4], together[5])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_x_keeps_its_dtype_and_inputs_are_left_alone(spec, dtype):
    chain, shape = chain_of(spec), (2, 1, 4, 4)
    noise = adm.RecordedNoise([torch.full(shape, 0.1 * k, dtype=F64) for k in range(len(chain) + 1)])
    x = adm.SeededNoise([0, 1], dtype).initial(shape)
    before = [x.clone(), *(tensor.clone() for tensor in noise.tensors)]
    out = adm.sample(Shrink(), chain, sampler(spec), noise, shape, x=x)
    assert out.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *noise.tensors], strict=True))


def test_nothing_is_remembered_but_in_the_state(spec):
    """Two runs of one sampler object, step about, equal the same runs one after the other."""
    rule, chain, shape = sampler(spec), chain_of(spec), (1, 1, 4, 4)
    noises = [adm.SeededNoise([seed], F64) for seed in (0, 1)]
    apart = [adm.sample(Shrink(), chain, rule, noise, shape) for noise in noises]
    xs, states = [noise.initial(shape) for noise in noises], [rule.init(), rule.init()]
    for i, link in enumerate(chain):
        for run, noise in enumerate(noises):
            xs[run], states[run] = rule.step(Shrink(), xs[run], link, drawn(noise, i, shape), states[run])
    assert all(torch.equal(a, b) for a, b in zip(xs, apart, strict=True))


def test_a_step_is_differentiable(spec):
    rule, chain, shape = sampler(spec), chain_of(spec), (2, 1, 1, 2)
    noise = adm.SeededNoise([0, 1], F64)
    x = noise.initial(shape).requires_grad_()
    link = chain[2]
    assert torch.autograd.gradcheck(lambda x: rule.step(Shrink(), x, link, drawn(noise, 2, shape), rule.init())[0], x)


def test_the_loop_leaves_no_graph_behind(spec):
    x = adm.SeededNoise([0]).initial((1, 1, 2, 2)).requires_grad_()
    out = adm.sample(Shrink(), chain_of(spec), sampler(spec), adm.SeededNoise([0]), x.shape, x=x)
    assert not out.requires_grad


def test_on_step_sees_each_step_and_may_replace_its_end(spec):
    chain, shape = chain_of(spec), (2, 1, 4, 4)
    events: list[StepEvent] = []

    def on_step(event):
        events.append(event)
        return event.x_s * 0 + event.i if event.i in (1, len(chain) - 1) else None

    out = adm.sample(Shrink(), chain, sampler(spec), adm.SeededNoise([0, 1]), shape, on_step=on_step)
    assert [e.i for e in events] == list(range(len(chain)))
    assert all(e.t == link.t and e.s == link.s for e, link in zip(events, chain, strict=True))
    assert torch.equal(events[0].x_t, adm.SeededNoise([0, 1]).initial(shape))
    for earlier, later in itertools.pairwise(events):
        assert torch.equal(later.x_t, torch.ones(shape) if earlier.i == 1 else earlier.x_s)
    for e in events:
        assert e.prediction is not None
        sigma = float(Shrink.schedule.alpha_sigma(e.t, e.x_t)[1])
        if float(e.prediction.sigma) > sigma and "churn" in spec:  # asked first at a noisier x, above t
            continue
        assert torch.equal(e.prediction.x_t, e.x_t)
        torch.testing.assert_close(e.prediction.x0, Shrink()(e.x_t, e.t).x0)
    assert torch.equal(out, torch.full(shape, float(len(chain) - 1)))


def test_watching_changes_nothing(spec):
    def run(**watch):
        return adm.sample(Shrink(), chain_of(spec), sampler(spec), adm.SeededNoise([0]), (1, 1, 4, 4), **watch)

    assert torch.equal(run(), run(on_step=lambda event: None))


def test_a_chain_may_end_at_noise(spec):
    """Down to t = 300 the samples have the marginal there: variance alpha^2 v + sigma^2."""
    chain = adm.Chain(adm.linear(1000), range(310, 1000, 3), end=300)
    shape = (1, 1, 120, 120)
    x = adm.sample(gaussian(chain.schedule, 0.25, chain=chain), chain, sampler(spec), adm.SeededNoise([0], F64), shape)
    alpha_bar = float(chain[-1].alpha_bar_s)
    assert not bool(chain[-1].last) and torch.isfinite(x).all()
    assert float(x.var()) == pytest.approx(alpha_bar * 0.25 + 1 - alpha_bar, rel=0.04)


def test_a_link_for_each_image_is_as_one_for_each_by_itself(spec):
    rule, chain, shape = sampler(spec), chain_of(spec), (3, 1, 4, 4)
    which = torch.tensor([0, 2, len(chain) - 1])  # the last step, which adds no noise, is among them
    noise = adm.SeededNoise(range(3), F64)
    x = noise.initial(shape)
    together, _ = rule.step(Shrink(), x, chain[which], drawn(noise, 1, shape), rule.init())
    for k, i in enumerate(which.tolist()):
        one = adm.SeededNoise([k], F64)
        alone, _ = rule.step(Shrink(), x[k : k + 1], chain[i], drawn(one, 1, (1, 1, 4, 4)), rule.init())
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-12)


def test_a_single_link_takes_noise_to_data(spec):
    chain = adm.Chain(Shrink.schedule, [500])
    out = adm.sample(Shrink(), chain, sampler(spec), adm.SeededNoise([0]), (1, 1, 2, 2))
    assert torch.isfinite(out).all() and bool(chain[0].last)


def test_the_grid_is_made_of_timesteps_of_the_schedule(spec):
    schedule = Shrink.schedule
    for links in (1, 5, 50):
        timesteps = timesteps_for(sampler(spec), schedule, links)
        assert len(set(timesteps)) == links and min(timesteps) >= 0 and max(timesteps) < 1000
        assert links == 1 or min(timesteps) == 0
    with pytest.raises(ValueError, match="1001"):
        timesteps_for(sampler(spec), schedule, 1001)


def test_any_grid_can_be_walked(spec):
    for steps in ("even:6", "strided:5", "log-snr:6", "karras:6", "2,3,1", "ddim5", [0, 3.5, 700.25]):
        chain = adm.Chain(Shrink.schedule, timesteps_for(sampler(spec), Shrink.schedule, steps))
        x = adm.sample(Shrink(), chain, sampler(spec), adm.SeededNoise([0], F64), (1, 1, 4, 4))
        assert torch.isfinite(x).all() and float(x.abs().max()) < 5


def test_another_schedules_chain_is_refused_before_anything_is_evaluated(spec):
    denoiser = Shrink()
    with pytest.raises(ValueError, match="another schedule"):
        adm.sample(denoiser, adm.Chain(adm.linear(1000), [5]), sampler(spec), adm.SeededNoise([0]), (1, 1, 2, 2))
    assert denoiser.calls == 0


def test_shapes_and_labels_that_do_not_fit_are_refused(spec):
    chain, noise = chain_of(spec), adm.SeededNoise([0, 1])
    with pytest.raises(ValueError, match=r"\(1, 1, 2, 2\), but \(2, 1, 2, 2\)"):
        adm.sample(Shrink(), chain, sampler(spec), noise, (2, 1, 2, 2), x=torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="3 labels for 2 images"):
        adm.sample(Shrink(), chain, sampler(spec), noise, (2, 1, 2, 2), adm.Condition(label=[0, 1, 2]))
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        adm.sample(Shrink(), chain, sampler(spec), noise, (3, 1, 2, 2))
    with pytest.raises(ValueError, match="give noise"):
        adm.sample(Shrink(), chain, sampler(spec), None, (2, 1, 2, 2))


def test_options_are_frozen_values(spec):
    rule = sampler(spec)
    assert dataclasses.is_dataclass(rule) and rule == sampler(spec)
    for field in dataclasses.fields(rule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, field.name, None)
