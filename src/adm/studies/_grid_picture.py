"""Grids of timesteps side by side: where each asks the network, and how far its images are from the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib

from adm.studies._plots import COLOURS, INK, _figure, _png, _row, _style

__all__ = ["grid_picture"]


def grid_picture(ratios: Mapping[str, Sequence[float]], distances: Mapping[str, Sequence[float]]) -> bytes:
    """A row for each grid, by its name, the first one in a colour of its own.

    ratios: the noise-to-signal ratio of each of its timesteps. distances: of its images, a value for each batch.
    """
    names = list(ratios)
    with matplotlib.rc_context(_style()):
        figure = _figure(8.4, 1.2 + 0.34 * len(names))
        left, right = _row(figure, 2)
        for k, name in enumerate(names):
            colour = COLOURS[0] if k == 0 else COLOURS[1]
            left.plot(ratios[name], [k] * len(ratios[name]), "o", color=colour, markersize=5, linestyle="none")
            mean = sum(distances[name]) / len(distances[name])
            right.barh(k, mean, height=0.55, color=colour, alpha=0.8)
            right.plot(distances[name], [k] * len(distances[name]), "|", color=INK, markersize=8, linestyle="none")
        left.set_xscale("log")
        left.set_xlabel("noise-to-signal ratio")
        left.set_title("Where the network is asked")
        right.set_xlabel("grey levels, root mean square")
        right.set_title("Distance from the teacher's images")
        for axes in (left, right):
            axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
            axes.set_ylim(len(names) - 0.4, -0.6)
        return _png(figure)
