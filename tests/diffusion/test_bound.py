"""The variational bound, the hybrid loss and timestep sampling against closed forms (float64)."""

import math

import pytest
import torch
from torch import nn

import adm
from adm.diffusion.likelihood import bits_per_dim
from adm.diffusion.losses import denoising_loss, discretized_gaussian_log_likelihood
from adm.diffusion.timesteps import LossSecondMoment, Uniform

F64 = torch.float64


class Constant:
    """The same number for every draw."""

    def __init__(self, value):
        self.value = value

    def at(self, i, shape, draw=0):
        return torch.full(shape, self.value, dtype=F64)


class StandardNormalData:
    """x_0 ~ N(0, 1): eps* = sqrt(1 - alpha_bar) x_t, and Sigma = beta."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, cond=adm.Condition()):
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return adm.Prediction(x_t, (x_t - sigma**2 * x_t) / alpha, alpha, sigma, torch.ones_like(alpha))


@pytest.mark.parametrize(
    "schedule", [adm.cosine(20), adm.cosine(100), adm.cosine(1000), adm.linear(100), adm.linear(1000)]
)
def test_t10_the_bound_is_the_likelihood_of_every_x0(schedule):
    x0 = torch.tensor([-2.5, -0.3, 0.0, 0.7, 1.9], dtype=F64).reshape(-1, 1, 1, 1)
    chain = adm.Chain(schedule, range(schedule.num_timesteps))
    totals = [
        bits_per_dim(StandardNormalData(schedule), chain, x0, Constant(z), decoder="continuous").total
        for z in (1.0, -1.0)
    ]
    nats = (totals[0] + totals[1]) / 2 * math.log(2)
    exact = 0.5 * (math.log(2 * math.pi) + x0.flatten() ** 2)
    torch.testing.assert_close(nats, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 16, 256, 65536])
@pytest.mark.parametrize("log_std", [-8.0, -3.0, 0.5])
def test_t10_the_decoder_is_a_distribution_over_the_levels(levels, log_std):
    x0 = torch.linspace(-1, 1, levels, dtype=F64)
    mean, log_std = torch.full_like(x0, 0.123), torch.full_like(x0, log_std)
    mass = discretized_gaussian_log_likelihood(x0, mean, log_std, levels).exp().sum()
    assert float(mass) == pytest.approx(1, abs=levels * 1.1e-12)


class GaussianNetwork(nn.Module):
    """The exact eps of N(0, variance) data, with a scale on it and a v to learn."""

    def __init__(self, schedule, variance):
        super().__init__()
        self.schedule, self.data_variance = schedule, variance
        self.eps_scale = nn.Parameter(torch.ones((), dtype=F64))
        self.v = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, t, label, low_res):
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        eps = self.eps_scale * sigma * x / (alpha**2 * self.data_variance + sigma**2)
        return torch.cat([eps, self.v.expand_as(x)], dim=1)


@pytest.mark.parametrize(
    ("t", "v_star"), [(1, 0.99909), (10, 0.98783), (100, 0.52468), (500, -0.46885), (999, -0.49998)]
)
def test_t4_learning_the_variance_reaches_its_optimum_and_leaves_eps_alone(t, v_star):
    schedule = adm.linear(1000)
    network = GaussianNetwork(schedule, 0.25)
    model = adm.DiffusionModel(network, schedule)
    # Two-point rules in x_0 and eps integrate the bound, a quadratic in both, exactly.
    x0 = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=F64).reshape(4, 1, 1, 1)
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64).reshape(4, 1, 1, 1)
    link = adm.Chain(schedule, range(1000))[torch.full((4,), 999 - t)]

    def vb():
        return denoising_loss(model, link, x0, eps, adm.Condition(), "hybrid").terms["vb"].mean()

    for _ in range(50):  # Newton's method: the bound is convex in v, and nearly flat at large t
        (slope,) = torch.autograd.grad(vb(), network.v, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, network.v)
        with torch.no_grad():
            network.v -= slope.detach() / curvature
    assert float(network.v.detach()) == pytest.approx(v_star, abs=2e-5)
    grad = torch.autograd.grad(vb(), network.eps_scale, allow_unused=True)[0]
    assert grad is None or float(grad) == 0
    full = denoising_loss(model, link, x0, eps, adm.Condition(), "vlb").loss.mean()
    with torch.no_grad():
        network.eps_scale += 0.1
    full = denoising_loss(model, link, x0, eps, adm.Condition(), "vlb").loss.mean()
    assert float(torch.autograd.grad(full, network.eps_scale)[0]) > 0  # the twin: the full bound does reach eps


@pytest.mark.parametrize("T", [400, 1000, 4000])
def test_t11_the_hybrid_loss_is_mse_plus_the_bound_in_bits(T):
    schedule = adm.linear(T)
    model = adm.DiffusionModel(GaussianNetwork(schedule, 0.25), schedule)
    x0, eps = torch.full((1, 1, 1, 1), 0.3, dtype=F64), torch.full((1, 1, 1, 1), -0.7, dtype=F64)
    link = adm.Chain(schedule, range(T))[torch.tensor([T // 2])]
    kinds = {kind: denoising_loss(model, link, x0, eps, adm.Condition(), kind) for kind in
             ("simple", "hybrid", "hybrid_rescaled", "vlb", "vlb_rescaled")}  # fmt: skip
    mse, vb = kinds["hybrid"].terms["mse"], kinds["hybrid"].terms["vb"]
    # The KL of two Gaussians, by torch's own distributions.
    p = model(schedule.q_sample(x0, link.t, eps), link.t)
    q_true = torch.distributions.Normal(link.mean(x0, p.x_t), link.beta_tilde.sqrt())
    q_model = torch.distributions.Normal(link.mean(p.x0, p.x_t), (0.5 * link.log_var(p.var_frac)).exp())
    kl = torch.distributions.kl_divergence(q_true, q_model).flatten() / math.log(2)
    torch.testing.assert_close(vb, kl, rtol=1e-9, atol=0)
    torch.testing.assert_close(mse, (p.eps - eps).flatten() ** 2, rtol=1e-9, atol=0)
    expected = {"simple": mse, "hybrid": mse + vb, "hybrid_rescaled": mse + vb * T / 1000, "vlb": vb}
    expected["vlb_rescaled"] = vb * T
    for kind, value in expected.items():
        torch.testing.assert_close(kinds[kind].loss, value, rtol=1e-12, atol=0)


def test_t11_importance_sampling_of_timesteps_is_unbiased():
    T = 50
    loss = torch.linspace(0.01, 3.0, T, dtype=F64)
    sampler = LossSecondMoment.new(T)
    for _ in range(9):
        sampler = sampler.updated(torch.arange(T), loss)
    assert torch.equal(sampler.probabilities(), torch.full((T,), 1 / T, dtype=F64))  # not every t has its 10 yet
    sampler = sampler.updated(torch.arange(T), loss)
    p = sampler.probabilities()
    torch.testing.assert_close(p, 0.999 * loss / loss.sum() + 0.001 / T, rtol=1e-12, atol=0)
    # An even grid of uniforms draws each t in proportion to p; the weights undo that.
    t, weight = sampler.draw((torch.arange(200_000, dtype=F64) + 0.5) / 200_000)
    torch.testing.assert_close(torch.bincount(t, minlength=T) / 200_000, p.float(), rtol=0, atol=1e-5)
    assert float((weight.double() * loss[t]).mean()) == pytest.approx(float(loss.mean()), rel=2e-4)
    assert float((p * loss / (T * p)).sum()) == pytest.approx(float(loss.mean()), rel=1e-12)


def test_the_loss_history_keeps_the_last_ten_of_each_timestep():
    sampler = LossSecondMoment.new(3)
    for value in range(25):
        sampler = sampler.updated(torch.tensor([1, 1]), torch.tensor([2.0 * value, 2.0 * value + 1]))
    assert sampler.history[1].tolist() == [float(v) for v in range(40, 50)]
    assert sampler.count.tolist() == [0, 10, 0]
    again = LossSecondMoment.new(3).restored(sampler.state())
    assert torch.equal(again.history, sampler.history)


def test_uniform_timesteps_cover_the_range():
    t, weight = Uniform(7).draw((torch.arange(70) + 0.5) / 70)
    assert torch.bincount(t).tolist() == [10] * 7
    assert weight.tolist() == [1.0] * 70
