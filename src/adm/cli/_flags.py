"""Flags that several commands share."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Mapping
from typing import Annotated

import tyro

__all__ = ["ChainSteps", "Device", "ImagesOut", "SamplerSpec", "Settings", "components_table", "settings_table"]

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

SamplerSpec = Annotated[str, tyro.conf.arg(metavar="SPEC", help="A file of adm/sampling, such as ddim:eta=0.3.")]


def settings_table(values: Mapping[str, str], meanings: Mapping[str, str]) -> str:
    """What follows --help of a command with --set: each dotted name, its default and its meaning."""
    width = shutil.get_terminal_size((100, 24)).columns
    lines = ["settings, as in --set optimizer.lr=1e-4 (name=default: meaning):", ""]
    for name, value in values.items():
        entry = f"{name}={value}: {meanings.get(name, '').replace('None', 'none')}"
        lines += textwrap.wrap(entry, max(40, width - 2), initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def components_table() -> str:
    """What follows --help of a command that samples: each sampler and guidance, and the claim of its docstring."""
    from adm.runtime import lookup

    columns = max(60, shutil.get_terminal_size((100, 24)).columns - 2)
    lines: list[str] = []
    for flag, room in (("sampler", "sampling"), ("guidance", "guidance")):
        lines += ["", f"--{flag}, as in --{flag} NAME:option=value,option=value:", ""]
        names = lookup.available(room)
        width = max(map(len, names))
        for name in names:
            component = lookup.find(room, name)
            claim = " ".join((component.__doc__ or "").partition("\n\n")[0].split())
            indent = " " * (width + 4)
            lines += textwrap.wrap(claim, columns, initial_indent=f"  {name:<{width}}  ", subsequent_indent=indent)
            options = _options(lookup.arguments(component))
            lines += textwrap.wrap(options, columns, initial_indent=f"{indent}(", subsequent_indent=indent)
    return "\n".join(lines)


def _options(arguments: Mapping[str, inspect.Parameter]) -> str:
    """Each option with its default, and those without that must be given."""
    from adm.runtime._spelling import spelled

    shown = [
        name if argument.default is argument.empty else f"{name}={spelled(argument.default)}"
        for name, argument in arguments.items()
    ]
    return f"{', '.join(shown)})" if shown else ""
