"""Batches as a function of (seed, position): what a run saw is one integer, and resuming needs nothing else.

Sample k, counted over the whole run, is image permutation(seed, epoch)[i] with epoch, i = divmod(k, N); its
flip and its crop are functions of (seed, k). Batch size, processes, threads and restarts do not enter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adm.data._ahead import PATIENCE, Reads, ahead, watched
from adm.data._dataset import Dataset
from adm.data._images import center_crop, image_size_pair, random_crop
from adm.data._pictures import to_model_range
from adm.runtime.errors import DataError, UsageError
from adm.runtime.randomness import permutation, uniform

__all__ = ["Batch", "Loader"]

DRAW_BLOCK = 1024  # samples whose draws are made at once; part of what a seed means
NUM_ORDERS_KEPT = 3
CACHE_BYTES = 512 * 2**20
"""Cropped images that are kept in memory, unless the caller says otherwise."""


@dataclass(frozen=True)
class Batch:
    """One step's samples, or one process' share of them."""

    images: Tensor  # float32 (N, C, H, W) in [-1, 1]
    label: Tensor  # int64 (N,), -1 without classes
    index: Tensor  # int64 (N,), which image of the data set
    position: int  # samples of the run before this step


class Loader:
    """Batches of a data set at one size; ``batch(position)`` is a pure function.

    image_size: (H, W), or one number for a square; images are scaled and cropped to it, small ones enlarged.
    batch_size: samples in a step over all processes; rank r of world takes the r-th contiguous share.
    flip: mirror each with probability 1/2 (None: as the data set says); random_crop: ADM's random crop instead of
    the central one. workers: threads that prepare batches ahead, 0 for none; the batches are the same.
    cache_bytes: centrally cropped images are kept in memory if all of them fit into this many bytes.
    patience: seconds that workers may take to read one image, or its label, before `batches` gives up with a DataError
    that names it; without workers it is named and waited for. Raises DataError or UsageError.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_size: int | tuple[int, int],
        batch_size: int,
        seed: int = 0,
        *,
        flip: bool | None = None,
        random_crop: bool = False,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        cache_bytes: int = CACHE_BYTES,
        patience: float = PATIENCE,
    ) -> None:
        _check_batch(batch_size, len(dataset), rank, world)
        self.dataset = dataset
        self.image_size = image_size_pair(image_size)
        self.batch_size = batch_size
        self.seed = seed
        self.flip = dataset.default_flip if flip is None else flip
        self.random_crop = random_crop
        self.workers = workers
        self.rank = rank
        self.world = world
        self.patience = patience
        self._reads = Reads(dataset)
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._lock = Lock()
        shape = (len(dataset), *self.image_size, dataset.channels)
        keep = not random_crop and int(np.prod(shape, dtype=object)) <= cache_bytes
        self._kept = np.empty(shape, np.uint8) if keep else None
        self._is_kept = np.zeros(len(dataset), bool)

    def batch(self, position: int) -> Batch:
        """This process' share of the samples position .. position + batch_size - 1."""
        if position < 0:
            raise UsageError(f"position {position}: samples are counted from 0")
        share = self.batch_size // self.world
        k = position + self.rank * share + np.arange(share)
        index = self._indices(k)
        images = self._images(k, index)
        if self.flip:
            mirrored = self._draws("data flip", k, 1)[:, 0] < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        label = np.array([self._reads(self.dataset.label, int(i)) for i in index], np.int64)
        self._check_labels(index, label)
        return Batch(to_model_range(images), torch.from_numpy(label), torch.from_numpy(index), position)

    def batches(self, start: int = 0, on_hang: Callable[[str], None] = lambda line: None) -> Iterator[Batch]:
        """batch(start), batch(start + batch_size), ... without end, prepared ahead if there are workers.

        on_hang: without workers, called from another thread with a line that names an image which takes too long.
        """
        positions = itertools.count(start, self.batch_size)
        if self.workers < 1:
            with watched(self._reads, self.patience, on_hang):
                yield from map(self.batch, positions)
            return
        yield from ahead(
            (partial(self.batch, position) for position in positions), self.workers, self._reads, self.patience
        )

    def _check_labels(self, index: NDArray[np.int64], label: NDArray[np.int64]) -> None:
        """Before a device sees them: there an index out of range ends the process."""
        num_classes = len(self.dataset.class_names)
        bad = (label < -1) | (label >= num_classes)
        if bad.any():
            k = int(np.argmax(bad))
            allowed = f"one of 0..{num_classes - 1}" if num_classes else "-1, as there are no classes"
            raise DataError(
                f"image {index[k]} of {self.dataset.name!r} has the label {label[k]}, not {allowed}: "
                "mend the data set's label()"
            )

    def _indices(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, places = np.divmod(k, len(self.dataset))
        index = np.empty_like(k)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            index[chosen] = self._order(int(epoch))[places[chosen]]
        return index

    def _order(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            if epoch not in self._orders:
                if len(self._orders) == NUM_ORDERS_KEPT:
                    del self._orders[next(iter(self._orders))]
                order = permutation(len(self.dataset), seed=self.seed, stream="data order", index=epoch)
                self._orders[epoch] = order.numpy()
            return self._orders[epoch]

    def _draws(self, stream: str, k: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """(len(k), count) uniforms, a function of (seed, k) for each k."""
        blocks, places = np.divmod(k, DRAW_BLOCK)
        draws = np.empty((len(k), count))
        for block in np.unique(blocks):
            chosen = blocks == block
            of_block = uniform((DRAW_BLOCK, count), seed=self.seed, stream=stream, index=int(block))
            draws[chosen] = of_block.numpy()[places[chosen]]
        return draws

    def _images(self, k: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (len(k), H, W, C), the caller's own."""
        if self._kept is not None:
            for i in np.unique(index[~self._is_kept[index]]):
                self._kept[i] = center_crop(self._decoded(int(i)), self.image_size)
                self._is_kept[i] = True
            return self._kept[index]
        decoded = (self._decoded(int(i)) for i in index)
        if not self.random_crop:
            return np.stack([center_crop(image, self.image_size) for image in decoded])
        draws = zip(decoded, self._draws("data crop", k, 3), strict=True)
        return np.stack([random_crop(image, self.image_size, u) for image, u in draws])

    def _decoded(self, i: int) -> NDArray[np.uint8]:
        image = self._reads(self.dataset.image, i)
        if image.ndim != 3 or image.shape[2] != self.dataset.channels:
            raise DataError(
                f"image {i} of {self.dataset.name!r} has shape {image.shape}, "
                f"not (H, W, {self.dataset.channels}): mend the data set's image()"
            )
        return image


def _check_batch(batch_size: int, num_images: int, rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} of {world} processes: ranks count from 0 to {world - 1}")
    if batch_size < 1:
        raise UsageError(f"batch {batch_size}: use 1 or more")
    if batch_size > num_images:
        remedy = f"use --batch {num_images} or less, or add images" if num_images else "add images"
        raise DataError(f"{num_images} images but batch {batch_size}: {remedy}")
    if batch_size % world:
        lower, upper = batch_size // world * world, -(-batch_size // world) * world
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise UsageError(f"batch {batch_size} does not split over {world} processes: use {nearest}")
