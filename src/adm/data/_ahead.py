"""Batches prepared ahead by threads, and a name for the image at which they hang."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import TypeVar

from adm.data._dataset import Dataset
from adm.runtime.errors import AdmError, DataError
from adm.runtime.text import one_line

__all__ = ["PATIENCE", "Reads", "ahead"]

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
    """Until it is done. The time is counted in looks, as a process that was stopped for long has not waited."""
    oldest, num_looks = reads.oldest(), 0
    while not wait([future], patience / LOOKS).done:
        before, oldest = oldest, reads.oldest()
        num_looks = num_looks + 1 if oldest is not None and oldest == before else 0
        if num_looks >= LOOKS and oldest is not None:
            raise _Hangs(
                f"{reads.named(oldest[1])} has not been read for {patience:g} s: is its disk, or the network, still "
                "there? Start again when it is."
            )
