"""The forward process: how much signal and how much noise there is at each timestep.

Timesteps count from 0: t = 0 is already one noising step, and s = -1 stands for clean data. Tables are float64 and
made on the CPU; what leaves this file has the dtype of the image it is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Schedule", "Time", "cosine", "edm", "expand", "flow", "linear", "spaced", "strided"]

Time = int | float | Tensor
"""A timestep: one number for the batch, or a tensor of shape () or (N,); real values lie between table entries."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), DDPM Eq. 4.

    alpha_bar: (T,), strictly decreasing inside (0, 1); kept as float64 on the CPU. Raises ValueError otherwise.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64).clone()
        if table.ndim != 1 or len(table) == 0:
            raise ValueError(f"alpha_bar has shape {tuple(table.shape)}: give one value per timestep, shape (T,)")
        if not (bool((table > 0).all()) and bool((table < 1).all()) and bool((table.diff() < 0).all())):
            raise ValueError("alpha_bar must fall strictly and stay inside (0, 1): check the schedule's betas")
        object.__setattr__(self, "alpha_bar", table)

    @classmethod
    def from_betas(cls, betas: Tensor | np.ndarray | Sequence[float]) -> Schedule:
        """alpha_bar_t = prod_{i <= t} (1 - beta_i), DDPM Eq. 4."""
        return cls(torch.from_numpy(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))))

    @classmethod
    def from_sigmas(cls, sigmas: Tensor | Sequence[float]) -> Schedule:
        """From noise levels of the variance-exploding view, sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), rising."""
        return cls(1.0 / (1.0 + torch.as_tensor(sigmas, dtype=torch.float64) ** 2))

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alpha_bar)

    def alpha_bar_at(self, t: Time) -> Tensor:
        """alpha_bar at t, float64: the table's at integers, 1 at t = -1, by log-SNR interpolation in between.

        Between -1 and 0, where the log-SNR has no upper end, the noise-to-signal ratio falls linearly to 0.
        Raises IndexError above T - 1 or below -1.
        """
        # A float would be read as float32.
        t = torch.tensor(t, dtype=torch.float64) if isinstance(t, float) else torch.as_tensor(t)
        device, t = t.device, t.to("cpu")
        if bool((t < -1).any()) or bool((t > self.num_timesteps - 1).any()):
            raise IndexError(f"timestep {t.tolist()} is outside -1..{self.num_timesteps - 1}")
        table = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar])
        if not t.is_floating_point():
            return table[t.long() + 1].to(device)
        lower = t.double().floor().long().clamp(max=self.num_timesteps - 2) if self.num_timesteps > 1 else t.long() - 1
        share = t.double() - lower
        below, above = table[lower + 1], table[lower + 2]
        log_snr = torch.lerp(torch.logit(below.clamp(max=1 - 2**-53)), torch.logit(above), share)
        to_clean = 1.0 / (1.0 + (share**2) * (1.0 - above) / above)
        value = torch.where(lower < 0, to_clean, torch.sigmoid(log_snr))
        value = torch.where(share == 0, below, torch.where(share == 1, above, value))
        return value.to(device)

    def alpha_sigma(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)), which broadcast over `like` and have its dtype.

        A single t gives numbers, a t of shape (N,) gives (N, 1, 1, 1). (1, 0) at t = -1.
        """
        alpha_bar = self.alpha_bar_at(t)
        return expand(alpha_bar.sqrt(), like), expand((1.0 - alpha_bar).sqrt(), like)

    def time_at(self, noise_to_signal: Tensor | float) -> Tensor:
        """The real t, float64, at which sigma / alpha has this value: the inverse of `alpha_bar_at`, -1 for 0.

        What lies above the schedule's largest ratio is taken as that, T - 1.
        """
        ratio = torch.as_tensor(noise_to_signal).double()
        device, ratio = ratio.device, ratio.cpu()
        table = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        inside = np.interp(ratio.clamp(min=float(table[0])).log().numpy(), table.log().numpy(), np.arange(len(table)))
        return torch.where(ratio < table[0], ratio / table[0] - 1, torch.as_tensor(inside)).to(device)

    def q_sample(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, DDPM Eq. 4."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * eps

    def same_as(self, other: Schedule) -> bool:
        """Whether two schedules are the same forward process: to 1e-6 in log-SNR, at every timestep."""
        return self.alpha_bar.shape == other.alpha_bar.shape and torch.allclose(
            torch.logit(self.alpha_bar), torch.logit(other.alpha_bar), rtol=0, atol=1e-6
        )


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Coefficients of shape () or (N,) in the dtype of `like`, so that they broadcast over its other dimensions.

    A single number stays where it is: torch combines it with tensors of any device without a transfer. The cast
    comes before the move, because some devices have no float64.
    """
    values = values.to(like.dtype)
    if values.ndim == 0:
        return values
    return values.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


def linear(T: int = 1000) -> Schedule:
    """DDPM's schedule: beta rises evenly from 1e-4 to 0.02, times 1000 / T so that alpha_bar_T hardly depends on T."""
    if T <= 20:
        raise ValueError(f"linear({T}): the last beta, 20 / T, must be below 1; use T >= 21")
    return Schedule.from_betas(np.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T, dtype=np.float64))


def cosine(T: int = 1000) -> Schedule:
    """iDDPM Eq. 17: alpha_bar follows a squared cosine, with every beta capped at 0.999.

    The cap reaches the last beta alone, and alpha_bar is rebuilt from the capped betas, as in the released code: the
    noise-to-signal ratio at the last step is 20291 for T = 1000.
    """

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return Schedule.from_betas([min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)])


def edm(T: int = 1000) -> Schedule:
    """EDM's range of noise levels: the noise-to-signal ratio rises from 0.002 to 80, evenly in its logarithm.

    For training in EDM's manner, with `timesteps=log-normal`; uniform timesteps draw it log-uniformly. Source: EDM
    Table 1 (sigma_min, sigma_max).
    """
    if T < 2:
        raise ValueError(f"edm({T}): the first and the last noise level are given; use T >= 2")
    return Schedule.from_sigmas(torch.from_numpy(np.geomspace(0.002, 80.0, T, dtype=np.float64)))


def flow(T: int = 1000) -> Schedule:
    """The straight path (1 - u) x_0 + u eps at u = (t + 1) / (T + 1), each point scaled to alpha^2 + sigma^2 = 1.

    u runs evenly inside (0, 1): the ends, where alpha_bar would be 1 and 0, lie one more step of the same length away.
    The noise-to-signal ratio is u / (1 - u). Source: rectified flow, Liu, Gong and Liu 2022 (whose time runs from noise
    to data).
    """
    if T < 1:
        raise ValueError(f"flow({T}): a schedule needs timesteps; use T >= 1")
    u = torch.arange(1, T + 1, dtype=torch.float64) / (T + 1)
    return Schedule((1 - u) ** 2 / ((1 - u) ** 2 + u**2))


def spaced(T: int, counts: int | str | Sequence[int]) -> list[int]:
    """Timesteps of a shorter chain, rising: T is cut into equal sections, each with its count, both ends included.

    counts: 250, "250", "10,10,15" or [10, 10, 15]. Positions are rounded half to even, as the released code's are
    (guided-diffusion, respace.py). Raises ValueError when a section has fewer timesteps than its count.
    """
    if isinstance(counts, str):
        counts = _parse_counts(counts)
    sections = [int(count) for count in counts] if isinstance(counts, Iterable) else [int(counts)]
    if len(sections) == 1 and not 1 <= sections[0] <= T:
        raise ValueError(f"cannot take {sections[0]} of {T} timesteps: use 1 to {T}")
    if not sections or any(count < 1 for count in sections):
        raise ValueError(f"counts {counts!r}: give at least one step to each section")
    timesteps: list[int] = []
    start = 0
    for i, count in enumerate(sections):
        size = T // len(sections) + (i < T % len(sections))
        if count > size:
            raise ValueError(f"cannot take {count} steps from a section of {size} timesteps: use at most {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            timesteps.append(start + round(position))
            position += stride
        start += size
    return timesteps


def strided(T: int, n: int | str) -> list[int]:
    """Every i-th timestep from 0, rising: DDIM's grid, with the smallest integer stride i that gives n timesteps.

    n: 25 or "ddim25". The last one is below T - 1 (960 for 25 of 1000). Raises ValueError, naming the nearest
    counts that exist, when no integer stride gives n.
    """
    if isinstance(n, str):
        digits = n.removeprefix("ddim")
        if not digits.isdecimal():
            raise ValueError(f"strided timesteps {n!r}: write a number, or ddim25 for 25 steps")
        n = int(digits)
    if not 1 <= n <= T:
        raise ValueError(f"cannot take {n} of {T} timesteps: use 1 to {T}")
    for stride in range(1, T + 1):
        timesteps = range(0, T, stride)
        if len(timesteps) == n:
            return list(timesteps)
    possible = sorted({len(range(0, T, stride)) for stride in range(1, T + 1)})
    below = max(count for count in possible if count < n)
    above = min(count for count in possible if count > n)
    raise ValueError(
        f"no integer stride takes {n} of {T} timesteps: use the nearest that exist, {below} or {above} steps"
    )


def _parse_counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"counts {text!r}: write whole numbers with commas, such as 250 or 10,10,15") from None
