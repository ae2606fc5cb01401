"""The gradient of a step: microbatch by microbatch, over all processes, with one exchange between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from adm.diffusion.losses import LossTerms
from adm.runtime.distributed import World
from adm.runtime.errors import UsageError

__all__ = ["Gradients", "Mean", "TreeSum", "check_portions", "make_gradients"]

Forward = Callable[[slice], tuple[Tensor, LossTerms]]
"""Of some rows of this process's share: the weighted loss of each, to be averaged, and the terms to report."""


class Gradients(Protocol):
    """Leaves the gradient of the mean over the whole batch in every process's `.grad`."""

    network: nn.Module
    """What a forward pass must go through."""

    def backward(self, share: int, forward: Forward) -> list[LossTerms]: ...


class Mean:
    """Each process adds up its share; DistributedDataParallel adds the processes' sums during the last backward.

    microbatch: images of a process that go through the network at once, None for all of its share.
    """

    def __init__(self, network: nn.Module, world: World, microbatch: int | None, device: torch.device) -> None:
        self.network = world.replicate(network, device)
        self.world = world
        self.microbatch = microbatch

    def backward(self, share: int, forward: Forward) -> list[LossTerms]:
        portions = list(rows_of(share, self.microbatch))
        results = []
        for rows in portions:
            with self.world.microbatch(self.network, last=rows is portions[-1]):
                loss, terms = forward(rows)
                (loss.sum() / (share * self.world.size)).backward()
            results.append(detached(terms))
        return results


class TreeSum:
    """The same sum in the same order for any number of processes, a power of two: equal to the bit.

    The microbatches of the whole batch are the leaves of a balanced binary tree. A process adds up its own subtree;
    the processes' sums are gathered and added by the top of the tree. Needs log2(microbatches) + processes gradients
    of memory. Floating-point addition is not associative, which is why a plain all-reduce depends on the number of
    processes.
    """

    def __init__(self, network: nn.Module, world: World, microbatch: int) -> None:
        self.network = network
        self.world = world
        self.microbatch = microbatch
        self.parameters = [p for p in network.parameters() if p.requires_grad]

    def backward(self, share: int, forward: Forward) -> list[LossTerms]:
        results: list[LossTerms] = []
        total = share * self.world.size

        def leaf(rows: slice) -> Tensor:
            loss, terms = forward(rows)
            gradients = torch.autograd.grad(loss.sum() / total, self.parameters, allow_unused=True)
            results.append(detached(terms))
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
            return torch.cat([g.flatten() for g in flat])

        own = tree_sum([lambda rows=rows: leaf(rows) for rows in rows_of(share, self.microbatch)])  # type: ignore[misc]
        of_all = self.world.all_gather(own[None])  # (processes, parameters)
        summed = tree_sum([lambda k=k: of_all[k].clone() for k in range(self.world.size)])  # type: ignore[misc]
        parts = summed.to(own.device).split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = part.view_as(p).clone()
        return results


def make_gradients(
    network: nn.Module, world: World, microbatch: int | None, exact: bool, device: torch.device
) -> Gradients:
    """As `loop.exact` and `loop.microbatch` say; exact leaves are one image each where no microbatch is given."""
    return TreeSum(network, world, microbatch or 1) if exact else Mean(network, world, microbatch, device)


def check_portions(batch_size: int, microbatch: int | None, exact: bool, world: World) -> None:
    """UsageError when the batch cannot be split so."""
    if batch_size % world.size:
        fewer = max(n for n in range(1, world.size) if batch_size % n == 0)
        whole = f"{batch_size // world.size * world.size} or " if batch_size > world.size else ""
        raise UsageError(
            f"loop.batch_size={batch_size} does not split over {world.size} processes. Start {fewer}, or begin a run "
            f"with {whole}{(batch_size // world.size + 1) * world.size}."
        )
    if not exact:
        return
    if world.size & (world.size - 1):
        raise UsageError(
            f"loop.exact needs 1, 2, 4, 8 ... processes, not {world.size}. Start as many, or leave it out."
        )
    leaf = (microbatch or 1) * world.size
    if batch_size % leaf:
        raise UsageError(
            f"loop.exact: a batch of {batch_size} does not split into microbatches of {microbatch or 1} over "
            f"{world.size} processes. Use a multiple of {leaf}."
        )


def rows_of(share: int, microbatch: int | None) -> Iterator[slice]:
    size = microbatch or share
    for start in range(0, share, size):
        yield slice(start, min(start + size, share))


def tree_sum(leaves: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Adds the halves, each added likewise, from left to right; what a leaf returns is overwritten."""
    if len(leaves) == 1:
        return leaves[0]()
    middle = len(leaves) // 2
    return tree_sum(leaves[:middle]).add_(tree_sum(leaves[middle:]))


def detached(terms: LossTerms) -> LossTerms:
    return LossTerms(terms.loss.detach(), {name: values.detach() for name, values in terms.terms.items()})
