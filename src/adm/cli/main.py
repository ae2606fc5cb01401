"""The command `adm`: finds the file of a command, reads its flags, runs it, and says in one line what went wrong.

A command is a file of this room without a leading underscore: it maps command words to dataclasses whose fields are
the flags and whose `run()` does the work. Files import what is heavy inside `run`, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

import adm.cli
from adm.runtime.errors import AdmError, ResourceError, StoppedError, UsageError
from adm.runtime.text import nearest, one_line

__all__ = ["commands", "main"]

USAGE = 2
UNEXPECTED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    warnings.showwarning = _show_warning
    try:
        return _dispatch(words)
    except _HelpShown:
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _explain(error)
        print(f"adm: {line}", file=sys.stderr)
        return code


def commands() -> dict[str, type]:
    """Every command by its words, such as "train diffusion"."""
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(adm.cli.__path__):
        if not file.name.startswith("_") and file.name != "main":
            found |= importlib.import_module(f"adm.cli.{file.name}").COMMANDS
    return dict(sorted(found.items()))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else USAGE
    if words[0] == "--version":
        print(f"adm {adm.__version__}")
        return 0
    known = commands()
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in known:
            return int(_parse(known[name], name, words[length:]).run() or 0)
    group = [name for name in known if name.split()[0] == words[0]]
    if group:
        raise UsageError(f"{words[0]} needs to know what: {', '.join(group)}. Try adm {group[0]} --help.")
    raise UsageError(
        f"there is no command {one_line(words[0], 40)!r}{nearest(words[0], known)} Commands: {', '.join(known)}."
    )


def _parse(command: type, name: str, words: list[str]) -> Any:
    import tyro

    problem = io.StringIO()  # tyro draws a box; what it says is wanted as one line
    try:
        with redirect_stderr(problem):
            return tyro.cli(command, prog=f"adm {name}", args=words)
    except SystemExit as end:
        if end.code in (0, None):
            raise _HelpShown from None
        raise UsageError(f"{name}: {_from_box(problem.getvalue())} Try adm {name} --help.") from None


class _HelpShown(Exception):
    """Nothing is left to do."""


def _from_box(text: str) -> str:
    """The first paragraph of tyro's box, without its frame."""
    lines: list[str] = []
    for line in text.splitlines():
        content = line.strip().strip("│╭╮╰╯").strip()
        if re.fullmatch(r"─+", content) and lines:
            break
        if content and "─" not in content:
            lines.append(content)
    return one_line(" ".join(lines), 200).rstrip(".") + "."


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and line of whatever ended a command."""
    if isinstance(error, AdmError):
        return error.exit_code, one_line(error, 600)
    if isinstance(error, KeyboardInterrupt):
        return StoppedError.exit_code, "interrupted; run the same command to continue."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError.exit_code, f"out of memory: {one_line(error, 120)}. Use a smaller batch."
    if isinstance(error, ValueError):
        return USAGE, one_line(error, 600)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}:{where.lineno}"
    return UNEXPECTED, (
        f"unexpected {type(error).__name__} in {place}: {one_line(error, 200)}. "
        "This is a fault of adm: run again with --debug and report what it prints."
    )


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"adm: note: {one_line(message, 400)}", file=sys.stderr)


def _overview() -> str:
    known = commands()
    width = max(map(len, known))
    lines = [f"  adm {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in known.items()]
    return "\n".join(
        [
            "adm: diffusion models with classifier guidance (ADM). Each command explains its flags with --help.",
            "",
            *lines,
            "",
            "--debug shows where an error came from, --version the version.",
        ]
    )
