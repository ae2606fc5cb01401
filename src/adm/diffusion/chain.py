"""The reverse chain: a list of timesteps, and one link for each step from t down to s.

Going from t to s needs alpha_bar at both ends and nothing else, so respacing is choosing timesteps: every link of a
shorter chain has its own beta, while the network is still asked at the original t (iDDPM section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from adm.diffusion.schedule import Schedule, expand

__all__ = ["Chain", "Link"]


@dataclass(frozen=True, eq=False)
class Link:
    """One reverse step t -> s. Every number has shape (), or (N,) with a link for each image, and is float64.

    last: the step ends at clean data (s = -1), where no noise is added.
    beta: 1 - alpha_bar / alpha_bar_s; beta_tilde: the variance of q(x_s | x_t, x_0), DDPM Eq. 7.
    log_beta_tilde: at the last step, where beta_tilde is 0, it is that of the link before (as released).
    schedule: the chain's, for rules that visit noise levels beside t and s (`schedule.time_at`).
    num_links: of the whole chain, for rules that share something out over it; a piece, `chain[:n]`, keeps it.
    """

    t: Tensor
    s: Tensor
    last: Tensor
    alpha_bar: Tensor
    alpha_bar_s: Tensor
    beta: Tensor
    beta_tilde: Tensor
    log_beta: Tensor
    log_beta_tilde: Tensor
    schedule: Schedule
    num_links: int

    @property
    def alpha(self) -> Tensor:
        """sqrt(alpha_bar): x_t = alpha x_0 + sigma eps."""
        return self.alpha_bar.sqrt()

    @property
    def sigma(self) -> Tensor:
        """sqrt(1 - alpha_bar)."""
        return (1 - self.alpha_bar).sqrt()

    @property
    def alpha_s(self) -> Tensor:
        """alpha where the link arrives; 1 for clean data."""
        return self.alpha_bar_s.sqrt()

    @property
    def sigma_s(self) -> Tensor:
        """sigma where the link arrives; 0 for clean data."""
        return (1 - self.alpha_bar_s).sqrt()

    def mean(self, x0: Tensor, x_t: Tensor) -> Tensor:
        """The mean of q(x_s | x_t, x_0), DDPM Eq. 7."""
        c1 = self.beta * self.alpha_bar_s.sqrt() / (1 - self.alpha_bar)
        c2 = (1 - self.alpha_bar_s) * (1 - self.beta).sqrt() / (1 - self.alpha_bar)
        return expand(c1, x_t) * x0 + expand(c2, x_t) * x_t

    def log_var(self, var_frac: Tensor | float) -> Tensor:
        """log Sigma = f log beta + (1 - f) log beta_tilde, iDDPM Eq. 15. The fraction f is never clamped.

        var_frac: a number, or a tensor that broadcasts over an image batch, (N, 1, 1, 1) or (N, C, H, W). The result
        broadcasts likewise; a number on links of shape (N,) gives (N,), for `expand`.
        """
        if not isinstance(var_frac, Tensor):
            var_frac = torch.tensor(var_frac, dtype=torch.float64)
        return var_frac * expand(self.log_beta, var_frac) + (1 - var_frac) * expand(self.log_beta_tilde, var_frac)

    def __getitem__(self, index: int | slice | Tensor) -> Link:
        return self._map(lambda values: values[index])

    def to(self, device: torch.device) -> Link:
        return self._map(lambda values: values.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Link:
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


class Chain(Sequence[Link]):
    """The links over some timesteps of a schedule; [0] is the first that is taken, from the largest t.

    timesteps: whole or real numbers within the schedule, in any order, each once.
    end: where the last link arrives: -1 for clean data, or a timestep below the others (a chain that ends at
    sigma > 0). `chain[i]` is a Link of numbers, `chain[LongTensor]` one of shape (N,) on the tensor's device, and
    `chain[:n]` the chain of the first n links, which then ends at noise.
    Raises ValueError for an empty, repeated or out-of-range timestep.
    """

    def __init__(self, schedule: Schedule, timesteps: Sequence[int | float] | Tensor, end: int | float = -1) -> None:
        # A list of floats would be read as float32, and timesteps between whole ones be rounded.
        values = timesteps if isinstance(timesteps, Tensor) else torch.as_tensor(timesteps, dtype=torch.float64)
        values = values.detach().cpu()
        if values.ndim != 1 or len(values) == 0:
            raise ValueError("a chain needs at least one timestep: give a list such as adm.spaced(1000, 250)")
        t = values.double().sort(descending=True).values
        if bool((t.diff() == 0).any()):
            raise ValueError("a chain takes each timestep once: remove the repeated ones")
        if float(t[-1]) < 0 or float(t[0]) > schedule.num_timesteps - 1:
            top = schedule.num_timesteps - 1
            raise ValueError(f"timesteps {float(t[-1]):g}..{float(t[0]):g} leave the schedule's range 0..{top}")
        if not -1 <= end < float(t[-1]):
            raise ValueError(f"end {end}: the chain must end at -1 or at a timestep below its lowest, {float(t[-1]):g}")
        self.schedule = schedule
        self._links = _links(schedule, torch.cat([t, torch.tensor([end], dtype=torch.float64)]))

    def __len__(self) -> int:
        return len(self._links.t)

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: Tensor) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> Chain: ...
    def __getitem__(self, index: int | Tensor | slice) -> Link | Chain:
        if isinstance(index, slice):
            return self._of(self._links[index])
        if isinstance(index, Tensor):
            return self._links.to(index.device)[index]
        if not -len(self) <= index < len(self):
            raise IndexError(f"link {index} of a chain of {len(self)}")
        return self._links[index]

    def __iter__(self) -> Iterator[Link]:
        return (self[i] for i in range(len(self)))

    @property
    def timesteps(self) -> Tensor:
        """(len,): the t of each link, falling."""
        return self._links.t

    def inverted(self) -> Chain:
        """The way up, for DDIM inversion: links t_0 -> t_1 -> ... that end at pure noise, alpha_bar_s = 0 (s = T).

        Clean data enters as x at the lowest t, as in the released code. Only deterministic DDIM has a meaning on
        these links; their variances are NaN.
        """
        t = self._links.t.flip(0)
        top = self.schedule.num_timesteps
        s = torch.cat([t[1:], t.new_full((1,), top)])
        alpha_bar = self._links.alpha_bar.flip(0)
        alpha_bar_s = torch.cat([alpha_bar[1:], alpha_bar.new_zeros(1)])
        nan = torch.full_like(alpha_bar, torch.nan)
        never = torch.zeros(len(t), dtype=torch.bool)
        num = self._links.num_links
        return self._of(Link(t, s, never, alpha_bar, alpha_bar_s, nan, nan, nan, nan, self.schedule, num))

    def _of(self, links: Link) -> Chain:
        """A chain of other links over the same schedule."""
        chain = object.__new__(Chain)
        chain.schedule = self.schedule
        chain._links = links
        return chain


def _links(schedule: Schedule, times: Tensor) -> Link:
    if bool((times == times.round()).all()):
        times = times.long()
    alpha_bars = schedule.alpha_bar_at(times)
    alpha_bar, alpha_bar_s = alpha_bars[:-1], alpha_bars[1:]
    beta = 1 - alpha_bar / alpha_bar_s
    beta_tilde = beta * (1 - alpha_bar_s) / (1 - alpha_bar)  # DDPM Eq. 7
    # Released: at t = 0 the log takes the beta_tilde of the link before, for its own is 0. A single link takes beta.
    floor = beta_tilde[-2:-1] if len(beta) > 1 else beta[-1:]
    clipped = torch.cat([beta_tilde[:-1], torch.where(beta_tilde[-1:] > 0, beta_tilde[-1:], floor)])
    return Link(
        t=times[:-1],
        s=times[1:],
        last=alpha_bar_s == 1,
        alpha_bar=alpha_bar,
        alpha_bar_s=alpha_bar_s,
        beta=beta,
        beta_tilde=beta_tilde,
        log_beta=beta.log(),
        log_beta_tilde=clipped.log(),
        schedule=schedule,
        num_links=len(beta),
    )
