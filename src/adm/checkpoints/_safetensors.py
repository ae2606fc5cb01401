"""Safetensors, tensor by tensor: the library builds the whole file in memory and refuses shared storage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

# In the order in which their data stands in a file, which keeps all of it aligned.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}


def write_tensors(stream: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """The file of these tensors: header length, header, data. The bytes depend on names and values only."""
    stream.write(_header(tensors))
    for name in _order(tensors):
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        stream.write(flat.view(torch.uint8).numpy().data)


def serialized_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that ``write_tensors`` writes."""
    return len(_header(tensors)) + sum(map(_num_bytes, tensors.values()))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        start, end = end, end + _num_bytes(tensor)
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or name == "__metadata__":
            raise ValueError(f"{name}: a {tensor.layout} tensor of {tensor.dtype} has no place in a checkpoint")
    return sorted(tensors, key=lambda name: (RANK[tensors[name].dtype], name))


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
