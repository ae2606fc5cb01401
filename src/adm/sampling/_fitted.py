"""A grid fitted to a model: the links of a short chain that stay nearest to a teacher's long one.

After "On the Trajectory Regularity of ODE-based Diffusion Sampling", Chen et al. 2024 (GITS), section 4: trajectories
of all images bend at the same noise levels, so a few of them tell where links should be short. The error of one Euler
step from the teacher's x_t to each later noise level is measured, and dynamic programming finds the links whose errors
add up to the least. Beyond the paper, the grid may also start lower than the teacher, with the same noise: at large
noise levels x_t hardly changes, and links there are wasted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.schedule import expand
from adm.sampling._loop import StepEvent, sample
from adm.sampling._noise import Noise
from adm.sampling._protocol import Sampler

__all__ = ["cheapest_path", "fit_timesteps", "jump_errors"]


def fit_timesteps(chain: Chain, starts: Tensor, jumps: Tensor, num_links: int) -> list[int | float]:
    """The timesteps of the chain, rising, whose num_links Euler steps stay nearest to the teacher's trajectory.

    chain: the teacher's, fine (60 links are published); the grid ends where it ends. starts, jumps: the mean squares
    of `jump_errors`, over 64 to 256 images. Raises ValueError for more links than the chain has.
    """
    nodes = cheapest_path(starts.sqrt(), jumps.sqrt(), num_links)
    timesteps: list[int | float] = chain.timesteps[nodes].flip(0).tolist()
    return timesteps


class _NoNoise:
    """What a teacher draws: nothing, as no step could be told from the noise in it."""

    def initial(self, shape: Sequence[int]) -> Tensor:
        raise ValueError("the teacher starts from x")

    def at(self, i: int, shape: Sequence[int], draw: int = 0) -> Tensor:
        raise ValueError("the teacher draws noise: use a rule without noise, such as heun")


def jump_errors(
    denoiser: Denoiser,
    chain: Chain,
    noise: Noise,
    shape: Sequence[int],
    teacher: Sampler,
    cond: Condition = Condition(),
) -> tuple[Tensor, Tensor]:
    """(n,) and (n, n + 1), float64, for a chain of n links: what links cost, as mean squares over images and pixels.

    The first: by how much the noise x_T misses the teacher's x at link i, if the grid starts there. The second: by how
    much one Euler step (DDIM with eta = 0) from the teacher's x at link i misses its x at link j, or at the chain's end
    for j = n; infinite for j <= i. Means over batches of equal size are those over all their images.

    noise: gives x_T alone. teacher: a deterministic rule; raises ValueError for one that draws noise, or asks the model
    elsewhere than at x_t. Where an image is not finite, some of the costs are not.
    """
    asked: list[tuple[Tensor, Tensor]] = []
    states: list[Tensor] = []

    def keep(event: StepEvent) -> None:
        prediction = event.prediction
        # A state that has become NaN equals nothing, and is the caller's to refuse: the costs say that it did.
        if prediction is None or not torch.equal(prediction.x_t.nan_to_num(), event.x_t.nan_to_num()):
            raise ValueError("the teacher does not ask the model at x_t itself: use a rule without noise, such as heun")
        if prediction.guidance is not None:
            prediction = prediction.fold(prediction.guidance(event.x_t, event.t))
        asked.append((prediction.x0, prediction.eps))
        states.append(event.x_t)

    x_T = noise.initial(shape)
    states.append(sample(denoiser, chain, teacher, _NoNoise(), shape, cond, x=x_T, on_step=keep))
    n = len(chain)
    jumps = torch.full((n, n + 1), torch.inf, dtype=torch.float64)
    for i, (x0, eps) in enumerate(asked):
        for j in range(i + 1, n + 1):
            link = chain[j - 1]  # which arrives there
            x_s = expand(link.alpha_s, x0) * x0 + expand(link.sigma_s, x0) * eps  # DDIM Eq. 12
            jumps[i, j] = _mean_square(x_s - states[j])
    starts = torch.stack([_mean_square(states[0] - x) for x in states[:n]])
    return starts, jumps


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean().double().cpu()


def cheapest_path(starts: Tensor, costs: Tensor, num_links: int) -> list[int]:
    """The nodes i_0 < i_1 < ... of num_links links to the last node, n, whose costs add up to the least; n is left out.

    starts: (n,), the cost of i_0. costs: (n, n + 1), that of each link i -> j. Dynamic programming: the best way to j
    in k links ends with a link i -> j after the best way to i in k - 1 links.
    """
    n = len(costs)
    if not 1 <= num_links <= n:
        raise ValueError(f"cannot fit {num_links} links to a chain of {n}: use 1 to {n}")
    best = starts
    before: list[Tensor] = []
    for _ in range(num_links):
        best, by = (best[:n, None] + costs).min(dim=0)
        before.append(by)
    nodes = [n]
    for by in reversed(before):
        nodes.append(int(by[nodes[-1]]))
    return nodes[:0:-1]
