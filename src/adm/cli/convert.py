"""adm convert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Convert:
    """Turn a released .pt checkpoint into a directory that adm loads, or with --to openai a model into a .pt.

    A file that is a preset needs no flags; of any other say how it was made, by --flags, --like or both.
    """

    source: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="SRC", help="A .pt or .safetensors file, the original trainer's directory, or a model."),
    ]
    destination: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="DST", help="The new directory; the new .pt with --to.")
    ]
    flags: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FLAGS",
            help="The released flags, verbatim in quotes; or a JSON object of them, or its file.",
            help_behavior_hint="(default: those of the preset that it is)",
        ),
    ] = None
    like: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="PRESET",
            help="The preset whose flags the file has, but for --flags.",
            help_behavior_hint="(default: the one that it is)",
        ),
    ] = None
    to: Annotated[
        Literal["adm", "openai"],
        tyro.conf.arg(help="What to write; openai: a .pt that the original code loads strictly."),
    ] = "adm"
    weights: Annotated[
        Literal["ema", "model"], tyro.conf.arg(help="With --to: the averaged weights, or the last ones.")
    ] = "ema"

    def run(self) -> None:
        from adm.checkpoints.convert import convert, export, parts
        from adm.runtime.text import shown_path

        if self.to == "openai":
            file, words = export(self.source, self.destination, self.flags, self.like, self.weights)
            print(shown_path(file))
            print(f"the original code loads it with {'the keywords' if words.startswith('{') else 'the flags'}")
            print(words)
            return
        directory = convert(self.source, self.destination, self.flags, self.like, weights=self.weights)
        print(shown_path(directory))
        if along := parts(directory):
            print(along)


COMMANDS = {"convert": Convert}
