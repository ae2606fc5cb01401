"""How paths, values and sizes are worded in a message of one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["nearest", "num_bytes", "one_line", "shown_path", "split_list"]

PAIRS = {"(": ")", "[": "]", "{": "}"}


def one_line(value: object, limit: int = 80) -> str:
    """The value on one line: control characters escaped, the middle of a long text left out."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as the user would type it: relative to the working directory where it lies below it."""
    try:
        below = Path(path).absolute().relative_to(Path.cwd())
    except (ValueError, OSError):
        return one_line(path, 110)
    return one_line(below, 110)


def num_bytes(count: int) -> str:
    """A size in decimal units of about three digits: "37 MB", "1.2 GB", "512 bytes"."""
    if count < 1000:
        return f"{count} bytes"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def nearest(name: str, names: Iterable[str]) -> str:
    """The words "; did you mean 'x'?" for the most similar of the names, or "."."""
    matches = difflib.get_close_matches(name[:200], list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else "."


def split_list(text: str) -> list[str]:
    """The parts of "a,(b,c),d" between commas outside brackets, stripped; nothing gives no parts.

    Raises ``ValueError`` for brackets that do not match.
    """
    parts: list[str] = []
    open_brackets: list[str] = []
    start = 0
    for i, c in enumerate(text):
        if c in PAIRS:
            open_brackets.append(PAIRS[c])
        elif c in PAIRS.values() and (not open_brackets or open_brackets.pop() != c):
            raise ValueError(f"{one_line(text, 60)!r} has a {c!r} without its opening bracket")
        elif c == "," and not open_brackets:
            parts.append(text[start:i].strip())
            start = i + 1
    if open_brackets:
        raise ValueError(f"{one_line(text, 60)!r} lacks a {open_brackets[-1]!r}")
    last = text[start:].strip()
    return [*parts, last] if parts or last else []
