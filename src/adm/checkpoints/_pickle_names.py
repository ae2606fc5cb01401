"""What a pickle asks for, read off without running it: for messages alone, nothing is decided by it."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator

__all__ = ["is_whole", "names_in"]

SCANNED = 20_000


def names_in(data: bytes) -> Iterator[str]:
    """The names that a pickle asks for, as far as they can be seen without running it. For messages only."""
    texts: list[str] = []
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(data)):
            if number > SCANNED:
                return
            if instruction.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif instruction.name == "STACK_GLOBAL" and len(texts) >= 2:
                yield ".".join(texts[-2:])
            elif "UNICODE" in instruction.name:
                texts = [*texts[-1:], str(argument)]
    except Exception:  # whatever a damaged pickle makes of the library's own disassembler
        return


def is_whole(data: bytes) -> bool:
    """Whether the data are one pickle, whatever it asks for, as far as ``names_in`` looks."""
    try:
        for number, (instruction, _, _) in enumerate(pickletools.genops(data)):
            if instruction.name == "STOP":
                return number > 0
            if number > SCANNED:
                return True
    except Exception:  # as above
        return False
    return False
