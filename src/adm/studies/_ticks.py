"""Where a logarithmic axis is labelled: at numbers of few digits, and at three of them at least."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, Locator, NullLocator

__all__ = ["label_log_axis", "log_ticks", "thinned"]

FEWEST, MOST = 3, 10
MANTISSAS = (1, 2, 5)


class LogTicks(Locator):
    """`log_ticks` of whatever the axis shows when it is drawn."""

    def __call__(self) -> list[float]:
        assert self.axis is not None  # matplotlib sets it before it asks
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return log_ticks(*sorted((vmin, vmax)))


def label_log_axis(axis: Axis, locator: Locator | None = None) -> None:
    """Ticks with their plain numbers on a logarithmic axis, by `log_ticks` or where `locator` has them."""
    axis.set_major_locator(locator or LogTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format(value, ".12g")))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """The ticks of a logarithmic axis from low to high, 0 < low < high: from 3 to 10 of them.

    They are 1, 2, 5, 10, 20... where so many of these lie in the range; in a wider one every power of ten, or every
    n-th; in a narrower one equal steps of 1, 2 or 5 times a power of ten, as wide as three ticks allow.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    ticks = _between(low, high, [_times_power(m, k) for k in decades for m in MANTISSAS])
    if len(ticks) < FEWEST:
        return _even_ticks(low, high)
    every = 1
    while len(ticks) > MOST:
        ticks = _between(low, high, [_times_power(1, k) for k in decades if k % every == 0])
        every += 1
    return ticks


def thinned(ticks: Sequence[float]) -> list[float]:
    """The ticks whose labels find room on a logarithmic axis: those at least a 20th of it from all before them."""
    span = math.log(max(ticks) / min(ticks))
    kept: list[float] = []
    for tick in ticks:
        if tick not in kept and all(abs(math.log(tick / other)) >= span / 20 for other in kept):
            kept.append(tick)
    return kept


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of the widest tidy step of which at least three lie in the range: 8 at most."""
    largest = math.ceil(math.log10(high - low))
    steps = ((m, k) for k in range(largest, largest - 3, -1) for m in reversed(MANTISSAS))
    for m, k in steps:
        step = _times_power(m, k)
        counts = range(math.floor(low / step), math.ceil(high / step) + 1)
        ticks = _between(low, high, [_times_power(m * count, k) for count in counts])
        if len(ticks) >= FEWEST:
            return ticks
    raise ValueError(f"from {low} to {high} there are too few numbers for ticks: give a wider range")


def _between(low: float, high: float, values: Sequence[float]) -> list[float]:
    return [value for value in values if low <= value <= high]


def _times_power(count: int, k: int) -> float:
    # A division by a power of ten is rounded once, a product with its inverse twice: 3 * 0.1 is not 0.3.
    return count * 10.0**k if k >= 0 else count / 10.0**-k
