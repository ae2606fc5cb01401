"""Flags that several commands share."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Mapping
from typing import Annotated

import tyro

from adm.cli._components import DRAWING

__all__ = [
    *("ChainSteps", "Device", "ImagesOut", "SamplerSpec", "Settings"),
    *("components_list", "components_table", "settings_table"),
]

Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="NAME=VALUE", help="Any other setting by its dotted name; can be repeated."),
]

Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]

ImagesOut = Annotated[str, tyro.conf.arg(metavar="DIR", help="A directory for PNGs, or a file.npz in OpenAI's layout.")]

ChainSteps = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="N",
        help="Links of the chain; or a grid: karras:10, log-snr:10, even:10, ddim25, 10,10,15, a fitted.json.",
        help_behavior_hint="(default: as released, else 250 of ddpm, 50 of ddim and 25 of others)",
    ),
]

SamplerSpec = Annotated[
    str,
    tyro.conf.arg(
        metavar="SPEC",
        help="A name, with options as name:option=value,option=value, such as ddim:eta=0.3; listed below.",
    ),
]


def settings_table(values: Mapping[str, str], meanings: Mapping[str, str], example: str = "optimizer.lr=1e-4") -> str:
    """What follows --help of a command with --set: each dotted name, its default and its meaning."""
    width = shutil.get_terminal_size((100, 24)).columns
    lines = [f"settings, as in --set {example} (name=default: meaning):", ""]
    for name, value in values.items():
        entry = f"{name}={value}: {meanings.get(name, '').replace('None', 'none')}"
        lines += textwrap.wrap(entry, max(40, width - 2), initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def components_table() -> str:
    """What follows --help of a command that samples: each sampler and guidance, and the claim of its docstring."""
    lines: list[str] = []
    for flag, room in DRAWING.items():
        lines += ["", f"{flag}, as in {flag} NAME:option=value,option=value:", "", *components_list(room)]
    return "\n".join([*lines, "", "What the options of one mean: adm sample --sampler NAME --guidance NAME --help."])


def components_list(room: str) -> list[str]:
    """Lines with each component of the room: its name, the claim of its docstring, and its options with defaults."""
    from adm.runtime import lookup

    columns = max(60, shutil.get_terminal_size((100, 24)).columns - 2)
    names = lookup.available(room)
    width = max(map(len, names))
    lines: list[str] = []
    for name in names:
        component = lookup.find(room, name)
        claim = " ".join((component.__doc__ or "").partition("\n\n")[0].split())
        indent = " " * (width + 4)
        lines += textwrap.wrap(claim, columns, initial_indent=f"  {name:<{width}}  ", subsequent_indent=indent)
        options = _options(lookup.arguments(component))
        lines += textwrap.wrap(options, columns, initial_indent=f"{indent}(", subsequent_indent=indent)
    return lines


def _options(arguments: Mapping[str, inspect.Parameter]) -> str:
    """Each option with its default, and those without that must be given."""
    from adm.runtime.options import written

    shown = [written(name, argument) for name, argument in arguments.items()]
    return f"{', '.join(shown)})" if shown else ""
