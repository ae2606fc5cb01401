"""adm convert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

COMMANDS: dict[str, type] = {}


@dataclass(frozen=True)
class Convert:
    """Turn a released .pt checkpoint into a directory that adm loads."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC", help="The .pt file.")]
    destination: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST", help="The new directory.")]
    flags: Annotated[
        str, tyro.conf.arg(metavar="FLAGS", help="The released flags, verbatim in quotes, or a JSON object of them.")
    ]

    def run(self) -> None:
        import json

        from adm.checkpoints.convert import convert
        from adm.runtime.errors import UsageError
        from adm.runtime.text import one_line, shown_path

        flags: object = self.flags
        if self.flags.lstrip().startswith("{"):
            try:
                flags = json.loads(self.flags)
            except ValueError as error:
                raise UsageError(f"--flags is no JSON object: {one_line(error, 80)}. Correct it.") from error
        print(shown_path(convert(self.source, self.destination, flags)))  # type: ignore[arg-type]


COMMANDS = {"convert": Convert}
