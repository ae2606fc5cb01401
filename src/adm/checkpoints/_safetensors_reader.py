"""Reading a .safetensors file of anybody, tensor by tensor: the header checked in full before memory is taken.

Source: the format description in the README of github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints._foreign_file import AGAIN, ForeignFile, RefusedError
from adm.checkpoints._safetensors import DTYPES
from adm.checkpoints._torch_objects import MAX_DIMS, MAX_SIZE, MAX_TENSORS, bytes_of
from adm.runtime.text import num_bytes, one_line

__all__ = ["looks_like_safetensors", "read_safetensors"]

MAX_HEADER = 8 << 20
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def looks_like_safetensors(head: bytes) -> bool:
    """By the first bytes: a length below 4 GiB and the brace of a JSON object."""
    return len(head) > 8 and head[4:9] == b"\0\0\0\0{"


def read_safetensors(file: ForeignFile) -> dict[str, Tensor]:
    """Name -> tensor, in the order of the header, on the CPU. Raises ``RefusedError``.

    The tensors must tile the data: no overlap, no hole, nothing behind. The format has no checksum: a changed bit
    among the numbers cannot be seen here, only against a recorded sha256.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise RefusedError(
            f"is cut short: its header says {num_bytes(length)}, the file has {num_bytes(file.size)}; {AGAIN}"
        )
    if length > MAX_HEADER:
        raise RefusedError(f"has a header of {num_bytes(length)}, no model needs that; check where it is from")
    entries = _header(file.read(8, length))
    if len(entries) > MAX_TENSORS:
        raise RefusedError(f"holds more than {MAX_TENSORS:,} tensors, as no model does; check where it is from")
    places = {name: _place(name, entry) for name, entry in entries.items()}
    _check_tiling(places, file.size - 8 - length)
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape, start, _) in places.items():
        flat = torch.empty(math.prod(shape), dtype=dtype)
        file.read_into(8 + length + start, bytes_of(flat))
        tensors[name] = flat.reshape(shape)
    return tensors


Place = tuple[torch.dtype, list[int], int, int]


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"has a damaged header ({one_line(error, 60)}); {AGAIN}") from error
    if not isinstance(header, dict):
        raise RefusedError(f"has a header that is no table; {AGAIN}")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise RefusedError(f"has notes in its header that are no texts; {AGAIN}")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{one_line(twice, 40)!r} is there twice")
    return table


def _place(name: str, entry: Any) -> Place:
    """Dtype, shape, start and end of a tensor's bytes."""
    shown = one_line(name, 60)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise RefusedError(f"describes {shown} wrongly; {AGAIN}")
    dtype = TORCH_DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        known = ", ".join(TORCH_DTYPES)
        raise RefusedError(f"has {shown} in {one_line(entry['dtype'], 20)}; write it as one of {known}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMS:
        raise RefusedError(f"describes {shown} wrongly; {AGAIN}")
    large = math.prod(max(n, 1) for n in shape) >= MAX_SIZE
    if large or math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise RefusedError(f"has {offsets[1] - offsets[0]:,} bytes for {shown} of shape {one_line(shape, 60)}; {AGAIN}")
    return dtype, shape, offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < MAX_SIZE for value in values)


def _check_tiling(places: dict[str, Place], size: int) -> None:
    at = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != at:
            what = "overlaps another tensor" if start < at else "has a hole before it"
            raise RefusedError(f"{one_line(name, 60)} {what}; {AGAIN}")
        at = end
    if at != size:
        what = f"is cut short by {num_bytes(at - size)}" if at > size else f"has {num_bytes(size - at)} behind its data"
        raise RefusedError(f"{what}; {AGAIN}")
