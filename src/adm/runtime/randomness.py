"""Every random number as a function of (seed, stream, index, step): nothing is consumed, nothing is remembered.

The words come from Philox4x64-10 (Salmon et al. 2011), a counter-based generator: the key is (seed, stream), the
counter starts at (0, step, index). Asking again gives the same number, whatever was asked before, by whichever
process. Normals are the inverse CDF of 52-bit uniforms in float64, so they do not depend on how numpy or torch
turn words into distributions. The global generators of torch, numpy and random are never touched.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["fork", "integers", "normal", "normal_rows", "permutation", "uniform", "uniform_rows"]

MAX_SEED = 2**64 - 1


def normal(
    shape: Sequence[int], *, seed: int, stream: str, index: int = 0, step: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals of the given shape, on the CPU."""
    return torch.special.ndtri(uniform(shape, seed=seed, stream=stream, index=index, step=step)).to(dtype)


def uniform(shape: Sequence[int], *, seed: int, stream: str, index: int = 0, step: int = 0) -> Tensor:
    """Uniforms in the open interval (0, 1), float64, on the CPU."""
    return _open_unit(_words(math.prod(shape), seed, stream, index, step)).reshape(tuple(shape))


def normal_rows(shape: Sequence[int], *, seed: int, stream: str, indices: Sequence[int], step: int = 0) -> Tensor:
    """(len(indices), *shape) float32: row k is `normal(shape, index=indices[k])`, made for all rows at once."""
    return torch.special.ndtri(uniform_rows(shape, seed=seed, stream=stream, indices=indices, step=step)).float()


def uniform_rows(shape: Sequence[int], *, seed: int, stream: str, indices: Sequence[int], step: int = 0) -> Tensor:
    """(len(indices), *shape) float64: row k is `uniform(shape, index=indices[k])`."""
    words = np.empty((len(indices), math.prod(shape)), np.uint64)
    for row, index in zip(words, indices, strict=True):
        row[:] = _words(row.size, seed, stream, index, step)
    return _open_unit(words).reshape(len(indices), *shape)


def integers(shape: Sequence[int], high: int, *, seed: int, stream: str, index: int = 0, step: int = 0) -> Tensor:
    """Integers in [0, high), int64, on the CPU. The bias of the float route is below high / 2**52."""
    return (uniform(shape, seed=seed, stream=stream, index=index, step=step) * high).long()


def permutation(n: int, *, seed: int, stream: str, index: int = 0, step: int = 0) -> Tensor:
    """A permutation of range(n), int64: the order of n random words, ties (improbable) by position."""
    return torch.from_numpy(np.argsort(_words(n, seed, stream, index, step), kind="stable"))


@contextmanager
def fork(*, seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the block torch's generators are a function of (seed, stream, step); afterwards they are as before.

    For what can only draw from torch's own generators: dropout and the initialisation of layers.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    number = int.from_bytes(digest[:8], "little") >> 1
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: that reseeds every device, also those which fork_rng does not restore.
        torch.default_generator.manual_seed(number)
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(number)
        yield


def _open_unit(words: np.ndarray) -> Tensor:
    # The upper 52 bits at the centre of their cell, exact in float64: never 0 or 1, so the inverse CDF stays finite.
    return torch.from_numpy(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def _words(n: int, seed: int, stream: str, index: int, step: int) -> np.ndarray:
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed} is outside 0..2**64-1: choose a number in that range")
    key = seed | (_stream_id(stream) << 64)
    counter = (step << 64) | (index << 128)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


@functools.cache
def _stream_id(stream: str) -> int:
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
