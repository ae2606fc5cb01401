"""The fitted grid: its costs in closed form, its path against every other path, and what it is good for."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import adm
from adm.sampling import timesteps_for
from adm.sampling._fitted import cheapest_path, fit_timesteps, jump_errors
from analytic import MixtureClassifier, MixtureDenoiser, gaussian

F64 = torch.float64
MEANS = torch.tensor([[-0.8, 0.3], [0.5, -0.5], [0.2, 0.9]])
VARIANCES = torch.tensor([0.01, 0.02, 0.005])


def chain(schedule, steps):
    return adm.Chain(schedule, timesteps_for(adm.DDIM(), schedule, steps))


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all_paths(seed):
    n = 9
    costs = torch.from_numpy(np.random.RandomState(seed).rand(n, n + 1)).triu(1)
    costs[costs == 0] = math.inf
    starts = torch.from_numpy(np.random.RandomState(seed + 100).rand(n))
    for links in range(1, n + 1):
        paths = [(*nodes, n) for nodes in itertools.combinations(range(n), links)]
        totals = {
            path: float(starts[path[0]]) + sum(float(costs[a, b]) for a, b in itertools.pairwise(path))
            for path in paths
        }
        best = min(totals, key=totals.__getitem__)
        assert cheapest_path(starts, costs, links) == list(best[:-1])


def test_all_links_are_the_chain_itself_and_one_is_its_first():
    costs = torch.ones(5, 6)
    costs[torch.tril(torch.ones(5, 6)).bool()] = math.inf
    starts = torch.arange(5.0)
    assert cheapest_path(starts, costs, 5) == [0, 1, 2, 3, 4]
    assert cheapest_path(starts, costs, 1) == [0]
    for links in (0, 6):
        with pytest.raises(ValueError, match=f"cannot fit {links} links to a chain of 5: use 1 to 5"):
            cheapest_path(starts, costs, links)


def factor(variance, link_from, link_to):
    """x_s / x_t of one Euler step of DDIM on data from N(0, variance), with x_0 = gain x_t."""
    alpha, sigma = link_from
    alpha_s, sigma_s = link_to
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    return alpha_s * gain + sigma_s * (1 - alpha * gain) / sigma


def test_on_gaussian_data_the_costs_are_those_of_the_linear_recursion():
    schedule, variance = adm.linear(1000), 0.25
    fine = chain(schedule, "log-snr:12")
    noise, shape = adm.SeededNoise(range(3), F64), (3, 1, 2, 2)
    starts, errors = jump_errors(gaussian(schedule, variance), fine, noise, shape, adm.DDIM())
    points = [(float(link.alpha), float(link.sigma)) for link in fine] + [(1.0, 0.0)]
    reached = [1.0]  # by the teacher, from x_T = 1
    for here, there in itertools.pairwise(points):
        reached.append(reached[-1] * factor(variance, here, there))
    power = float(noise.initial(shape).square().mean())
    for i in range(12):
        assert float(starts[i]) == pytest.approx((1 - reached[i]) ** 2 * power, rel=1e-9, abs=1e-24)
        assert errors[i, : i + 1].isinf().all()
        for j in range(i + 1, 13):
            miss = reached[i] * factor(variance, points[i], points[j]) - reached[j]
            assert float(errors[i, j]) == pytest.approx(miss**2 * power, rel=1e-9, abs=1e-24)


def by_quadrature(denoiser, x, ratio):
    """The probability-flow ODE dy / d(sigma) = (y - D) / sigma (EDM Eq. 3), y = x / alpha, from a ratio to nearly 0."""
    schedule, shape = denoiser.schedule, x.shape

    def slope(s, y):
        alpha = 1 / math.sqrt(1 + s**2)
        t = schedule.time_at(torch.tensor(s, dtype=F64))
        D = denoiser(alpha * torch.from_numpy(y).reshape(shape), t).x0
        return ((y - D.flatten().numpy()) / s).ravel()

    start = x.flatten().numpy() * math.sqrt(1 + ratio**2)
    return torch.from_numpy(solve_ivp(slope, (ratio, 1e-3), start, rtol=1e-6, atol=1e-8).y[:, -1]).reshape(shape)


@pytest.mark.parametrize("schedule", [adm.linear(1000), adm.cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_it_comes_nearer_to_the_exact_solution_than_log_snr_and_karras(schedule, data):
    """From noise that the fit has not seen, by DDIM with 5 to 10 links."""
    means, variances = (MEANS, VARIANCES) if data == "mixture" else (torch.zeros(1, 2), torch.tensor([0.25]))
    denoiser = MixtureDenoiser(schedule, means, variances)
    fine = chain(schedule, "log-snr:60")
    seen, fresh = adm.SeededNoise(range(64), F64), adm.SeededNoise(range(1000, 1048), F64)
    starts, jumps = jump_errors(denoiser, fine, seen, (64, 1, 1, 2), adm.DDIM())
    shape = (48, 1, 1, 2)
    x_T = fresh.initial(shape)
    exact = by_quadrature(denoiser, x_T, float(fine[0].sigma / fine[0].alpha))
    for links in (5, 6, 8, 10):
        grids = {
            "fitted": fit_timesteps(fine, starts, jumps, links),
            "log-snr": timesteps_for(adm.DDIM(), schedule, f"log-snr:{links}"),
            "karras": timesteps_for(adm.DDIM(), schedule, f"karras:{links}"),
        }
        misses = {
            name: float(
                (adm.sample(denoiser, adm.Chain(schedule, t), adm.DDIM(), fresh, shape) - exact).square().mean()
            )
            for name, t in grids.items()
        }
        assert misses["fitted"] < 0.75 * min(misses["log-snr"], misses["karras"]), misses


def test_guidance_takes_part_in_the_fit():
    """T8: an unconditional model under its exact classifier is the conditional one, and has its grid."""
    schedule = adm.linear(1000)
    fine, noise, shape = chain(schedule, "log-snr:20"), adm.SeededNoise(range(8), F64), (8, 1, 1, 2)
    prior = MixtureDenoiser(schedule, MEANS, VARIANCES)
    guided = adm.guide(prior, adm.ClassifierGuidance(MixtureClassifier(prior, [0, 0, 1])))
    cond = adm.Condition(label=torch.zeros(8, dtype=torch.long))
    of_class = MixtureDenoiser(schedule, MEANS[:2], VARIANCES[:2])
    _, ours = jump_errors(guided, fine, noise, shape, adm.DDIM(), cond)
    theirs, unguided = (jump_errors(d, fine, noise, shape, adm.DDIM())[1] for d in (of_class, prior))
    later = ~theirs.isinf()
    torch.testing.assert_close(ours[later], theirs[later], rtol=1e-6, atol=1e-14)
    assert not torch.allclose(ours[later], unguided[later], rtol=0.01)


def test_the_grid_is_of_its_teachers_timesteps_and_ends_as_it_does():
    schedule = adm.cosine(1000)
    fine = chain(schedule, "log-snr:20")
    den = gaussian(schedule, 0.25)
    grid = fit_timesteps(fine, *jump_errors(den, fine, adm.SeededNoise([0], F64), (1, 1, 2, 2), adm.DDIM()), 4)
    assert grid == sorted(grid) and len(grid) == 4
    assert set(grid) <= set(fine.timesteps.tolist())
    assert bool(adm.Chain(schedule, grid)[-1].last)


def test_a_teacher_that_asks_elsewhere_is_refused():
    class Elsewhere(adm.DDIM):
        def step(self, denoise, x_t, link, noise, state):
            return super().step(lambda x, t: denoise(x + 1, t), x_t, link, noise, state)

    schedule = adm.cosine(1000)
    with pytest.raises(ValueError, match="use a rule without noise"):
        jump_errors(
            gaussian(schedule, 0.25), chain(schedule, "log-snr:9"), adm.SeededNoise([0]), (1, 1, 1, 1), Elsewhere()
        )


@pytest.mark.parametrize("teacher", [adm.DDPM(), adm.DDIM(eta=1.0), adm.DPMSolverSDE()], ids=str)
def test_a_teacher_that_draws_noise_is_refused(teacher):
    schedule = adm.cosine(1000)
    with pytest.raises(ValueError, match="the teacher draws noise: use a rule without noise"):
        jump_errors(gaussian(schedule, 0.25), chain(schedule, "log-snr:9"), adm.SeededNoise([0]), (1, 1, 1, 1), teacher)
