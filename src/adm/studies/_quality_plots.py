"""Curves with error bars, of many things at once: quality against cost, and one quality against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from adm.studies._plots import INK, MUTED, PAPER, _figure, _png, _row, _style

__all__ = ["ErrorCurve", "ErrorPanel", "error_curves"]

# Okabe & Ito 2008, and greys; a marker for each, so that the curves survive grey print and colour blindness.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a5a9e", "#1f2933", "#9a9a00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p", "d", "H")
LINES = ("-", (0, (5, 1.6)), (0, (1, 1.2)))


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
    """One set of axes. ticks: of a logarithmic x, None for a linear one. levels: horizontal lines, by name."""

    title: str
    x: str
    y: str
    curves: Sequence[ErrorCurve]
    ticks: Sequence[float] | None = None
    log: bool = False
    levels: Mapping[str, float] | None = None


def error_curves(panels: Sequence[ErrorPanel], columns: int = 2) -> bytes:
    """The panels in rows of `columns` as PNG, with one legend for all: a name has one colour and marker everywhere."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    with matplotlib.rc_context(_style()):
        figure = _figure(4.4 * max(len(rows[0]), 2), 3.5 * len(rows) + 0.2 * (1 + len(names) // 4))
        grid = _row(figure, 1) if len(panels) == 1 else list(figure.subplots(len(rows), len(rows[0])).flat)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, panel in zip(grid, panels, strict=False):
            for curve in panel.curves:
                _draw(axes, curve, names.index(curve.name))
            _dress(axes, panel)
        handles: dict[str, Any] = {str(bars.get_label()): bars for axes in grid for bars in axes.containers}
        lines = [handles[name] for name in names]
        figure.legend(lines, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8.5)
        return _png(figure)


def _draw(axes: Axes, curve: ErrorCurve, k: int) -> None:
    axes.errorbar(
        curve.x, curve.y, yerr=_bars(curve.y_error), xerr=_bars(curve.x_error), label=curve.name,
        color=COLOURS[k % len(COLOURS)], linestyle=LINES[k // len(COLOURS) % len(LINES)],
        marker=MARKERS[k % len(MARKERS)], markersize=5, markeredgecolor=PAPER, markeredgewidth=0.6,
        linewidth=1.5, elinewidth=0.9, capsize=2,
    )  # fmt: skip
    for x, y, label in zip(curve.x, curve.y, curve.labels, strict=False):
        axes.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=MUTED)


def _bars(errors: Sequence[float | None] | None) -> list[float] | None:
    return None if errors is None else [0.0 if error is None else error for error in errors]


def _dress(axes: Axes, panel: ErrorPanel) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    if panel.ticks is not None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(list(panel.ticks)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for name, level in (panel.levels or {}).items():
        axes.axhline(level, color=INK, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            name, (1.0, level), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=MUTED, fontsize=8,
        )  # fmt: skip
