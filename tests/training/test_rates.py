"""The learning rate at each step against torch's own schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from adm.training.config import OptimizerConfig

STEPS = 200
LR = 3e-4


def by_torch(schedule: type[LRScheduler], num: int, **options: float) -> list[float]:
    """The rate of each of `num` steps under a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    return rates(optimizer, schedule(optimizer, **options), num)


def rates(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, num: int) -> list[float]:
    seen = []
    for _ in range(num):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def ours(config: OptimizerConfig, num: int = STEPS) -> list[float]:
    """The rate of each step of a run of STEPS steps, of which step / STEPS lies behind at each."""
    return [config.lr_at(step, step / STEPS) for step in range(num)]


def test_constant_is_constant() -> None:
    assert ours(OptimizerConfig(lr=LR)) == [LR] * STEPS


def test_linear_is_that_of_torch() -> None:
    expected = by_torch(LinearLR, STEPS, start_factor=1.0, end_factor=0.0, total_iters=STEPS)
    assert ours(OptimizerConfig(lr=LR, anneal="linear")) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_cosine_is_that_of_torch() -> None:
    expected = by_torch(CosineAnnealingLR, STEPS, T_max=STEPS)
    assert ours(OptimizerConfig(lr=LR, anneal="cosine")) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("warmup", [1, 7, 200])
def test_warm_up_is_that_of_torch_and_its_first_step_moves(warmup: int) -> None:
    """Step k of w takes (k + 1) / w of the rate, so that none is wasted on a rate of 0."""
    if warmup > 1:
        options = {"start_factor": 1 / warmup, "end_factor": 1.0, "total_iters": warmup - 1}
        expected = by_torch(LinearLR, STEPS, **options)
    else:
        expected = [LR] * STEPS
    got = ours(OptimizerConfig(lr=LR, warmup_steps=warmup))
    assert got == pytest.approx(expected, rel=1e-9)
    assert got[0] == pytest.approx(LR / warmup) and got[warmup - 1] == LR


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_annealing_from_a_share_of_the_run_is_constant_and_then_torchs(anneal: str) -> None:
    """ADM-like recipes: constant for 70 %, then down to 0 over the rest."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    first, rest = round(0.7 * STEPS), STEPS - round(0.7 * STEPS)
    flat = LinearLR(optimizer, start_factor=1.0, end_factor=1.0, total_iters=1)
    down: LRScheduler = CosineAnnealingLR(optimizer, T_max=rest)
    if anneal == "linear":
        down = LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest)
    expected = rates(optimizer, SequentialLR(optimizer, [flat, down], milestones=[first]), STEPS)
    got = ours(OptimizerConfig(lr=LR, anneal=anneal, anneal_from=0.7))  # type: ignore[arg-type]
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert got[first] == pytest.approx(LR) and got[first + 1] < LR


def test_warm_up_and_annealing_multiply() -> None:
    warm, cold = OptimizerConfig(lr=1, warmup_steps=50), OptimizerConfig(lr=1, anneal="cosine")
    both = OptimizerConfig(lr=1, warmup_steps=50, anneal="cosine")
    products = [a * b for a, b in zip(ours(warm), ours(cold), strict=True)]
    assert ours(both) == pytest.approx(products, rel=1e-12)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_by_the_clock_the_rate_follows_the_share_of_the_time_whatever_the_step(anneal: str) -> None:
    """A run by minutes: half of its time is behind at some step, which depends on the machine."""
    config = OptimizerConfig(lr=LR, anneal=anneal)  # type: ignore[arg-type]
    for progress in (0.0, 0.25, 0.5, 0.99):
        assert len({config.lr_at(step, progress) for step in (0, 10, 10**6)}) == 1
    assert config.lr_at(3, 0.5) == pytest.approx(LR / 2)
    assert config.lr_at(3, 1.0) == pytest.approx(0, abs=1e-20)
    assert config.lr_at(3, 1.3) == pytest.approx(0, abs=1e-20)  # the last step of a run by the clock ends late


@pytest.mark.parametrize("anneal", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("anneal_from", [0.0, 0.3, 0.999])
def test_the_rate_never_leaves_its_bounds_and_never_rises_once_warm(anneal: str, anneal_from: float) -> None:
    if anneal == "constant" and anneal_from:
        with pytest.raises(ValueError, match="does nothing with anneal=constant"):
            OptimizerConfig(anneal_from=anneal_from)
        return
    config = OptimizerConfig(lr=LR, warmup_steps=20, anneal=anneal, anneal_from=anneal_from)  # type: ignore[arg-type]
    got = ours(config, STEPS + 5)
    assert all(0 <= rate <= LR and math.isfinite(rate) for rate in got)
    assert all(b <= a for a, b in pairwise(got[20:]))
