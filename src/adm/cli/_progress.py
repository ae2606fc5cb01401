"""A progress line with an ETA on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Bar", "bar", "clock", "say"]

LINE_EVERY = 10.0
WORTH_A_LINE = 2.0
"""Work that ended sooner (seconds) leaves no line in a log."""


class Bar:
    """Progress of one piece of work; `update` is cheap. quiet: nothing is shown."""

    def __init__(self, title: str, total: int, progress: Progress | None, quiet: bool = False) -> None:
        self.title, self.total, self.progress, self.quiet = title, total, progress, quiet
        self.task = None if progress is None else progress.add_task(title, total=total)
        self.started = self.last = time.monotonic()
        self.first: int | None = None
        self.other: Bar | None = None

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """done of total; note: what is worth seeing, such as the loss. total: when it was not known before."""
        if self.quiet:
            return
        self.total = self.total if total is None else total
        if self.progress is not None and self.task is not None:
            self.progress.update(
                self.task, completed=done, total=self.total, description=f"{self.title} {note}".strip()
            )
            return
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.last < LINE_EVERY and (done < self.total or now - self.started < WORTH_A_LINE):
            return
        self.last = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        eta = f", {clock((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        elapsed = clock(now - self.started)
        say(f"{self.title} {done}/{self.total} {note}".rstrip() + f" ({elapsed}{eta})")

    def aside(self, title: str, done: int, total: int) -> None:
        """Progress of other work in between, which ends when all of it is done."""
        if self.other is None:
            self.other = Bar(title, total, self.progress, self.quiet)
        self.other.update(done)
        if done >= total:
            if self.progress is not None and self.other.task is not None:
                self.progress.remove_task(self.other.task)
            self.other = None


@contextmanager
def bar(title: str, total: int, shown: bool = True) -> Iterator[Bar]:
    """A bar for the block; shown: False for processes other than the first."""
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield Bar(title, total, None, quiet=not shown)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(title, total, progress)


def say(line: str) -> None:
    """A line for people, on stderr; results go to stdout."""
    print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, from an hour on with hours before them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextmanager
def stages() -> Iterator[Callable[[str, int, int, str], None]]:
    """A function (what, done, total, note) that shows one bar after another, a new one for each `what`."""
    with ExitStack() as shown:
        current: list[Bar] = []

        def update(what: str, done: int, total: int, note: str) -> None:
            if not current or current[0].title != what:
                shown.close()
                current[:] = [shown.enter_context(bar(what, total))]
            current[0].update(done, note)

        yield update
