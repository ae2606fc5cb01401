"""The report of a study: one HTML file with all in it, its figures as PNG, its table as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import jinja2

from adm.runtime import files
from adm.runtime.errors import UsageError

__all__ = ["Column", "Figure", "Report", "Row", "Table", "markdown", "render", "text_table", "write_report"]

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A column of the table: ``form`` formats its numbers (".3f", ".1%"), ``better`` says which are good."""

    title: str
    form: str = ".3f"
    better: Literal["higher", "lower"] | None = None
    meaning: str = ""

    def show(self, value: Value) -> str:
        """The value as it is printed; None is a dash: not measured, or without meaning here."""
        if value is None:
            return "-"
        if isinstance(value, str):
            return value
        return format(value, self.form)


@dataclass(frozen=True)
class Row:
    """What was measured of one set. ``real``: the set is of real images, a yardstick and not a result."""

    name: str
    values: Sequence[Value]
    real: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in the order given, real data last; the first column holds their names under ``corner``."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    corner: str = "samples"
    caption: str = ""
    title: str = "The numbers"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise UsageError(
                    f"row {row.name!r}: {len(row.values)} values for {len(self.columns)} columns: fit them"
                )

    def shown(self) -> list[tuple[Row, list[str]]]:
        """Each row with its values as they are printed."""
        pairs = [(row, zip(self.columns, row.values, strict=True)) for row in self.rows]
        return [(row, [column.show(value) for column, value in cells]) for row, cells in pairs]


@dataclass(frozen=True)
class Figure:
    """A picture as PNG bytes. ``name`` is its file name without ending; ``alt`` says in words what it is."""

    name: str
    title: str
    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report says, in plain text: markup in it is shown and not obeyed.

    ``highlights``: (number, what it is) pairs for the top. ``guide``: (word, explanation) pairs on how to
    read the rest. ``conditions``: what someone needs to know to repeat or compare it. The first figure stands
    above the table, ``more`` tables behind the other figures.
    """

    title: str
    summary: Sequence[str]
    figures: Sequence[Figure]
    table: Table
    conditions: Mapping[str, object]
    guide: Sequence[tuple[str, str]] = ()
    highlights: Sequence[tuple[str, str]] = ()
    more: Sequence[Table] = ()


def write_report(path: Path, report: Report) -> list[Path]:
    """Write ``path`` and the figures to ``pictures/`` beside it; returns all paths, the page's first."""
    names = [figure.name for figure in report.figures]
    if len(set(names)) != len(names):
        raise UsageError(f"figures {', '.join(names)}: two would share a file, give each a name of its own")
    pictures = [path.parent / "pictures" / f"{name}.png" for name in names]
    for picture, figure in zip(pictures, report.figures, strict=True):
        files.write_bytes(picture, figure.png)
    files.write_text(path, render(report))
    return [path, *pictures]


def render(report: Report) -> str:
    """The page as HTML: styles and pictures inside, no scripts, nothing fetched."""
    template = resources.files("adm.studies").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    environment.filters["size"] = _shown_size
    return environment.from_string(template).render(report=report)


def text_table(table: Table) -> str:
    """The table as aligned plain text, for a log or a pipe."""
    grid = [[table.corner, *(column.title for column in table.columns)]]
    grid += [[row.name, *cells] for row, cells in table.shown()]
    widths = [max(len(line[k]) for line in grid) for k in range(len(grid[0]))]
    lines = []
    for line in grid:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join([line[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(report: Report) -> str:
    """The report as Markdown, its pictures by their places beside it."""
    parts = [f"# {report.title}", *report.summary]
    parts += [f"![{figure.alt}](pictures/{figure.name}.png)\n\n{figure.caption}" for figure in report.figures]
    for table in (report.table, *report.more):
        parts += [f"## {table.title}", *([table.caption] if table.caption else []), markdown_table(table)]
    pairs = [*report.guide, *((c.title, c.meaning) for c in report.table.columns if c.meaning)]
    parts += ["## How to read this", "\n".join(f"* **{word}**: {text}" for word, text in pairs)] if pairs else []
    parts += ["## Conditions", "\n".join(f"* {name}: {value}" for name, value in report.conditions.items())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def markdown_table(table: Table) -> str:
    grid = [[table.corner, *(column.title for column in table.columns)], ["---"] * (1 + len(table.columns))]
    grid += [[row.name, *cells] for row, cells in table.shown()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in grid)


def _shown_size(png: bytes) -> tuple[int, int]:
    """Width and height at which a PNG is shown: half of the stored ones, read from its header."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise UsageError("a figure is not a PNG: give the bytes of one")
    return int.from_bytes(png[16:20], "big") // 2, int.from_bytes(png[20:24], "big") // 2
