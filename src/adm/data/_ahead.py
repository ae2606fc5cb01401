"""Batches prepared ahead by threads, and a name for the image at which reading hangs, whoever reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from threading import Event, Thread, get_ident
from typing import TypeVar

from adm.data._dataset import Dataset
from adm.runtime.errors import AdmError, DataError
from adm.runtime.text import one_line

__all__ = ["PATIENCE", "Reads", "ahead", "watched"]

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds that one image may take; a network file system that is coming back takes a minute or so."""

LOOKS = 20
"""How often within the patience the reads are looked at."""

GRACE = 10.0
"""Seconds that threads get at the end to finish what they have begun."""


class Reads:
    """What is being asked of a data set: each thread's image, and since when."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._now: dict[int, tuple[float, int]] = {}

    def __call__(self, read: Callable[[int], T], i: int) -> T:
        """read(i). Raises DataError naming the image for whatever a data set of somebody's own may raise."""
        thread = get_ident()
        self._now[thread] = time.monotonic(), i
        try:
            return read(i)
        except (AdmError, MemoryError):
            raise
        except Exception as error:
            why = one_line(f"{type(error).__name__}: {error}", 120)
            raise DataError(f"{self.named(i)} cannot be read ({why}): mend it, or the class that reads it") from error
        finally:
            del self._now[thread]

    def oldest(self) -> tuple[float, int] | None:
        """(time.monotonic() at its beginning, image) of the read that has been going on for longest."""
        return min(list(self._now.values()), default=None)

    def named(self, i: int) -> str:
        paths = getattr(self.dataset, "paths", None)
        shown = i if paths is None else repr(one_line(paths[i]))
        return f"image {shown} of {one_line(self.dataset.name)!r}"


def ahead(
    jobs: Iterator[Callable[[], T]], workers: int, reads: Reads, patience: float = PATIENCE
) -> Generator[T, None, None]:
    """What each job gives, in order; up to workers + 1 of them are begun before they are asked for.

    Raises what a job raises, and DataError when one read has not ended within `patience` seconds. The threads are
    daemons: one that hangs in the operating system would otherwise keep the process from ending.
    """
    queue: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
    threads = [Thread(target=_work, args=(queue,), name=f"adm-data-{k}", daemon=True) for k in range(workers)]
    pending: deque[Future[T]] = deque()

    def begin(job: Callable[[], T]) -> None:
        pending.append(Future())
        queue.put((pending[-1], job))

    for thread in threads:
        thread.start()
    grace = GRACE
    try:
        for job in islice(jobs, workers + 1):
            begin(job)
        while pending:
            _await(pending[0], reads, patience)
            ready = pending.popleft().result()
            for job in islice(jobs, 1):
                begin(job)
            yield ready
    except _Hangs as hangs:
        grace = 0.0
        raise DataError(str(hangs)) from None
    finally:
        for future in pending:
            future.cancel()
        for _ in threads:
            queue.put(None)
        end = time.monotonic() + grace
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


class _Hangs(Exception):
    """A read does not end."""


def _work(queue: SimpleQueue[tuple[Future[T], Callable[[], T]] | None]) -> None:
    while (work := queue.get()) is not None:
        future, job = work
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(job())
        except BaseException as error:  # of the one who asks for the result
            future.set_exception(error)
        del work, future, job  # no batch is kept while the next one is waited for


def _await(future: Future[T], reads: Reads, patience: float) -> None:
    """Until it is done."""
    looks = _Looks(reads, patience)
    while not wait([future], looks.interval).done:
        if looks.hanging():
            raise _Hangs(f"{looks.said()}: is its disk, or the network, still there? Start again when it is.")


@contextmanager
def watched(reads: Reads, patience: float, on_hang: Callable[[str], None]) -> Iterator[None]:
    """Within the block, on_hang is told once of each read that has not ended within `patience` seconds.

    For reads of the thread that waits for them, which nothing can end: a data set may be one that only the thread that
    opened it can read. on_hang is called in a thread of its own.
    """
    over = Event()
    thread = Thread(target=_watch, args=(_Looks(reads, patience), over, on_hang), name="adm-data-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(looks: _Looks, over: Event, on_hang: Callable[[str], None]) -> None:
    while not over.wait(looks.interval):
        if looks.hanging():
            on_hang(f"{looks.said()}, and is waited for: is its disk, or the network, still there?")


class _Looks:
    """At the longest read of all, every `interval` seconds: a process that was stopped for long has not waited."""

    def __init__(self, reads: Reads, patience: float) -> None:
        self.reads, self.patience, self.interval = reads, patience, patience / LOOKS
        self.oldest, self.num = reads.oldest(), 0

    def hanging(self) -> bool:
        """To be called once an interval: whether the read has now been the same for so many looks as make the patience;
        once for each read."""
        before, self.oldest = self.oldest, self.reads.oldest()
        self.num = self.num + 1 if self.oldest is not None and self.oldest == before else 0
        return self.num == LOOKS

    def said(self) -> str:
        assert self.oldest is not None
        return f"{self.reads.named(self.oldest[1])} has not been read for {self.patience:g} s"
