"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import tyro

__all__ = ["Device", "Settings"]

Settings = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(metavar="NAME=VALUE", help="Any other setting by its dotted name; can be repeated."),
]

Device = Annotated[str, tyro.conf.arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
