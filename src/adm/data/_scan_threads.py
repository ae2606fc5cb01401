"""Many files looked at by threads, in their order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from adm.data._image_file import THREADS

__all__ = ["by_threads"]

T = TypeVar("T")


def by_threads(
    look: Callable[[str], T], names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, T]]:
    """(name, look(name)) of each file, in order; a part of them is looked at before the first is given.

    progress: called with (files looked at, in all) after each part. Raises what `look` raises.
    """
    slice_length = 64 * THREADS  # so that what was read of many files is not all kept at once
    # What Pillow remarks on odd files is either in the verdict or of no account.
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS, "adm-look") as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(names), slice_length):
            part = names[start : start + slice_length]
            yield from zip(part, pool.map(look, part), strict=True)
            if progress is not None:
                progress(start + len(part), len(names))
