"""Curves with error bars, of many things at once: quality against cost, and one quality against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator

from adm.studies._plots import INK, MUTED, PAPER, _figure, _png, _style
from adm.studies._ticks import label_log_axis, thinned

__all__ = ["ErrorCurve", "ErrorPanel", "error_curves", "stroke"]

# Okabe & Ito 2008 without yellow, which paper swallows, and ink for black. A colour comes again with another dash, and
# then its markers are hollow; every curve has a marker of its own, so that grey print keeps them apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
LINES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "d", "H")
ASIDE = 0.009
"""How far the points of one curve stand beside those of the next where all share their x, as a part of the axis."""
WIDTH, HEIGHT, LINE_HEIGHT = 8.8, 3.4, 0.2


@dataclass(frozen=True)
class ErrorCurve:
    """Points in order; the errors are standard deviations, None for none. labels stand beside the points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    y_error: Sequence[float | None] | None = None
    x_error: Sequence[float | None] | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class ErrorPanel:
    """One set of axes. ticks: of a logarithmic x, None for a linear one. levels: horizontal lines, by name.

    On a logarithmic x the curves have their points at the same few numbers, and there they are drawn side by side. Of
    ticks that are too near to each other for their labels, those that come first stay.
    """

    title: str
    x: str
    y: str
    curves: Sequence[ErrorCurve]
    ticks: Sequence[float] | None = None
    log: bool = False
    levels: Mapping[str, float] | None = None


def error_curves(panels: Sequence[ErrorPanel]) -> bytes:
    """The panels in rows of two, as PNG; those of one row that show the same quantity share its range.

    Columns that have no curve in common have a legend each, below them, others one for both. A name has one colour,
    dash and marker everywhere.
    """
    with matplotlib.rc_context(_style()):
        return _png(drawn(panels))


def drawn(panels: Sequence[ErrorPanel]) -> Figure:
    """The figure, in the style that is set."""
    legends = _legends(panels)
    across = 4 // len(legends)
    lines = max(math.ceil(len(names) / across) for names in legends)
    heights = [HEIGHT] * math.ceil(len(panels) / 2) + [LINE_HEIGHT * lines]
    figure = _figure(WIDTH, sum(heights))
    figure.set_layout_engine("constrained", h_pad=0.09)
    grid = GridSpec(len(heights), 2, figure, height_ratios=heights)
    styles = {name: stroke(k) for names in legends for k, name in enumerate(names)}
    left: Axes | None = None
    for number, panel in enumerate(panels):
        row, column = divmod(number, 2)
        shared = left if column and _same_y(panel, panels[number - 1]) else None
        left = figure.add_subplot(grid[row, column], sharey=shared)
        for curve, aside in zip(panel.curves, _asides(panel), strict=True):
            _draw(left, curve, styles[curve.name], aside)
        _dress(left, panel)
    for column, names in enumerate(legends):
        place = figure.add_subplot(grid[-1, :] if len(legends) == 1 else grid[-1, column])
        place.set_axis_off()
        keys = [Line2D([], [], label=name, **styles[name]) for name in names]
        place.legend(handles=keys, loc="upper center", ncols=across, handlelength=4.5, fontsize=8.5, borderaxespad=0)
    return figure


def stroke(k: int) -> dict[str, Any]:
    """How the k-th curve is drawn: colour with dash, and the marker, are its own among 14."""
    colour, turn = COLOURS[k % len(COLOURS)], k // len(COLOURS)
    hollow = turn % 2 == 1
    return {
        "color": colour,
        "linestyle": LINES[turn % len(LINES)],
        "linewidth": 1.5,
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 5.5,
        "markerfacecolor": PAPER if hollow else colour,
        "markeredgecolor": colour if hollow else PAPER,
        "markeredgewidth": 1.0 if hollow else 0.6,
    }


def _legends(panels: Sequence[ErrorPanel]) -> list[list[str]]:
    """The names in the left and in the right column where they share none, otherwise all of them once."""
    left, right = ([curve.name for panel in panels[k::2] for curve in panel.curves] for k in (0, 1))
    parts = [left + right] if set(left) & set(right) or not right else [left, right]
    return [list(dict.fromkeys(part)) for part in parts]


def _same_y(one: ErrorPanel, other: ErrorPanel) -> bool:
    return (one.y, one.log) == (other.y, other.log)


def _asides(panel: ErrorPanel) -> list[float]:
    """What the x of each curve is multiplied by."""
    count, ticks = len(panel.curves), panel.ticks
    span = math.log(max(ticks) / min(ticks)) or 1.0 if ticks else 0.0
    return [math.exp(span * ASIDE * (k - (count - 1) / 2)) for k in range(count)]


def _draw(axes: Axes, curve: ErrorCurve, style: Mapping[str, Any], aside: float) -> None:
    x = [aside * value for value in curve.x]
    x_error, y_error = _bars(curve.x_error), _bars(curve.y_error)
    axes.errorbar(x, curve.y, xerr=x_error, yerr=y_error, elinewidth=0.9, capsize=2, **style)
    for place, label in zip(zip(x, curve.y, strict=True), curve.labels, strict=False):
        axes.annotate(
            label, place, xytext=(4, 4), textcoords="offset points", fontsize=7, color=style["color"],
            path_effects=[withStroke(linewidth=2, foreground=PAPER)], zorder=5,
        )  # fmt: skip


def _bars(errors: Sequence[float | None] | None) -> list[float] | None:
    if errors is None or all(error is None for error in errors):
        return None
    return [0.0 if error is None else error for error in errors]


def _dress(axes: Axes, panel: ErrorPanel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    if panel.ticks is not None:
        axes.set_xscale("log")
        label_log_axis(axes.xaxis, FixedLocator(thinned(panel.ticks)))
    if panel.log:
        axes.set_yscale("log")
        label_log_axis(axes.yaxis)
    for name, level in (panel.levels or {}).items():
        axes.axhline(level, color=INK, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        # Beside the axes, where no curve comes.
        axes.annotate(
            name, (1.0, level), xycoords=("axes fraction", "data"), annotation_clip=False,
            xytext=(3, 0), textcoords="offset points", ha="left", va="center", color=MUTED, fontsize=8,
        )  # fmt: skip
