"""A command's words as its dataclass, and what is wrong with them in one line."""

from __future__ import annotations

import io
import re
import typing
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line

__all__ = ["HelpShown", "parse"]


class HelpShown(Exception):
    """Nothing is left to do."""


def parse(command: type, name: str, words: Sequence[str]) -> Any:
    """The command's dataclass filled from the words. Raises UsageError, or HelpShown after --help."""
    import tyro

    if {"-h", "--help"} & set(words) and (text := _help_of_components(words, command)):
        print(text)
        raise HelpShown
    problem = io.StringIO()  # tyro draws a box; what it says is wanted as one line
    try:
        with redirect_stderr(problem):
            return tyro.cli(command, prog=f"adm {name}", args=_joined(words))
    except SystemExit as end:
        if end.code in (0, None):
            if hasattr(command, "more_help"):
                print(command.more_help())
            raise HelpShown from None
    said = _wrong_flag(words, command) or _in_words(_from_box(problem.getvalue()), command)
    raise UsageError(f"{name}{said} Try adm {name} --help.")


def _help_of_components(words: Sequence[str], command: type) -> str:
    """--help beside the names of components is about these; empty where none is named."""
    from adm.cli._components import component_help

    named = command.components(words) if hasattr(command, "components") else []
    return "\n\n".join(component_help(room, name) for room, name in named)


def _joined(words: Sequence[str]) -> list[str]:
    """A value that looks like a flag, such as convert's `--flags '--image_size 64'`, put behind its flag with =."""
    joined: list[str] = []
    for word in words:
        before = joined[-1] if joined else ""
        is_text = " " in word.strip() or before == "--flags"
        if word.startswith("-") and is_text and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={word}"
        else:
            joined.append(word)
    return joined


def _from_box(text: str) -> str:
    """The first paragraph of tyro's box, without its frame, which on some terminals is drawn with -, | and +."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    paragraphs = [[""]]
    for line in text.splitlines():
        content = line.strip().strip("│╭╮╰╯|+").strip()
        if re.search(r"─|-{4}", content):
            paragraphs.append([])
        else:
            paragraphs[-1].append(content)
    found = [" ".join(lines).strip() for lines in paragraphs if any(lines)]
    return next(iter(found if "╭" in text else found[1:]), "cannot be understood")


def _in_words(problem: str, command: type) -> str:
    """What follows the command's name: tyro's problem in the words of this project, ending with a full stop."""
    if match := re.match(r"Missing from adm [^:]*: (.*)", problem):
        wanted = [part.split() for part in match[1].split("(required)") if part.strip()]
        names = [" ".join(part[: 2 if part[0].startswith("--") else 1]) for part in wanted]
        return f" needs {' and '.join(names)}."
    if match := re.match(r"Missing value for argument '(.*?)'", problem):
        return f": {match[1]} needs a value."
    if match := re.match(r"Error parsing (\S+): .*(?:from \[|base 10: )'(.*?)'(?:\]|$|\.)", problem):
        rule = "whole number" if "int" in problem.lower() else "value for it"
        return f": {match[1]} {one_line(match[2], 40)!r} is no {rule}."
    if match := re.match(r"Unrecognized options: (.*)", problem):
        return _unrecognized(match[1].split(", "), command)
    return f": {one_line(problem, 200).rstrip('.')}."


def _wrong_flag(words: Sequence[str], command: type) -> str | None:
    """The first flag that the command does not have: of several faults it explains the most."""
    flags, positions = _names(command)
    known = {"--help", *flags, *(f"--no-{flag.removeprefix('--')}" for flag in flags)}
    for word in _joined(words):
        written = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]", word) and written != "-h" and written.replace("_", "-") not in known:
            return _no_such_flag(written, flags, positions)
    return None


def _no_such_flag(written: str, flags: Sequence[str], positions: Sequence[str]) -> str:
    name = written.lstrip("-")
    if name.upper() in positions:
        return f": {name.upper()} is written without {written}."
    guess = nearest(name.replace("_", "-"), [flag.removeprefix("--") for flag in flags])
    guess = guess.replace("mean '", "mean '--")
    if guess == "." and "--set" in flags:
        setting = one_line(name.replace("-", "_"), 40)
        guess += f" Settings that have no flag of their own are written --set {setting}=VALUE."
    return f" has no option {one_line(written, 40)!r}{guess}"


def _names(command: type) -> tuple[list[str], list[str]]:
    """The command's flags, and what it takes by position, as they are written."""
    import tyro

    positional = typing.get_args(tyro.conf.Positional[str])[1]
    flags, positions = [], []
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
        if positional in marks:
            positions.append(next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), name.upper()))
        else:
            renamed = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            flags.append(f"--{renamed.replace('_', '-')}")
    return flags, positions


def _unrecognized(words: list[str], command: type) -> str:
    more = ""
    if "=" in words[0] and "--set" in _names(command)[0]:
        more = " Write --set before each setting."
    return f" takes no {one_line(words[0], 40)!r}.{more}"
