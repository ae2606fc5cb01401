"""The samplers on EDM's and flow's schedules: closed forms for Gaussian data, and those papers' own Euler steps."""

import itertools
import math

import pytest
import torch

import adm
from analytic import gaussian, linear_map

F64 = torch.float64
SCHEDULES = {"edm": adm.edm(1000), "flow": adm.flow(1000)}


@pytest.mark.parametrize("count", [4, 10, 50, 250, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_t3_ancestral_sampling_is_exact_at_any_respacing(name, count):
    """Only the noise that the last step leaves out is missing: Var(x_0 | x_t at t = 0) = V sigma^2 / (V + sigma^2)."""
    schedule, variance = SCHEDULES[name], 0.25
    chain = adm.Chain(schedule, adm.spaced(1000, count))
    gain, noise = linear_map(gaussian(schedule, variance, chain=chain), chain, adm.DDPM())
    start = variance * float(chain[0].alpha_bar) + 1 - float(chain[0].alpha_bar)
    lowest = {"edm": 0.002, "flow": 1 / 1000}[name] ** 2
    assert gain**2 * start + noise == pytest.approx(variance - variance * lowest / (variance + lowest), rel=1e-9)


@pytest.mark.parametrize(("links", "error"), [(25, -0.1005), (50, -0.0516), (100, -0.0261), (200, -0.0132)])
def test_t2_ddim_on_edms_schedule_has_the_known_relative_error(links, error):
    schedule = adm.edm(links + 1)
    chain = adm.Chain(schedule, range(1, links + 1), end=0)
    x = torch.ones(1, 1, 1, 1, dtype=F64) / math.sqrt(1 + 80**2)
    out = adm.sample(gaussian(schedule, 0.25), chain, adm.DDIM(), None, x.shape, x=x)
    exact = math.sqrt((0.25 + 0.002**2) / (0.25 + 80**2))
    assert float(out) * math.sqrt(1 + 0.002**2) / exact - 1 == pytest.approx(error, abs=6e-5)


class Crooked(torch.nn.Module):
    """A network that is no exact solution of anything."""

    def forward(self, x, t, label=None, low_res=None):
        return torch.sin(2 * x + t.reshape(-1, 1, 1, 1) / 100) - 0.3 * x


def test_ddim_on_the_straight_path_is_eulers_method_for_the_velocity():
    """z <- z + (u_s - u) v(z, 1000 u) from u = 40/41 down to 0 (rectified flow)."""
    model = adm.DiffusionModel(Crooked(), adm.flow(40), "flow", "small")
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    ours = adm.sample(model, adm.Chain(model.schedule, range(40)), adm.DDIM(), None, x.shape, x=x)
    u = torch.arange(40, -1, -1, dtype=F64) / 41
    z = x * ((1 - u[0]) ** 2 + u[0] ** 2).sqrt()
    for here, there in itertools.pairwise(u):
        z = z + (there - here) * Crooked()(z, 1000 * here.expand(3))
    torch.testing.assert_close(ours, z, rtol=1e-9, atol=1e-9)


def test_ddim_on_edms_schedule_is_its_euler_step():
    """x <- x + (sigma_s - sigma) (x - D(x, sigma)) / sigma with D of EDM Eq. 7 (EDM Alg. 1 without the correction)."""
    model = adm.DiffusionModel(Crooked(), adm.edm(30), "edm", "small")
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    ours = adm.sample(model, adm.Chain(model.schedule, range(30)), adm.DDIM(), None, x.shape, x=x)
    sigmas = [80 * (0.002 / 80) ** (i / 29) for i in range(30)] + [0.0]
    y = x * math.sqrt(1 + sigmas[0] ** 2)
    for sigma, lower in itertools.pairwise(sigmas):
        total = sigma**2 + 0.25
        time = torch.full((3,), math.log(sigma) / 4, dtype=F64)
        D = 0.25 / total * y + sigma * 0.5 / math.sqrt(total) * Crooked()(y / math.sqrt(total), time)
        y = y + (lower - sigma) * (y - D) / sigma
    torch.testing.assert_close(ours, y, rtol=1e-8, atol=1e-8)
