"""Five parametrizations of one belief: the same x_0, whatever the network is trained to return."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import adm
from adm.diffusion.losses import denoising_loss
from adm.diffusion.model import NetworkOutput

MEANS = ["eps", "x0", "v", "edm", "flow"]
SCHEDULE = adm.linear(1000)
T = torch.tensor([0, 1, 10, 250, 600, 999])
V = 1.5  # variance of the data


class GaussianNetwork(nn.Module):
    """The optimal network for N(0, V) data, each kind in its own literature's variables; records what it is given."""

    def __init__(self, mean: str) -> None:
        super().__init__()
        self.mean, self.seen = mean, []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
        self.seen.append((x, t))
        if self.mean == "edm":
            # EDM Table 1, with noise sigma = exp(4 c_noise) on y = x_0 + sigma n, given as c_in y.
            sigma, data = (4 * t).exp().view(-1, 1, 1, 1), 0.5
            y = x * (sigma**2 + data**2).sqrt()
            denoised = V * y / (V + sigma**2)
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
            return (denoised - skip * y) / out
        if self.mean == "flow":
            # Rectified flow on z = (1 - u) x_0 + u eps: E[eps - x_0 | z], told 1000 u.
            u = (t / 1000).view(-1, 1, 1, 1)
            return (u - (1 - u) * V) * x / ((1 - u) ** 2 * V + u**2)
        a, s = alpha_sigma(t)
        score = -x / (a**2 * V + s**2)
        eps = -s * score
        x0 = (x + s**2 * score) / a  # Tweedie
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0}[self.mean]


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """From the betas of DDPM section 4, multiplied out here."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def model(mean: str, network: nn.Module | None = None, variance: str = "small", **options) -> adm.DiffusionModel:
    return adm.DiffusionModel(network or GaussianNetwork(mean), SCHEDULE, mean, variance, **options)


def noisy(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, len(T), 1, 4, 4, generator=rng, dtype=torch.float64)
    return x0, eps, SCHEDULE.q_sample(x0, T, eps)


@pytest.mark.parametrize("mean", MEANS)
def test_the_exact_network_of_gaussian_data_predicts_its_posterior_mean(mean: str) -> None:
    _, _, x_t = noisy()
    a, s = alpha_sigma(T)
    p = model(mean)(x_t, T)
    torch.testing.assert_close(p.x0, a * V * x_t / (a**2 * V + s**2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.score, -x_t / (a**2 * V + s**2), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(p.v, a * p.eps - s * p.x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", ["eps", "x0", "v"])
def test_the_twin_a_network_of_another_kind_is_seen(mean: str) -> None:
    _, _, x_t = noisy()
    a, s = alpha_sigma(T)
    wrong = model(mean, GaussianNetwork({"eps": "v", "x0": "eps", "v": "x0"}[mean]))(x_t, T)
    assert (wrong.x0 - a * V * x_t / (a**2 * V + s**2)).abs().max() > 0.1


@pytest.mark.parametrize("mean", MEANS)
def test_what_a_network_is_trained_to_return_predicts_the_x0_it_came_from(mean: str) -> None:
    x0, eps, x_t = noisy()
    m = model(mean)
    p = m.predict(x_t, T, NetworkOutput(m.target(x0, T, eps), None))
    torch.testing.assert_close(p.x0, x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(p.eps, eps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
def test_the_slope_is_the_derivative_of_x0_by_the_output(mean: str) -> None:
    """Against autograd: every parametrization is affine in what the network returns."""
    _, _, x_t = noisy()
    m = model(mean)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(m.predict(x_t, T, NetworkOutput(output, None)).x0.sum(), output)
    torch.testing.assert_close(m.x0_slope(T, x_t).expand_as(slope), slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize("other", MEANS)
@pytest.mark.parametrize("mean", MEANS)
def test_all_parametrizations_say_the_same_of_any_x0(mean: str, other: str) -> None:
    """The output of one kind, turned into x_0 and eps and those into the output of another, gives the same x_0."""
    _, _, x_t = noisy()
    here, there = model(mean), model(other)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    p = here.predict(x_t, T, NetworkOutput(output, None))
    q = there.predict(x_t, T, NetworkOutput(there.target(p.x0, T, p.eps), None))
    torch.testing.assert_close(q.x0, p.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(here.target(q.x0, T, q.eps), output, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mean", MEANS)
def test_the_exact_network_is_a_minimum_of_the_training_loss(mean: str) -> None:
    """Scaled up or down it does worse, on 4000 images of the Gaussian."""
    rng = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 4000, 1, 1, 1, generator=rng, dtype=torch.float64)
    x0 = x0 * math.sqrt(V)
    t = torch.full((4000,), 300)
    link = adm.Chain(SCHEDULE, range(1000))[999 - t]

    class Scaled(GaussianNetwork):
        factor = 1.0

        def forward(self, *given) -> Tensor:
            return self.factor * super().forward(*given)

    losses = []
    for factor in (0.8, 1.0, 1.2):
        network = Scaled(mean)
        network.factor = factor
        losses.append(denoising_loss(model(mean, network), link, x0, eps, adm.Condition(), "simple").loss.mean())
    assert losses[1] < min(losses[0], losses[2])


def test_edm_gives_its_network_unit_variance_and_data_of_sigma_data_need_no_network() -> None:
    class Zero(nn.Module):
        def forward(self, x, t, label=None, low_res=None):
            self.x = x
            return torch.zeros_like(x)

    rng = torch.Generator().manual_seed(2)
    x0, eps = torch.randn(2, 20_000, 1, 1, 1, generator=rng, dtype=torch.float64)
    t = torch.full((20_000,), 400)
    network = Zero()
    p = model("edm", network)(SCHEDULE.q_sample(0.5 * x0, t, eps), t)
    assert network.x.var() == pytest.approx(1, abs=0.05)
    a, s = alpha_sigma(t)
    torch.testing.assert_close(p.x0, a * 0.25 * p.x_t / (a**2 * 0.25 + s**2), rtol=1e-9, atol=1e-9)


# ---- variance -------------------------------------------------------------------------------------


def test_variance_rules() -> None:
    """small: beta_tilde; large: beta, but beta_tilde at t = 0 (released); learned: iDDPM Eq. 15."""
    _, _, x_t = noisy()
    link = adm.Chain(SCHEDULE, range(1000))[999 - T]
    small, large = (link.log_var(model("eps", variance=v)(x_t, T).var_frac).flatten() for v in ("small", "large"))
    torch.testing.assert_close(small, link.log_beta_tilde)
    torch.testing.assert_close(large[1:], link.log_beta[1:])
    assert large[0] == small[0] == link.log_beta_tilde[0]

    class WithVariance(GaussianNetwork):
        def forward(self, *given):
            mean = super().forward(*given)
            return torch.cat([mean, torch.linspace(-3, 3, len(T)).view(-1, 1, 1, 1).expand_as(mean)], dim=1)

    learned = model("eps", WithVariance("eps"), "learned")(x_t, T)
    half = torch.linspace(-1, 2, len(T)).view(-1, 1, 1, 1)  # (v + 1) / 2, not clamped
    torch.testing.assert_close(learned.var_frac, half.expand_as(x_t).to(x_t.dtype))
    torch.testing.assert_close(learned.x0, model("eps")(x_t, T).x0)


def test_a_network_whose_channels_do_not_fit_the_variance_is_refused() -> None:
    _, _, x_t = noisy()
    with pytest.raises(ValueError, match="returned 1 channels for 1-channel images; variance='learned' needs 2"):
        model("eps", variance="learned")(x_t, T)


# ---- timesteps ------------------------------------------------------------------------------------


def test_the_network_is_given_t_times_the_scale_and_edm_a_quarter_of_the_log_sigma() -> None:
    _, _, x_t = noisy()

    def seen(mean: str, **options) -> Tensor:
        network = GaussianNetwork(mean)
        model(mean, network, **options).output(x_t, T)
        return network.seen[0][1]

    class Timesteps(GaussianNetwork):
        def forward(self, x, t, label=None, low_res=None):
            self.seen.append((x, t))
            return torch.zeros_like(x)

    assert torch.equal(seen("x0"), T) and not seen("x0").is_floating_point()
    network = Timesteps("x0")
    model("x0", network, time_scale=0.25).output(x_t, T)
    assert torch.equal(network.seen[0][1], T.double() / 4)
    a, s = alpha_sigma(T)
    torch.testing.assert_close(seen("edm"), (s / a).log().flatten() / 4)
    with pytest.raises(ValueError, match="time_scale has no meaning with mean='edm'"):
        model("edm", time_scale=0.25)


def test_flow_is_given_the_straight_path_and_a_thousand_u() -> None:
    """z = (1 - u) x_0 + u eps with the schedule's noise-to-signal ratio; on adm.flow u is (t + 1) / (T + 1)."""
    x0, eps, x_t = noisy()
    a, s = alpha_sigma(T)
    network = GaussianNetwork("flow")
    model("flow", network).output(x_t, T)
    z, time = network.seen[0]
    u = s / (a + s)
    torch.testing.assert_close(z, (1 - u) * x0 + u * eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(time, 1000 * u.flatten())
    straight = adm.DiffusionModel(network, adm.flow(99), "flow", "small")
    t = torch.tensor([0, 1, 24, 49, 74, 98])
    straight.output(straight.schedule.q_sample(x0, t, eps), t)
    z, time = network.seen[1]
    u = torch.tensor([0.01, 0.02, 0.25, 0.5, 0.75, 0.99], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(time, 1000 * u.flatten())
    torch.testing.assert_close(z, (1 - u) * x0 + u * eps, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="time_scale has no meaning with mean='flow', which is given 1000 u"):
        model("flow", time_scale=0.25)


@pytest.mark.parametrize("wrong", [("mean", "epsilon"), ("variance", "learned_range")])
def test_unknown_kinds_are_refused_by_name(wrong: tuple[str, str]) -> None:
    name, value = wrong
    with pytest.raises(ValueError, match=f"{name} '{value}': choose"):
        adm.DiffusionModel(GaussianNetwork("eps"), SCHEDULE, **{name: value})


def test_single_precision_stays_single_and_double_double() -> None:
    _, _, x_t = noisy()
    for dtype in (torch.float32, torch.float64):
        p = model("edm")(x_t.to(dtype), T)
        assert {p.x0.dtype, p.eps.dtype, p.var_frac.dtype} == {dtype}
