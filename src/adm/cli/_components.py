"""--help of one component: what it is, and what each of its options means."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

__all__ = ["DRAWING", "component_help", "named_by_flags"]

DRAWING: Mapping[str, str] = {"--sampler": "sampling", "--guidance": "guidance"}
"""Flags that name components, and the rooms of these."""


def named_by_flags(words: Sequence[str], rooms: Mapping[str, str]) -> list[tuple[str, str]]:
    """(room, name) of each component that the words name, as --sampler unipc or --sampler=unipc:order=3."""
    named = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        spec = value if equals else following
        if flag in rooms and spec and not spec.startswith("-"):
            named.append((rooms[flag], spec.partition(":")[0]))
    return named


def component_help(room: str, name: str) -> str:
    """The component's claim, and each option as name=default: meaning. Raises UsageError for what does not exist."""
    from adm.runtime import lookup
    from adm.runtime.options import option_groups

    component = lookup.find(room, name)
    columns = max(40, shutil.get_terminal_size((100, 24)).columns - 2)
    claim = " ".join((component.__doc__ or "").partition("\n\n")[0].split())
    lines = textwrap.wrap(f"{name}: {claim}", columns)
    groups = option_groups(component)
    if groups:
        lines += ["", f"options, as in {name}:option=value,option=value (name=default: meaning):", ""]
    for options, meaning in groups:
        entry = f"{', '.join(options)}: {meaning}" if meaning else ", ".join(options)
        lines += textwrap.wrap(entry, columns, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)
