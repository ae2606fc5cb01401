"""Flags that several commands share."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Annotated

import tyro

__all__ = ["ChainSteps", "Device", "ImagesOut", "SamplerSpec", "Settings", "settings_table"]

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
        help="Links of the chain; or a grid: karras:10, log-snr:10, even:10, ddim25, 10,10,15.",
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
