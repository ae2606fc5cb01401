"""What people watch may go away, fill up or never have been there: the work goes on without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

__all__ = ["lasting_streams"]


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the block stderr never raises: what cannot be written there is lost. A closed stdout takes all."""
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stdout or _opened(1)
    sys.stderr = cast(TextIO, _Lasting(sys.stderr or _opened(2)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        if sys.stderr is not None:
            _let_go(sys.stderr)


def _opened(fd: int) -> TextIO:
    return open(fd, "w", encoding="utf-8", closefd=False)


def _occupy_descriptors() -> None:
    """So that no file is opened as 0, 1 or 2, into which libraries write what they have to say."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _let_go(stream: TextIO) -> None:
    """What is left in its buffer is dropped, which the interpreter would report at its end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()


class _Lasting:
    """A text stream whose writes fail in silence: EPIPE after `| head`, EIO of a closed terminal, ENOSPC of a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
