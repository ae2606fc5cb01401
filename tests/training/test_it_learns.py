"""Each loss, parametrization, weight and timestep sampler trains to the optimum that is known in closed form.

The networks are so small that the answer can be written down. Images are one pixel; x_0 and eps take the points of a
quadrature that is exact for what is trained (two each: the losses are quadratic in both), so the only thing random is
the timesteps, and gradient descent must end at the optimum itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import adm
from adm.checkpoints.model_document import ScheduleConfig
from adm.data import Batch
from adm.diffusion.loss_weight import WeightConfig
from adm.diffusion.losses import LossTerms, denoising_loss
from adm.diffusion.timesteps import LogNormal, LossSecondMoment, TimestepSampler, Uniform
from adm.nn import UNetConfig
from adm.training.build import new_model
from adm.training.config import DataConfig, DiffusionTraining, LogNormalConfig, LoopConfig, OptimizerConfig
from adm.training.objectives import Denoising, Examples, StepNoise, Upsampling
from adm.training.trainer import Trainer

F64 = torch.float64
MEANS = ["eps", "x0", "v", "edm", "flow"]
SIGMAS = torch.tensor([0.1, 0.25, 0.6, 1.5, 4.0, 10.0], dtype=F64)
SCHEDULE = adm.Schedule.from_sigmas(SIGMAS)
T = len(SIGMAS)
M, V = 0.3, 0.25  # mean and variance of the data
PROBES = torch.tensor([-2.0, -0.3, 0.0, 1.0], dtype=F64).reshape(-1, 1, 1, 1)


def alpha_sigma() -> tuple[Tensor, Tensor]:
    return 1 / (1 + SIGMAS**2).sqrt(), SIGMAS / (1 + SIGMAS**2).sqrt()


def times(mean: str) -> Tensor:
    """What networks are told of each timestep: t, EDM's log(sigma) / 4, or flow's 1000 u."""
    return {"edm": SIGMAS.log() / 4, "flow": 1000 * SIGMAS / (1 + SIGMAS)}.get(mean, torch.arange(T).double())


class Affine(nn.Module):
    """slope x + shift, and a v in v_unit: free for each timestep and each label, the last for none."""

    def __init__(self, mean: str, learned: bool = False, num_classes: int | None = None, v_unit: float = 1.0) -> None:
        super().__init__()
        self.times, self.learned, self.v_unit = times(mean), learned, v_unit
        self.config = SimpleNamespace(num_classes=num_classes)
        self.table = nn.Parameter(torch.zeros(3, (num_classes or 0) + 1, T, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        column = (t.double()[:, None] - self.times).abs().argmin(1)
        row = torch.full_like(column, -1) if label is None else label
        slope, shift, v = self.table[:, row, column].reshape(3, -1, 1, 1, 1)
        mean = slope * x + shift
        return torch.cat([mean, self.v_unit * v.expand_as(x)], dim=1) if self.learned else mean

    @property
    def v(self) -> Tensor:
        """Of no label, (T,)."""
        return self.v_unit * self.table.detach()[2, -1]


class OneSlope(nn.Module):
    """x_0 is one number times x_t, at every noise level: it has to compromise."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        return self.slope * x


def quadrature(*axes: tuple[float, ...]) -> list[Tensor]:
    """Every combination of the points, as batches of one pixel."""
    return [axis.reshape(-1, 1, 1, 1) for axis in torch.cartesian_prod(*(torch.tensor(a, dtype=F64) for a in axes)).T]


def data() -> tuple[Tensor, Tensor]:
    """x_0 and eps with the moments of N(M, V) and N(0, 1)."""
    x0, eps = quadrature((M - math.sqrt(V), M + math.sqrt(V)), (-1.0, 1.0))
    return x0, eps


def train(
    network: nn.Module,
    loss: Callable[[Tensor], LossTerms],
    timesteps: TimestepSampler,
    rounds: int = 1,
    draws: int = T,
    iterations: int = 200,
    line_search: str | None = None,
) -> TimestepSampler:
    """As the trainer does: draw timesteps, descend on the weighted losses, tell the sampler. loss: of images at each t.

    Uniforms are an even grid, so that each timestep is drawn as often as it should be; gradients go to L-BFGS. A line
    search needs a loss that has its own gradient; the hybrid loss has not (vb reaches the variance alone).
    """
    optimizer = torch.optim.LBFGS(
        network.parameters(), 0.5, iterations, None, 1e-9, 0.0, 50, line_search_fn=line_search
    )
    for _ in range(rounds):
        t, weight = timesteps.draw((torch.arange(draws, dtype=F64) + 0.5) / draws)
        timesteps = timesteps.updated(t, descend(optimizer, lambda t=t: loss(t), weight))
    return timesteps


def descend(optimizer: torch.optim.Optimizer, loss: Callable[[], LossTerms], weight: Tensor) -> Tensor:
    """Follows the gradient of the weighted mean to where it is 0; the losses of each draw there."""

    def losses() -> Tensor:
        return loss().loss.reshape(len(weight), -1).mean(1)

    def weighted() -> Tensor:
        optimizer.zero_grad()
        # In thousandths, for L-BFGS leaves out curvature below 1e-10.
        mean = 1000 * (losses() * weight).mean()
        mean.backward()
        return mean

    optimizer.step(weighted)  # type: ignore[arg-type]
    return losses().detach()


def denoising(model: adm.DiffusionModel, objective: Denoising) -> Callable[[Tensor], LossTerms]:
    """The production objective on every combination of t, x_0 and eps."""
    x0, eps = data()
    label = torch.full((len(x0),), -1)

    def loss(t: Tensor) -> LossTerms:
        n = len(t)
        batch = Examples(x0.repeat(n, 1, 1, 1), label.repeat(n))
        return objective(model, batch, StepNoise(t.repeat_interleave(len(x0)), eps.repeat(n, 1, 1, 1)))

    return loss


def posterior_mean(x: Tensor, mean: float = M, variance: float = V) -> Tensor:
    """E[x_0 | x_t = x] of N(mean, variance), (T, len(x))."""
    a, s = alpha_sigma()
    return mean + (a * variance / (a**2 * variance + s**2))[:, None] * (x.flatten() - (a * mean)[:, None])


def predicted(model: adm.DiffusionModel, cond: adm.Condition = adm.Condition()) -> Tensor:
    """x_0 from the probes at every timestep, (T, 4)."""
    with torch.no_grad():
        return torch.stack([model(PROBES, t, cond).x0.flatten() for t in range(T)])


def best_v() -> Tensor:
    """iDDPM Eq. 15's v at which Sigma is the variance of q(x_s | x_t): beta_tilde + c1^2 Var(x_0 | x_t), for t >= 1."""
    ab = 1 / (1 + SIGMAS**2)
    here, before = ab[1:], ab[:-1]
    beta = 1 - here / before
    beta_tilde = beta * (1 - before) / (1 - here)
    var_x0 = V * (1 - here) / (here * V + 1 - here)
    c1 = beta * before.sqrt() / (1 - here)
    return 2 * ((beta_tilde + c1**2 * var_x0).log() - beta_tilde.log()) / (beta / beta_tilde).log() - 1


@pytest.mark.parametrize("mean", MEANS)
def test_each_parametrization_learns_the_posterior_mean(mean: str) -> None:
    network = Affine(mean)
    model = adm.DiffusionModel(network, SCHEDULE, mean, "small")  # type: ignore[arg-type]
    train(network, denoising(model, Denoising(SCHEDULE, "simple")), Uniform(T))
    torch.testing.assert_close(predicted(model), posterior_mean(PROBES), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "mean"),
    [("hybrid", mean) for mean in MEANS]
    # Not x0: the bound counts its errors by numbers that differ by 1e4 between timesteps, too many for this descent.
    + [("vlb", mean) for mean in MEANS if mean != "x0"]
    + [(kind, "eps") for kind in ("simple", "hybrid_rescaled", "vlb_rescaled")],
)
def test_each_loss_learns_the_mean_and_those_with_a_bound_the_variance(kind: str, mean: str) -> None:
    # In that unit the rescaled bound, T / 1000 of the other, is as curved as the squared error beside it.
    network = Affine(mean, learned=True, v_unit=math.sqrt(1000 / T) if kind == "hybrid_rescaled" else 1.0)
    model = adm.DiffusionModel(network, SCHEDULE, mean)  # type: ignore[arg-type]
    search = "strong_wolfe" if kind.startswith("vlb") else None
    train(network, denoising(model, Denoising(SCHEDULE, kind)), Uniform(T), line_search=search)
    # The bound's last term is the likelihood of grey levels, whose optimum is not this one.
    first = 1 if kind.startswith("vlb") else 0
    torch.testing.assert_close(predicted(model)[first:], posterior_mean(PROBES)[first:], rtol=0, atol=1e-4)
    if kind == "simple":
        assert bool((network.v == 0).all())
    else:
        torch.testing.assert_close(network.v[1:], best_v(), rtol=0, atol=1e-4)


SAMPLERS = {
    "uniform": Uniform(T),
    "loss-second-moment": LossSecondMoment.new(T),
    "log-normal": LogNormal.new(SCHEDULE, -0.5, 1.5),
}
WEIGHTS = {"min-snr": WeightConfig("min-snr"), "soft-min-snr": WeightConfig("soft-min-snr"), "p2": WeightConfig("p2")}


@pytest.mark.parametrize("timesteps", SAMPLERS)
def test_how_timesteps_are_drawn_does_not_move_the_optimum(timesteps: str) -> None:
    network = Affine("eps", learned=True)
    model = adm.DiffusionModel(network, SCHEDULE)
    loss = denoising(model, Denoising(SCHEDULE, "hybrid"))
    after = train(network, loss, SAMPLERS[timesteps], rounds=3, draws=200)
    torch.testing.assert_close(predicted(model), posterior_mean(PROBES), rtol=0, atol=1e-4)
    torch.testing.assert_close(network.v[1:], best_v(), rtol=0, atol=1e-4)
    if isinstance(after, LossSecondMoment):
        p = after.probabilities()
        assert p.max() > 2 / T and p.min() < 0.5 / T


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_do_not_move_the_optimum_of_a_network_that_is_free_at_each_timestep(weight: str, mean: str) -> None:
    network = Affine(mean)
    model = adm.DiffusionModel(network, SCHEDULE, mean, "small")  # type: ignore[arg-type]
    train(network, denoising(model, Denoising(SCHEDULE, "simple", WEIGHTS[weight])), Uniform(T))
    torch.testing.assert_close(predicted(model), posterior_mean(PROBES), rtol=0, atol=1e-4)


def log_normal_shares() -> np.ndarray:
    """Of N(-0.5, 1.5^2) in log(sigma), the mass nearest to each of SIGMAS, by scipy."""
    middle = np.log(SIGMAS.numpy())
    borders = np.concatenate([[-np.inf], (middle[1:] + middle[:-1]) / 2, [np.inf]])
    return np.diff(stats.norm.cdf(borders, -0.5, 1.5))


@pytest.mark.parametrize("timesteps", SAMPLERS)
@pytest.mark.parametrize("weight", ["none", *WEIGHTS])
def test_a_network_that_must_compromise_does_as_the_weights_and_the_draws_say(weight: str, timesteps: str) -> None:
    """min_c sum_t p_t w_t E (x_0 - c x_t)^2: c = sum p w a V / sum p w (a^2 V + s^2), and importance sampling's p is
    uniform, for its weights undo it."""
    network = OneSlope()
    model = adm.DiffusionModel(network, SCHEDULE, "x0", "small")
    objective = Denoising(SCHEDULE, "simple", WEIGHTS.get(weight, WeightConfig()))
    x0, eps = quadrature((-math.sqrt(V), math.sqrt(V)), (-1.0, 1.0))

    def loss(t: Tensor) -> LossTerms:
        batch = Examples(x0.repeat(len(t), 1, 1, 1), torch.full((4 * len(t),), -1))
        return objective(model, batch, StepNoise(t.repeat_interleave(4), eps.repeat(len(t), 1, 1, 1)))

    train(network, loss, SAMPLERS[timesteps], rounds=3, draws=1000)
    snr = 1 / SIGMAS**2
    w = {"none": 0 * snr + 1, "min-snr": snr.clamp(max=5), "soft-min-snr": 4 * snr / (4 + snr), "p2": snr / (1 + snr)}
    p = torch.from_numpy(log_normal_shares()) if timesteps == "log-normal" else torch.full((T,), 1 / T, dtype=F64)
    a, s = alpha_sigma()
    counts = p * w[weight]
    expected = (counts * a * V).sum() / (counts * (a**2 * V + s**2)).sum()
    assert float(network.slope.detach()) == pytest.approx(float(expected), rel=0.003)


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_input_perturbation_moves_the_optimum_by_its_closed_form(gamma: float) -> None:
    """x_t has noise of variance 1 + gamma^2, of which eps is the part 1 / (1 + gamma^2): regression of eps on x_t."""
    network = Affine("eps")
    model = adm.DiffusionModel(network, SCHEDULE, "eps", "small")
    x0, eps, xi = quadrature((M - math.sqrt(V), M + math.sqrt(V)), (-1.0, 1.0), (-1.0, 1.0))
    chain = adm.Chain(SCHEDULE, range(T))

    def loss(t: Tensor) -> LossTerms:
        n = len(t)
        images, noise, more = (each.repeat(n, 1, 1, 1) for each in (x0, eps, xi))
        link = chain[T - 1 - t.repeat_interleave(len(x0))]
        return denoising_loss(model, link, images, noise, adm.Condition(), "simple", perturbation=gamma * more)

    train(network, loss, Uniform(T))
    a, s = alpha_sigma()
    slope = s / (a**2 * V + s**2 * (1 + gamma**2))
    torch.testing.assert_close(network.table.detach()[0, 0], slope, rtol=0, atol=1e-4)
    torch.testing.assert_close(network.table.detach()[1, 0], -slope * a * M, rtol=0, atol=1e-4)


def test_the_objective_perturbs_its_input_by_gamma_and_each_image_by_its_own_noise() -> None:
    """The squared error of a network that returns x_t: E (a x_0 + s (eps + gamma xi) - eps)^2, on 20,000 images."""
    n, gamma = 20_000, 0.5

    class Identity(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
            return x

    model = adm.DiffusionModel(Identity(), SCHEDULE, "eps", "small")
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 1, 1, 1, generator=rng, dtype=F64)
    t = torch.full((n,), 3)
    batch = Examples(M + math.sqrt(V) * x0, torch.full((n,), -1))
    a, s = (value[3] for value in alpha_sigma())
    for perturbation in (0.0, gamma):
        objective = Denoising(SCHEDULE, "simple", input_perturbation=perturbation)
        loss = objective(model, batch, StepNoise(t, eps)).loss
        exact = a**2 * (V + M**2) + (s - 1) ** 2 + (s * perturbation) ** 2
        assert float(loss.mean()) == pytest.approx(float(exact), abs=4 * float(loss.std()) / math.sqrt(n))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropped_labels_teach_what_is_true_without_a_label(dropout: float) -> None:
    """Two classes at -0.6 and 0.6: each label's row learns its own class, and that of no label, -1, the best affine
    denoiser of both together, whose variance is larger by 0.36. Without dropout the row of -1 learns nothing."""
    centre, variance = 0.6, 0.04
    network = Affine("x0", num_classes=2)
    model = adm.DiffusionModel(network, SCHEDULE, "x0", "small")
    objective = Denoising(SCHEDULE, "simple", label_dropout=dropout)
    side, spread, eps = quadrature((0.0, 1.0), (-math.sqrt(variance), math.sqrt(variance)), (-1.0, 1.0))
    x0, label = (2 * side - 1) * centre + spread, side.flatten().long()
    drawn: dict[str, Tensor] = {}

    class Once(StepNoise):
        """The draws of a position are always the same, so they need not be made for every evaluation."""

        def uniform(self, what: str) -> Tensor:
            if what not in drawn:
                drawn[what] = super().uniform(what)
            return drawn[what]

    def loss(t: Tensor) -> LossTerms:
        n = len(t)
        noise = Once(t.repeat_interleave(8), eps.repeat(n, 1, 1, 1))
        return objective(model, Examples(x0.repeat(n, 1, 1, 1), label.repeat(n)), noise)

    train(network, loss, Uniform(T), draws=1000 * T, iterations=30)
    for y, mean in ((0, -centre), (1, centre)):
        cond = adm.Condition(label=torch.full((4,), y))
        torch.testing.assert_close(predicted(model, cond), posterior_mean(PROBES, mean, variance), rtol=0, atol=0.03)
    if dropout:
        without = predicted(model, adm.Condition(label=torch.full((4,), -1)))
        torch.testing.assert_close(without, posterior_mean(PROBES, 0.0, variance + centre**2), rtol=0, atol=0.03)
    else:
        assert bool((network.table.detach()[:, -1] == 0).all())


class AffineInBoth(nn.Module):
    """One number times x_t and one times the enlarged low-res image, for each timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, T, dtype=F64))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor) -> Tensor:
        of_x, of_low = self.table[:, t].reshape(2, -1, 1, 1, 1)
        return of_x * x + of_low * low_res.expand_as(x)


@pytest.mark.parametrize("weight", ["none", "min-snr"])
def test_an_upsampler_learns_what_is_left_to_find_when_the_average_is_known(weight: str) -> None:
    """Two pixels g + e and g - e, shown g: E[x_0 | x_t, g] = g + k (x_t - a g) with k = a V / (a^2 V + s^2), V of e."""
    network = AffineInBoth()
    model = adm.DiffusionModel(network, SCHEDULE, "x0", "small")
    objective = Upsampling(SCHEDULE, (1, 1), kind="simple", weight=WEIGHTS.get(weight, WeightConfig()))
    variance = 0.09
    g, e, left, right = quadrature((-0.5, 0.5), (-0.3, 0.3), (-1.0, 1.0), (-1.0, 1.0))
    x0, eps = torch.cat([g + e, g - e], dim=3), torch.cat([left, right], dim=3)

    def loss(t: Tensor) -> LossTerms:
        n = len(t)
        batch = Examples(x0.repeat(n, 1, 1, 1), torch.full((n * len(x0),), -1))
        return objective(model, batch, StepNoise(t.repeat_interleave(len(x0)), eps.repeat(n, 1, 1, 1)))

    train(network, loss, Uniform(T))
    a, s = alpha_sigma()
    gain = a * variance / (a**2 * variance + s**2)
    torch.testing.assert_close(network.table.detach(), torch.stack([gain, 1 - a * gain]), rtol=0, atol=1e-4)


class SmallMLP(nn.Module):
    """Of x and one number for each timestep."""

    def __init__(self, mean: str) -> None:
        super().__init__()
        self.times = times(mean)
        self.layers = nn.Sequential(
            nn.Linear(1 + T, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
        ).double()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        column = (t.double()[:, None] - self.times).abs().argmin(1)
        features = torch.cat([x.flatten(1), nn.functional.one_hot(column, T).double()], dim=1)
        return self.layers(features).reshape(x.shape)


@pytest.mark.parametrize("mean", MEANS)
def test_a_network_with_hidden_layers_learns_the_tanh_of_two_points(mean: str) -> None:
    """x_0 = -1 or 1: E[x_0 | x_t] = tanh(a x_t / s^2), which no affine network can be."""
    quantiles = torch.special.ndtri((torch.arange(100, dtype=F64) + 0.5) / 100)
    x0, eps = quadrature((-1.0, 1.0), tuple(quantiles.tolist()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallMLP(mean)
    model = adm.DiffusionModel(network, SCHEDULE, mean, "small")  # type: ignore[arg-type]
    objective = Denoising(SCHEDULE, "simple")

    def loss(t: Tensor) -> LossTerms:
        n = len(t)
        batch = Examples(x0.repeat(n, 1, 1, 1), torch.full((n * len(x0),), -1))
        return objective(model, batch, StepNoise(t.repeat_interleave(len(x0)), eps.repeat(n, 1, 1, 1)))

    train(network, loss, Uniform(T), iterations=150, line_search="strong_wolfe")
    a, s = (value[:, None] for value in alpha_sigma())
    x = a * x0.flatten() + s * eps.flatten()
    with torch.no_grad():
        ours = torch.stack([model(x[t].reshape(-1, 1, 1, 1), t).x0.flatten() for t in range(T)])
        # In units of what the network returns, for at high noise x_0 follows from eps by a large factor.
        unit = model.x0_slope(torch.arange(T), PROBES).flatten().abs()

    def rms(prediction: Tensor) -> Tensor:
        return (prediction - torch.tanh(a * x / s**2)).pow(2).mean(1).sqrt() / unit

    affine = a / (a**2 + s**2) * x
    assert rms(ours).max() < 0.2 * rms(affine).max(), f"{rms(ours)} against {rms(affine)}"


# ---- the real network and trainer -----------------------------------------------------------------

RUNS = {
    "ADM": {},
    "x0, P2": {"mean": "x0", "weight": WeightConfig("p2")},
    "v, min-SNR": {"mean": "v", "weight": WeightConfig("min-snr"), "loss": "hybrid_rescaled"},
    "EDM": {"mean": "edm", "schedule": ScheduleConfig("edm", 1000), "timesteps": "log-normal"},
    "flow": {
        "mean": "flow",
        "schedule": ScheduleConfig("flow", 1000),
        "timesteps": "log-normal",
        "log_normal": LogNormalConfig(0.0, 1.0),
    },
    "flow, soft-min-SNR, perturbed": {
        "mean": "flow",
        "weight": WeightConfig("soft-min-snr"),
        "input_perturbation": 0.1,
        "timesteps": "loss-second-moment",
        "schedule": ScheduleConfig("flow", 20),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_unet_learns_to_tell_two_images_apart(run: str) -> None:
    """Data of two images p and -p: E[x_0 | x_t] = p tanh(a <x_t, p> / s^2), so that where noise and signal are alike
    nearly all of p is known. The untrained network, whose output is 0, is the twin."""
    pattern = torch.from_numpy(0.5 * np.sign(np.sin(np.arange(64) ** 2)).astype(np.float32)).reshape(1, 1, 8, 8)
    learned = RUNS[run].get("mean", "eps") in ("eps", "v")
    config = DiffusionTraining(
        **{
            "job": "diffusion",
            "data": DataConfig("two images"),
            "network": UNetConfig(
                8,
                in_channels=1,
                out_channels=2 if learned else 1,
                model_channels=16,
                channel_mult=(1,),
                num_res_blocks=1,
            ),
            "variance": "learned" if learned else "small",
            "optimizer": OptimizerConfig(lr=3e-3),
            "loop": LoopConfig(steps=250, batch_size=16),
            **RUNS[run],
        }
    )
    trainer = Trainer(new_model(config), config)
    model = trainer.model
    assert isinstance(model, adm.DiffusionModel)

    def error() -> float:
        """Of x_0, relative to the mean square of the data, on 200 images at a noise-to-signal ratio of 1."""
        t = int((model.schedule.alpha_bar - 0.5).abs().argmin())
        eps = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        x0 = pattern * torch.tensor([1.0, -1.0]).repeat(100).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            x_t = model.schedule.q_sample(x0, torch.full((200,), t), eps)
            alpha, sigma = model.schedule.alpha_sigma(t, x_t)
            best = pattern * torch.tanh(alpha * (x_t * pattern).sum((1, 2, 3), keepdim=True) / sigma**2)
            return float((model(x_t, t).x0 - best).pow(2).mean() / 0.25)

    before = error()
    for step in range(250):
        sign = 1.0 - 2.0 * ((torch.arange(16) + step) % 2).reshape(-1, 1, 1, 1)
        trainer.advance(Batch(sign * pattern, torch.full((16,), -1), torch.arange(16), 16 * step))
    assert before > 0.3 and error() < 0.15 * before, f"{before} to {error()}"
