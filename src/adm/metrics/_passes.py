"""Passes over images: features of all extractors at once, block by block, kept in the cache while the work goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.data import ImageSource
from adm.metrics._feature_cache import FeatureCache
from adm.metrics._rows import FeatureRows
from adm.runtime.distributed import World
from adm.runtime.errors import ResourceError
from adm.runtime.version import version

__all__ = ["Passes", "Progress"]

BLOCK = 1024
"""About so many images are between two savings of their features."""

Progress = Callable[[str, int, int, str], None]
"""(what, done, total, note)"""


class Passes:
    """How images become rows: so many at once, by these processes, with this cache."""

    def __init__(self, batch_size: int, world: World, cache: FeatureCache | None, on_progress: Progress) -> None:
        self.batch_size, self.world, self.cache, self.on_progress = batch_size, world, cache, on_progress
        self.notes: list[str] = []

    def add(self, source: ImageSource, rows: Sequence[FeatureRows], num: int, what: str) -> None:
        """Add the first `num` images to the rows of all extractors, on process 0; each process takes its share.

        Raises DataError when the processes have not the same images and extractors.
        """
        self._agree(source, rows, num, what)
        share = self.world.share(num, self.batch_size)
        parts = [FeatureRows(some.extractor, some.taps) for some in rows]
        for block in self._blocks(share):
            self.world.phase(f"{what} {block.start} to {block.stop - 1}")
            keys = [self._key(some, source, block) for some in rows]
            kept = [self._kept(key) for key in keys]
            if any(found is None for found in kept):
                kept = list(self._extract(source, rows, block, share, what))
            else:
                self.on_progress(what, block.stop - share.start, len(share), "images")
            for part, key, found in zip(parts, keys, kept, strict=True):
                assert found is not None
                part.add(found)
                self._keep(key, found)
        counts = [len(each) for each in self.world.shares(num, self.batch_size)]
        for some, part in zip(rows, parts, strict=True):
            if len(share) == 0:  # how wide the rows of the others are
                part.add(part.extract(np.zeros((0, *source.shape), np.uint8)))
            gathered = {tap: self.world.gather(part.values(tap), counts) for tap in part.taps}
            if self.world.rank == 0:
                some.add({tap: values for tap, values in gathered.items() if values is not None})

    def forget(self, source: ImageSource, rows: Sequence[FeatureRows], num: int) -> None:
        """Remove what all processes kept of these images; to be called by process 0 when nobody needs it again."""
        if self.cache is not None and self.world.rank == 0:
            for share in self.world.shares(num, self.batch_size):
                for block in self._blocks(share):
                    for some in rows:
                        self.cache.forget(self._key(some, source, block))

    def _agree(self, source: ImageSource, rows: Sequence[FeatureRows], num: int, what: str) -> None:
        if self.world.size == 1:
            return
        extractors = [[some.extractor.name, sorted(some.taps), dict(some.extractor.conditions)] for some in rows]
        lines = [what, f"{num:,} images", f"sha256 {source.sha256}", f"{self.batch_size} at once"]
        self.world.agree(what, "\n".join([*lines, *(json.dumps(each, sort_keys=True) for each in extractors)]))

    def _blocks(self, share: range) -> Iterator[range]:
        size = -(-BLOCK // self.batch_size) * self.batch_size
        for start in range(share.start, share.stop, size):
            yield range(start, min(start + size, share.stop))

    def _extract(
        self, source: ImageSource, rows: Sequence[FeatureRows], block: range, share: range, what: str
    ) -> Iterator[dict[str, Tensor]]:
        parts = [FeatureRows(some.extractor, some.taps) for some in rows]
        for images in source.batches(self.batch_size, block.start, block.stop):
            for part in parts:
                part.add(part.extract(images))
            self.on_progress(what, block.start - share.start + parts[0].num, len(share), "images")
        for part in parts:
            yield {tap: part.values(tap) for tap in part.taps}

    def _key(self, rows: FeatureRows, source: ImageSource, block: range) -> dict[str, Any] | None:
        """Everything that a block of features depends on, as far as the same bits are wanted again.

        None: not worth keeping, where there are no weights and so no work behind the features.
        """
        if "weights_sha256" not in rows.extractor.conditions:
            return None
        return {
            "extractor": rows.extractor.name,
            "conditions": dict(rows.extractor.conditions),
            "taps": sorted(rows.taps),
            "source": source.sha256,
            "images": [block.start, block.stop, self.batch_size],
            "versions": [version(), torch.__version__],
        }

    def _kept(self, key: dict[str, Any] | None) -> dict[str, Tensor] | None:
        return None if self.cache is None or key is None else self.cache.get(key)

    def _keep(self, key: dict[str, Any] | None, found: dict[str, Tensor]) -> None:
        if self.cache is None or key is None:
            return
        try:
            self.cache.put(key, found)
        except ResourceError as error:  # the numbers do not need the cache
            self.notes.append(f"features are not kept, and an interrupted call will start over: {error}")
            self.cache = None
