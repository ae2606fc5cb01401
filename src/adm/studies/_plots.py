"""Curves as PNG bytes: equal input gives equal bytes, and matplotlib's settings are as before afterwards.

Samplers are told apart by colour, marker and line, so the curves survive grey print and colour blindness (the
hues are those of Okabe & Ito 2008). Figures are drawn to be shown at up to 900 pixels and stored at twice.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adm.studies._ticks import label_log_axis

__all__ = [
    "Curve",
    "Dots",
    "Panel",
    "TradeOff",
    "dot_plot",
    "loss_curves",
    "scale_curves",
    "trade_off",
]

PAPER, INK, MUTED, RULE = "#ffffff", "#1f2933", "#66727f", "#e3e7eb"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8a5a9e")
MARKERS = ("o", "s", "^", "D")
LINES = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
DPI = 200
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


@dataclass(frozen=True)
class TradeOff:
    """One sampler's way through the plane: recall, precision and the scale at each point."""

    name: str
    scale: Sequence[float]
    precision: Sequence[float]
    recall: Sequence[float]


@dataclass(frozen=True)
class Curve:
    """Values recorded during training, at the given steps."""

    name: str
    step: Sequence[float]
    value: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One set of axes. ``curves`` share the left axis; ``levels`` are horizontal lines, such as chance."""

    title: str
    curves: Sequence[Curve]
    log: bool = False
    percent: bool = False
    levels: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Dots:
    """Some values of each row, by its name; the first row is what the others are compared with."""

    title: str
    values: Mapping[str, Sequence[float]]


def dot_plot(panels: Sequence[Dots]) -> bytes:
    """A panel for each quantity, a line for each row: its values as dots, their mean as a bar."""
    names = list(panels[0].values)
    with matplotlib.rc_context(_style()):
        figure = _figure(4.1 * max(len(panels), 2), 0.9 + 0.26 * len(names))
        for number, (axes, panel) in enumerate(zip(_row(figure, len(panels)), panels, strict=True)):
            for k, name in enumerate(names):
                values, colour = panel.values[name], COLOURS[0] if k == 0 else COLOURS[1]
                axes.plot(values, [k] * len(values), "o", color=colour, markersize=5, alpha=0.7, linestyle="none")
                axes.plot([np.mean(values)], [k], "|", color=INK, markersize=13, markeredgewidth=1.8)
            axes.axvline(float(np.mean(panel.values[names[0]])), color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)))
            axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_title(panel.title)
        return _png(figure)


def trade_off(lines: Sequence[TradeOff], anchors: Mapping[str, tuple[float, float]] | None = None) -> bytes:
    """Precision against recall, a line for each sampler and the scale beside each point.

    ``anchors``: further points by name, (recall, precision), such as the real training images.
    """
    with matplotlib.rc_context(_style()):
        figure, axes = _canvas(6.2, 4.3)
        for k, line in enumerate(lines):
            axes.plot(line.recall, line.precision, label=line.name, **_stroke(k))
            _annotate_scales(axes, line, k)
        for name, (recall, precision) in (anchors or {}).items():
            axes.plot([recall], [precision], "*", color=INK, markersize=11, linestyle="none", label=name)
        axes.set_xlabel("recall: share of held-out images that the samples cover")
        axes.set_ylabel("precision: share of samples\nthat look like held-out images")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
        axes.margins(0.13, 0.14)
        axes.legend(loc="best", handlelength=2.6)
        return _png(figure)


def scale_curves(panels: Sequence[Panel]) -> bytes:
    """A row of panels over the guidance scale, whose values stand at equal distances."""
    scales = sorted({scale for panel in panels for curve in panel.curves for scale in curve.step})
    with matplotlib.rc_context(_style()):
        figure = _figure(3.15 * max(len(panels), 2), 3.1)
        for axes, panel in zip(_row(figure, len(panels)), panels, strict=True):
            for k, curve in enumerate(panel.curves):
                axes.plot([scales.index(s) for s in curve.step], curve.value, label=curve.name, **_stroke(k))
            axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
            axes.set_xlim(-0.25, len(scales) - 0.75)
            axes.set_xlabel("guidance scale s")
            _finish(axes, panel)
        return _png(figure)


def loss_curves(panels: Sequence[Panel]) -> bytes:
    """A row of panels over the training step: each record faint, its running mean strong."""
    with matplotlib.rc_context(_style()):
        figure = _figure(3.15 * max(len(panels), 2), 3.1)
        for axes, panel in zip(_row(figure, len(panels)), panels, strict=True):
            for k, curve in enumerate(panel.curves):
                value = np.asarray(curve.value, dtype=np.float64)
                colour = COLOURS[k % len(COLOURS)]
                axes.plot(curve.step, value, color=colour, alpha=0.22, linewidth=0.8)
                axes.plot(curve.step, _running_mean(value), color=colour, linewidth=1.8, label=curve.name)
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            _finish(axes, panel)
        return _png(figure)


def _finish(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    if panel.log:
        axes.set_yscale("log")
        label_log_axis(axes.yaxis)
    if panel.percent:
        axes.set_ylim(-0.03, 1.06)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    for name, level in (panel.levels or {}).items():
        axes.axhline(level, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            name, (1.0, level), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=MUTED, fontsize=8,
        )  # fmt: skip
    if len(panel.curves) > 1 or panel.curves[0].name != panel.title:
        axes.legend(loc="best", handlelength=2.4, fontsize=8.5)


def _annotate_scales(axes: Axes, line: TradeOff, k: int) -> None:
    # A trade-off falls to the right: labels above the first line and below the next then touch neither.
    side = 1 if k % 2 == 0 else -1
    for scale, precision, recall in zip(line.scale, line.precision, line.recall, strict=True):
        axes.annotate(
            f"s = {scale:g}", (recall, precision), xytext=(6 * side, 5 * side), textcoords="offset points",
            ha="left" if side > 0 else "right", va="bottom" if side > 0 else "top",
            color=COLOURS[k % len(COLOURS)], fontsize=8.5,
        )  # fmt: skip


def _stroke(k: int) -> dict[str, Any]:
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": LINES[k % len(LINES)],
        "linewidth": 1.8,
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 5.5,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.8,
    }


def _running_mean(value: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the curve, shorter at the ends."""
    half = max(len(value) // 40, 1)
    total = np.concatenate([[0.0], np.cumsum(value)])
    index = np.arange(len(value))
    # The window never reaches past its centre further than before it, so the steep start keeps its height.
    before = np.minimum(half, index)
    after = np.minimum(before, len(value) - 1 - index)
    return (total[index + after + 1] - total[index - before]) / (before + after + 1)


def _style() -> dict[Any, Any]:
    # From the defaults, not from what the user's own matplotlibrc says. The backend is never consulted.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    return defaults | STYLE


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _row(figure: Figure, count: int) -> list[Axes]:
    return [figure.add_subplot(1, count, k + 1) for k in range(count)]


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
