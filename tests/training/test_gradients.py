"""The gradient of a step: the same in portions, in a tree, and over processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adm.diffusion.losses import LossTerms
from adm.runtime.distributed import World
from adm.runtime.errors import UsageError
from adm.training.gradients import Gradients, Mean, TreeSum, check_portions, tree_sum
from processes import run_ranks

ALONE = World()
CPU = torch.device("cpu")


def network() -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(5, 3).double()


def data(n: int) -> Tensor:
    return torch.linspace(-1, 1, 5 * n, dtype=torch.float64).view(n, 5).sin()


def gradient(of: Gradients, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    def forward(rows: slice) -> tuple[Tensor, LossTerms]:
        loss = of.network(inputs[rows]).pow(2).sum(dim=1)
        return loss, LossTerms(loss, {"loss": loss})

    results = of.backward(len(inputs), forward)
    grads = [p.grad for p in of.network.parameters() if p.grad is not None]
    return grads, torch.cat([r.loss for r in results])


def whole(inputs: Tensor) -> list[Tensor]:
    """By autograd on the mean over all rows at once."""
    net = network()
    net(inputs).pow(2).sum(dim=1).mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [
    lambda net: Mean(net, ALONE, None, CPU), lambda net: Mean(net, ALONE, 1, CPU), lambda net: Mean(net, ALONE, 3, CPU),
    lambda net: TreeSum(net, ALONE, 1), lambda net: TreeSum(net, ALONE, 2), lambda net: TreeSum(net, ALONE, 8),
])  # fmt: skip
def test_every_way_gives_the_gradient_of_the_mean_and_the_losses_in_order(make: Callable[..., Gradients]) -> None:
    inputs = data(8)
    grads, losses = gradient(make(network()), inputs)
    for ours, theirs in zip(grads, whole(inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(losses, network()(inputs).pow(2).sum(dim=1).detach(), rtol=1e-13, atol=0)


def test_the_tree_adds_halves_and_never_depends_on_who_adds_which() -> None:
    """Powers of ten whose sum depends on the order: ((a + b) + (c + d)) is not (((a + b) + c) + d)."""
    values = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64)
    leaves = [lambda k=k: values[k].clone() for k in range(4)]
    by_hand = (values[0] + values[1]) + (values[2] + values[3])
    assert tree_sum(leaves) == by_hand != ((values[0] + values[1]) + values[2]) + values[3]
    halves = [tree_sum(leaves[:2]), tree_sum(leaves[2:])]
    assert tree_sum([lambda k=k: halves[k] for k in range(2)]) == by_hand


PROGRAM = """
import sys, torch
sys.path.insert(0, "tests")
sys.path.insert(0, "tests/training")
from adm.runtime.distributed import join
from adm.training.gradients import make_gradients
from test_gradients import data, network
from adm.diffusion.losses import LossTerms

with join() as world:
    of = make_gradients(network().float(), world, int(sys.argv[2]), sys.argv[1] == "exact", torch.device("cpu"))
    size = 16 // world.size
    own = data(16).float()[world.rank * size : (world.rank + 1) * size]
    calls = []

    def forward(rows):
        calls.append(rows)
        loss = of.network(own[rows]).pow(2).sum(dim=1)
        return loss, LossTerms(loss)

    of.backward(size, forward)
    print("".join(p.grad.numpy().tobytes().hex() for p in of.network.parameters()), len(calls))
"""


def of_ranks(size: int, kind: str, microbatch: int = 2) -> Tensor:
    results = run_ranks(PROGRAM, size, kind, str(microbatch))
    assert [r.returncode for r in results] == [0] * size, [r.stderr[-500:] for r in results]
    words = [r.stdout.split() for r in results]
    assert len({gradient for gradient, _ in words}) == 1 and {int(n) for _, n in words} == {16 // size // microbatch}
    return torch.frombuffer(bytearray.fromhex(words[0][0]), dtype=torch.float32)


def test_processes_agree_with_one_and_exactly_where_that_was_asked() -> None:
    truth = torch.cat([g.flatten() for g in whole(data(16))]).float()
    means = {size: of_ranks(size, "mean") for size in (1, 2, 4)}
    trees = {size: of_ranks(size, "exact") for size in (1, 2, 4)}
    for found in (*means.values(), *trees.values()):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-7)
    assert torch.equal(trees[1], trees[2]) and torch.equal(trees[1], trees[4])
    # The twin: plain sums do depend on the number of processes, so the equality above says something.
    assert not (torch.equal(means[1], means[2]) and torch.equal(means[1], means[4]))


@pytest.mark.parametrize(("batch", "microbatch", "size", "wrong"), [
    (6, None, 3, "1, 2, 4, 8 ... processes, not 3"), (6, 2, 2, "multiple of 4"), (6, 4, 1, "multiple of 4"),
])  # fmt: skip
def test_a_batch_that_makes_no_balanced_tree_is_refused(batch, microbatch, size, wrong) -> None:
    with pytest.raises(UsageError, match=wrong):
        check_portions(batch, microbatch, True, World(0, size))
    check_portions(batch, microbatch, False, World(0, size))


@pytest.mark.parametrize(("batch", "size", "wrong"), [
    (8, 3, "over 3 processes. Start 2, or begin a run with 6 or 9."), (3, 4, "Start 3, or begin a run with 4."),
    (12, 5, "Start 4, or begin a run with 10 or 15."), (7, 2, "Start 1, or begin a run with 6 or 8."),
])  # fmt: skip
def test_a_batch_that_does_not_split_says_how_many_processes_it_splits_over(batch: int, size: int, wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_portions(batch, None, False, World(0, size))
    assert str(caught.value).endswith(wrong)
