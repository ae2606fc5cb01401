"""Noise as a function: the same call gives the same tensor, whatever was drawn before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from adm.runtime import randomness

__all__ = ["Noise", "RecordedNoise", "SeededNoise"]


class Noise(Protocol):
    """Where a sampler's normals come from."""

    def initial(self, shape: Sequence[int]) -> Tensor:
        """x_T."""
        ...

    def at(self, i: int, shape: Sequence[int], draw: int = 0) -> Tensor:
        """The noise of step i, counted from 0 in the order of the chain; `draw` tells several in one step apart."""
        ...


class SeededNoise:
    """Image k depends on seeds[k] alone: not on the batch, its order, the process or a restart.

    seeds: one for each image of the batch, 0 to 2**64 - 1. Normals are made on the CPU in float64.
    """

    def __init__(self, seeds: Iterable[int], dtype: torch.dtype = torch.float32) -> None:
        self.seeds = tuple(int(seed) for seed in seeds)
        self.dtype = dtype
        for seed in self.seeds:
            if not 0 <= seed <= randomness.MAX_SEED:
                raise ValueError(f"seed {seed} is outside 0..2**64-1: choose a number in that range")

    def initial(self, shape: Sequence[int]) -> Tensor:
        return self._stack(shape, "initial noise", step=0, draw=0)

    def at(self, i: int, shape: Sequence[int], draw: int = 0) -> Tensor:
        return self._stack(shape, "step noise", step=i, draw=draw)

    def _stack(self, shape: Sequence[int], stream: str, step: int, draw: int) -> Tensor:
        if len(self.seeds) != shape[0]:
            raise ValueError(f"{len(self.seeds)} seeds for {shape[0]} images: give one seed to each image")
        return torch.stack(
            [
                randomness.normal(shape[1:], seed=seed, stream=stream, index=draw, step=step, dtype=self.dtype)
                for seed in self.seeds
            ]
        )


class RecordedNoise:
    """Replays given tensors: the first is x_T, at(i) is the one after it by i."""

    def __init__(self, tensors: Sequence[Tensor] | Tensor) -> None:
        self.tensors = list(tensors)

    def initial(self, shape: Sequence[int]) -> Tensor:
        return self._get(0, shape)

    def at(self, i: int, shape: Sequence[int], draw: int = 0) -> Tensor:
        if draw != 0:
            raise ValueError("recorded noise holds one draw for each step: this sampler asks for more; use SeededNoise")
        return self._get(i + 1, shape)

    def _get(self, position: int, shape: Sequence[int]) -> Tensor:
        if position >= len(self.tensors):
            raise ValueError(
                f"recorded noise has {len(self.tensors)} tensors: this chain needs one more; record it too"
            )
        tensor = torch.as_tensor(self.tensors[position])
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"recorded noise {position} has shape {tuple(tensor.shape)}, the samples {tuple(shape)}")
        return tensor
