"""What a link of each way to guide costs, kept between runs of the study of guidances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from adm.runtime import files
from adm.runtime.errors import DamagedError
from adm.studies._report import Column, Row, Table
from adm.studies.experiments._ways import NONE, WAYS

__all__ = ["cost_table", "stored_seconds"]


def stored_seconds(path: Path, setting: Mapping[str, object]) -> dict[str, float] | None:
    """By way, as measured in this very setting; None if there is no such measurement, or not of all ways."""
    try:
        document = files.read_json(path) if path.exists() else None
    except DamagedError:
        return None
    if not isinstance(document, Mapping) or any(document.get(name) != value for name, value in setting.items()):
        return None
    seconds, ways = document.get("seconds"), setting["ways"]
    if not isinstance(seconds, Mapping) or not isinstance(ways, list) or set(seconds) != set(ways):
        return None
    if not all(isinstance(s, int | float) and 0 < s < math.inf for s in seconds.values()):
        return None
    return {name: float(value) for name, value in seconds.items()}


def cost_table(seconds: Mapping[str, float]) -> Table:
    """What a link of each way costs."""
    columns = [Column("seconds of a link", ".2f", "lower", "1 is the conditional model alone"), Column("what", "s")]
    rows = [Row(name, [seconds[name] / seconds[NONE], WAYS[name].meaning]) for name in seconds]
    milliseconds = 1000 * seconds[NONE]
    return Table(columns, rows, "guidance", f"1 is {milliseconds:.3g} ms an image here.", "What a link costs")
