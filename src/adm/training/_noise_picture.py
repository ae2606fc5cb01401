"""A measurement on validation images as curves over the noise."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adm.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

INK, MUTED, RULE = "#1f2933", "#66727f", "#e3e7eb"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe & Ito 2008
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def draw(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a PNG of what `Validation` returned: accuracy and calibration, or loss and gap, by noise level.

    Equal results give equal bytes; matplotlib's settings are as before afterwards.
    """
    import matplotlib

    # From the defaults, not from what the user's own matplotlibrc says. The backend is never consulted.
    style: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")} | STYLE
    with matplotlib.rc_context(style):
        stream = io.BytesIO()
        _figure(result).savefig(stream, format="png", metadata={"Software": None})
    files.write_bytes(path, stream.getvalue())


def _figure(result: Mapping[str, Any]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = (figure.add_subplot(1, 2, k) for k in (1, 2))
    if result["job"] == "classifier":
        _accuracy(left, result)
        _calibration(right, result)
    else:
        _losses(left, result)
        _gap(right, result)
    return figure


def _accuracy(axes: Axes, result: Mapping[str, Any]) -> None:
    levels = result["levels"]
    _curve(axes, [level["accuracy"] for level in levels], "top-1", BLUE, "o")
    if "accuracy_top5" in result:
        _curve(axes, [level["accuracy_top5"] for level in levels], "top-5", ORANGE, "s")
    axes.axhline(result["chance"], color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), label="most common class")
    axes.set_ylim(-0.03, 1.06)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    _finish(axes, levels, "Accuracy by noise" + ("" if result["held_out"] else " (training images)"))


def _calibration(axes: Axes, result: Mapping[str, Any]) -> None:
    levels = result["levels"]
    known = [k for k, level in enumerate(levels) if level["calibrated_scale"] is not None]
    scales = [levels[k]["calibrated_scale"] for k in known]
    errors = [levels[k]["calibrated_scale_standard_error"] or 0.0 for k in known]
    axes.errorbar(known, scales, errors, color=BLUE, marker="o", markersize=5, linewidth=1.6, label="by noise level")
    if result["calibrated_scale"] is not None:
        axes.axhline(result["calibrated_scale"], color=ORANGE, linewidth=1.4, label="all levels")
    axes.axhline(1.0, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), label="calibrated as it is")
    # Where hardly any image is wrong the scale is large and means little: such a level leaves the picture.
    axes.set_ylim(0, max(2.0, min(5.0, 1.2 * max(scales, default=0.0))))
    _finish(axes, levels, "Scale at which it is calibrated")


def _losses(axes: Axes, result: Mapping[str, Any]) -> None:
    levels = result["levels"]
    name = "held-out images" if result["held_out"] else "training images"
    highest = max(level["loss"] for level in levels)
    _curve(axes, [level["loss"] for level in levels], name, ORANGE, "s")
    if "training_loss" in result:
        highest = max(highest, *(level["training_loss"] for level in levels))
        _curve(axes, [level["training_loss"] for level in levels], "training images", BLUE, "o")
    axes.set_ylim(0, 1.06 * highest or 1.0)
    _finish(axes, levels, "Loss by noise")


def _gap(axes: Axes, result: Mapping[str, Any]) -> None:
    levels = result["levels"]
    axes.axhline(0.0, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), label="no gap")
    if "gap" in result:
        gaps = [level["gap"] for level in levels]
        errors = [3 * (level["gap_standard_error"] or 0.0) for level in levels]
        axes.errorbar(
            range(len(levels)), gaps, errors, color=BLUE, marker="o", markersize=5, linewidth=1.6, capsize=3,
            label="± 3 standard errors",
        )  # fmt: skip
    _finish(axes, levels, "Held-out minus training loss")


def _curve(axes: Axes, values: Sequence[float], label: str, colour: str, marker: str) -> None:
    axes.plot(range(len(values)), values, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label)


def _finish(axes: Axes, levels: Sequence[Mapping[str, Any]], title: str) -> None:
    axes.set_title(title, pad=22)
    axes.set_xticks(range(len(levels)), [f"{level['t'][0]}\n{level['log_snr']:.1f}" for level in levels])
    axes.set_xlim(-0.4, len(levels) - 0.6)
    axes.set_xlabel("first timestep of the level, and its mean log-SNR")
    # Between the title and the axes, where no curve and no line can cross it.
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8.0, borderaxespad=0.2, borderpad=0.2,
        handlelength=1.7, handletextpad=0.5, columnspacing=1.1,
    )  # fmt: skip
