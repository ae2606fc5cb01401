"""One optimizer step: its gradients, its update, what it draws; and that steps learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import adm
from adm.data import open_dataset
from adm.diffusion.losses import denoising_loss
from adm.diffusion.timesteps import LossSecondMoment
from adm.runtime import randomness
from adm.training.build import make_loader, new_model
from adm.training.config import OptimizerConfig
from adm.training.preview import preview
from adm.training.trainer import Trainer
from tiny_runs import Stripes, global_states, tiny

JOBS = ["diffusion", "classifier"]


def trainer(config, dataset=None, double: bool = False) -> Trainer:
    model = new_model(config, (dataset or Stripes()).class_names)
    return Trainer(model.double() if double else model, config)


def batch_for(t: Trainer, dataset=None):
    batch = make_loader(t.config, dataset or Stripes()).batch(t.position)
    dtype = next(t.model.parameters()).dtype
    return replace(batch, images=batch.images.to(dtype))


def nonzero_head(t: Trainer) -> Trainer:
    """The zero-initialised layers hide most gradients: give every weight a value."""
    with torch.no_grad():
        for i, p in enumerate(t.model.network.parameters()):
            p.add_(0.05 * randomness.normal(p.shape, seed=i, stream="test", dtype=p.dtype))
    return t


def parameters(t: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in t.model.network.named_parameters()}


# ---- what is drawn, and the update, done by hand --------------------------------------------------


def drawn(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """t and eps of the first n positions, each from its own position alone."""
    u = torch.stack([randomness.uniform((), seed=seed, stream="training timestep", index=k) for k in range(n)])
    eps = [randomness.normal((1, 8, 8), seed=seed, stream="training noise", index=k) for k in range(n)]
    return (10 * u).long(), torch.stack(eps)


def loss_by_hand(job: str, model, x0: Tensor, label: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    schedule = model.schedule
    if job == "diffusion":
        link = adm.Chain(schedule, range(10))[9 - t]
        return denoising_loss(model, link, x0, eps, adm.Condition(label=label), "hybrid").loss.mean()
    ab = schedule.alpha_bar[t].view(-1, 1, 1, 1).to(x0.dtype)
    return F.cross_entropy(model.network(ab.sqrt() * x0 + (1 - ab).sqrt() * eps, t), label)


@pytest.mark.parametrize("clip", ["none", "0.1"])
@pytest.mark.parametrize("job", JOBS)
def test_a_step_is_adamw_on_the_mean_loss_of_the_batch(job: str, clip: str) -> None:
    config = tiny(job, f"optimizer.clip_norm={clip}", "optimizer.weight_decay=0.1", "optimizer.lr=1e-2",
                  "optimizer.betas=0.8,0.95")  # fmt: skip
    ours, twin = nonzero_head(trainer(config)), nonzero_head(trainer(config))
    batch = batch_for(ours)
    result = ours.advance(batch)

    loss = loss_by_hand(job, twin.model, batch.images, batch.label, *drawn(5))
    loss.backward()
    weights = list(twin.model.network.parameters())
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in weights))
    if clip != "none":
        assert norm > 0.1
        for p in weights:
            p.grad *= 0.1 / norm
    torch.optim.AdamW(weights, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1).step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    for name, p in parameters(twin).items():
        torch.testing.assert_close(parameters(ours)[name], p, rtol=1e-4, atol=2e-5)


def test_the_bound_none_and_a_bound_above_the_norm_are_the_same() -> None:
    ends = []
    for bound in ("none", "1e6"):
        t = trainer(tiny("diffusion", f"optimizer.clip_norm={bound}"))
        for _ in range(3):
            t.advance(batch_for(t))
        ends.append(parameters(t))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---- microbatches ---------------------------------------------------------------------------------


def full_history(T: int) -> LossSecondMoment:
    """Losses so unequal that the weights of timesteps differ by hundreds."""
    history = (1 + torch.arange(T, dtype=torch.float64)[:, None] ** 3).expand(T, 10).clone()
    return LossSecondMoment(T, history, torch.full((T,), 10))


@pytest.mark.parametrize("timesteps", ["uniform", "loss-second-moment"])
@pytest.mark.parametrize("job", JOBS)
def test_the_size_of_microbatches_does_not_enter_gradients_nor_history(job: str, timesteps: str) -> None:
    gradients, states, losses = [], [], []
    for size in ("none", "5", "3", "1"):
        config = tiny(job, f"loop.microbatch={size}", f"timesteps={timesteps}", "optimizer.clip_norm=none")
        t = nonzero_head(trainer(config, double=True))
        if timesteps != "uniform":
            t.timesteps = full_history(10)
        taken: dict[str, Tensor] = {}

        def keep(optimizer, *_, t=t, taken=taken) -> None:
            taken |= {name: p.grad.clone() for name, p in t.model.network.named_parameters()}

        t.optimizer.register_step_pre_hook(keep)
        losses.append(t.advance(batch_for(t)).loss)
        gradients.append(taken)
        states.append(t.timesteps.state())
    for other, state, loss in zip(gradients[1:], states[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-12)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(
                other[name], gradient, rtol=1e-10, atol=1e-12 * float(gradient.abs().max()) + 1e-15
            )
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("job", JOBS)
def test_the_size_of_microbatches_does_not_enter_updates(job: str) -> None:
    ends = []
    for size in ("none", "3", "1"):
        t = trainer(tiny(job, f"loop.microbatch={size}", "optimizer.lr=1e-3"), double=True)
        for _ in range(3):
            t.advance(batch_for(t))
        ends.append(parameters(t))
    for other in ends[1:]:
        for name, value in ends[0].items():
            # Adam divides by the size of a gradient: where that is 0, its rounding, 1e-17 / 1e-8 of the rate, shows.
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("job", JOBS)
def test_the_size_of_microbatches_does_not_enter_gradients_in_single_precision(job: str) -> None:
    norms = []
    for size in ("none", "3", "1"):
        t = nonzero_head(trainer(tiny(job, f"loop.microbatch={size}")))
        norms.append(t.advance(batch_for(t)).grad_norm)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)


def test_importance_weighs_each_loss_before_the_mean() -> None:
    """adm-spec trap 17: the gradient is that of sum_i w_i L_i / n with w = 1 / (T p_t), which by expectation is the
    uniform one."""
    config = tiny("classifier", "timesteps=loss-second-moment", "optimizer.clip_norm=none")
    t = nonzero_head(trainer(config, double=True))
    t.timesteps = full_history(10)
    batch = batch_for(t)
    taken: list[Tensor] = []
    t.optimizer.register_step_pre_hook(lambda *_: taken.extend(p.grad.clone() for p in t.model.network.parameters()))
    weights_before = [p.detach().clone() for p in t.model.network.parameters()]
    t.advance(batch)
    with torch.no_grad():
        for p, before in zip(t.model.network.parameters(), weights_before, strict=True):
            p.copy_(before)
    moment = 1 + torch.arange(10, dtype=torch.float64) ** 3
    p_t = 0.999 * moment / moment.sum() + 0.001 / 10
    u = torch.stack([randomness.uniform((), seed=0, stream="training timestep", index=k) for k in range(5)])
    times = (u[:, None] > p_t.cumsum(0)).sum(1)
    ab = t.model.schedule.alpha_bar[times].view(-1, 1, 1, 1)
    eps = drawn(5)[1].double()
    each = F.cross_entropy(t.model.network(ab.sqrt() * batch.images + (1 - ab).sqrt() * eps, times), batch.label,
                           reduction="none")  # fmt: skip
    history = full_history(10).history
    for time, loss in zip(times.tolist(), each.tolist(), strict=True):
        history[time] = torch.cat([history[time, 1:], torch.tensor([loss], dtype=torch.float64)])
    torch.testing.assert_close(t.timesteps.state()["history"], history, rtol=1e-9, atol=0)  # before weighting
    expected = torch.autograd.grad((each / (10 * p_t[times])).mean(), list(t.model.network.parameters()))
    for ours, theirs in zip(taken, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # weights are float32


# ---- the rate -------------------------------------------------------------------------------------


def test_the_rate_warms_up_linearly_then_stays_or_falls_to_nothing() -> None:
    constant = OptimizerConfig(lr=2.0, warmup_steps=4)
    assert [constant.lr_at(step, step / 10) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    linear = OptimizerConfig(lr=2.0, anneal="linear")
    assert [linear.lr_at(step, step / 4) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    both = OptimizerConfig(lr=1.0, warmup_steps=2, anneal="linear")
    assert [both.lr_at(step, step / 4) for step in range(4)] == [0.5, 0.75, 0.5, 0.25]


def test_the_rate_of_a_step_is_the_one_applied() -> None:
    t = trainer(tiny("classifier", "optimizer.lr=0.01", "optimizer.warmup_steps=4"))
    before = parameters(t)
    result = t.advance(batch_for(t))
    assert result.lr == 0.0025
    # The first step of Adam moves every weight with a gradient by the rate.
    moved = max(float((p - before[name]).abs().max()) for name, p in parameters(t).items())
    assert moved == pytest.approx(0.0025, rel=1e-3)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"warmup_steps": -1}, {"clip_norm": 0.0}])
def test_optimizers_that_cannot_be_are_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        OptimizerConfig(**bad)


# ---- learning -------------------------------------------------------------------------------------


def test_a_classifier_learns_stripes_that_it_has_not_seen() -> None:
    config = tiny("classifier", "loop.steps=80", "loop.batch_size=16", "optimizer.lr=5e-3")
    data = Stripes(64)
    t = trainer(config)
    loader = make_loader(config, data)
    for _ in range(80):
        t.advance(loader.batch(t.position))
    model = t.model.eval()
    fresh = Stripes(400)
    x0 = torch.from_numpy(fresh.images[64:]).permute(0, 3, 1, 2) / 127.5 - 1
    label = torch.from_numpy(fresh.labels[64:])
    at = torch.zeros(len(label), dtype=torch.long)
    with torch.no_grad():
        clean = (model(x0, at).argmax(1) == label).float().mean()
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        pure = (model(noise, at + 9).argmax(1) == label).float().mean()
    assert clean > 0.97
    assert 0.35 < pure < 0.65  # the twin: there is nothing to see in noise


def test_the_loss_of_a_diffusion_model_falls_on_digits() -> None:
    """Below that of the best predictor that sees each pixel alone, as one of a Gaussian: structure was learnt."""
    digits = open_dataset("digits")
    settings = ("network.num_classes=10", "loop.batch_size=16", "optimizer.lr=4e-3", "loop.steps=80")
    t = trainer(tiny("diffusion", *settings), digits)
    loader = make_loader(t.config, digits)
    mse = [t.advance(loader.batch(t.position)).terms["mse"] for _ in range(80)]
    # The zero head predicts eps = 0, whose error is the variance of the noise.
    assert mse[0] == pytest.approx(1, abs=0.1)
    variance, alpha2 = (digits.images / 127.5 - 1).var(), t.model.schedule.alpha_bar
    pixelwise = float((alpha2 * variance / (alpha2 * variance + 1 - alpha2)).mean())  # 0.375
    assert sum(mse[-20:]) / 20 < pixelwise - 0.05


# ---- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
def test_bfloat16_trains_keeps_single_precision_weights_and_is_near_single_precision(job: str) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        t = trainer(tiny(job, f"loop.precision={precision}", "optimizer.lr=5e-3", "loop.batch_size=8"))
        losses[precision] = [t.advance(batch_for(t)).loss for _ in range(16)]
        assert {p.dtype for p in t.model.network.parameters()} == {torch.float32}
        assert {value.dtype for value in t.ema.weights.values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]  # the twin: autocast was on
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert sum(losses["bfloat16"][-4:]) < 0.95 * sum(losses["bfloat16"][:4])


# ---- global generators ----------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
def test_training_and_previews_leave_the_global_generators_as_they_were(job: str) -> None:
    before = global_states()
    t = trainer(tiny(job, "network.dropout=0.4", "data.random_crop=true", "timesteps=loss-second-moment"))
    for _ in range(3):
        t.advance(batch_for(t))
    if job == "diffusion":
        preview(t.model, t.ema.weights, num=2, steps=5)
        adm.sample(t.model.eval(), adm.Chain(t.model.schedule, [1, 5, 9]), adm.DDPM(), adm.SeededNoise(range(2)),
                   (2, 1, 8, 8), adm.Condition(label=torch.tensor([0, 1])))  # fmt: skip
    assert global_states() == before


def test_the_global_generators_do_not_enter_training_with_dropout() -> None:
    ends = []
    for number in (1, 2):
        torch.manual_seed(number)
        t = trainer(tiny("diffusion", "network.dropout=0.4"))
        for _ in range(2):
            t.advance(batch_for(t))
        ends.append(parameters(t))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_dropout_acts_and_differs_from_step_to_step() -> None:
    t = nonzero_head(trainer(tiny("diffusion", "network.dropout=0.4")))
    without = nonzero_head(trainer(tiny("diffusion")))
    batch = batch_for(t)
    assert t.advance(batch).loss != without.advance(batch).loss

    def masks(step: int) -> Tensor:
        with randomness.fork(seed=0, stream="dropout", step=step):
            return F.dropout(torch.ones(100), 0.4)

    assert not torch.equal(masks(0), masks(5))


def test_a_preview_leaves_the_trained_model_as_it_was() -> None:
    t = trainer(tiny("diffusion", "network.dropout=0.4"))
    t.advance(batch_for(t))
    before = parameters(t)
    other = {name: value + 1 for name, value in t.ema.weights.items()}
    images = preview(t.model, other, num=4, steps=5)
    assert images.shape == (4, 8, 8, 1) and images.dtype.name == "uint8"
    assert all(torch.equal(value, before[name]) for name, value in parameters(t).items())
    assert t.model.training and t.model.network.training
    assert (preview(t.model, t.ema.weights, num=4, steps=5) != images).any()
