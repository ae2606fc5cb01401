"""The names that a file of ``torch.save`` may use, and tensors that stay inside their storages."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints._foreign_file import AGAIN, RefusedError
from adm.checkpoints._pickle_reader import Function, PickleReader, checked_key
from adm.runtime.text import num_bytes, one_line

__all__ = ["Storages", "explained", "torch_pickle"]

MAX_TENSORS = 50_000
MAX_DIMS = 64
MAX_SIZE = 1 << 62
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
SAVE = "save its state dict alone with torch.save(model.state_dict(), ...)"
# What the beginning of a foreign name says about its file.
ORIGINS = {
    "torch_utils.": "is a pickle of EDM or StyleGAN, which carries program text; write its state dict with that code",
    "dnnlib.": "is a pickle of EDM or StyleGAN, which carries program text; write its state dict with that code",
    "torch.nn.": f"holds a whole module instead of its weights; {SAVE}",
    "torch.storage._load_from_bytes": "was written by pickle.dump; write the same dict with torch.save",
    "torch.jit.": f"is a TorchScript program, not weights; {SAVE}",
    "__torch__.": f"is a TorchScript program, not weights; {SAVE}",
    "numpy.": "holds numpy values; save a dict of nothing but tensors with torch.save",
    "argparse.": f"holds settings beside the weights; {SAVE}",
    "omegaconf.": f"holds settings beside the weights; {SAVE}",
}


def explained(names: list[str]) -> str:
    """The refusal of a file that asks for these names."""
    named = " and ".join([", ".join(map(_shown, names[:-1])), _shown(names[-1])] if names[1:] else [_shown(names[0])])
    for name in names:
        for beginning, sentence in ORIGINS.items():
            if name.startswith(beginning):
                return f"asks to call {named}: {sentence}"
    return f"asks to call {named}; model weights never need that: delete it, or {SAVE} if you trust its author"


def _shown(name: str) -> str:
    return one_line(name, 60)


class Storages:
    """The storages that a pickle asks for: declared first, each checked against the file, and filled afterwards."""

    def __init__(self, available: int) -> None:
        self._left = available
        self._flat: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._flat.items()

    def __contains__(self, key: str) -> bool:
        return key in self._flat

    def __getitem__(self, key: str) -> Tensor:
        return self._flat[key]

    def declare(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """The flat tensor that the bytes are to be read into; memory is taken only for bytes that the file has."""
        if key not in self._flat:
            if (size := numel * dtype.itemsize) > self._left:
                raise RefusedError(
                    f"declares {num_bytes(size)} of tensor data, more than the file has left "
                    f"({num_bytes(self._left)}); {AGAIN}"
                )
            self._left -= size
            self._flat[key] = torch.empty(numel, dtype=dtype)
        flat = self._flat[key]
        if flat.dtype != dtype or flat.numel() != numel:
            raise RefusedError(f"declares storage {one_line(key, 30)} twice and differently; {AGAIN}")
        return flat


@dataclass(frozen=True, eq=False)
class Storage:
    """Part of a declared storage, in elements."""

    flat: Tensor
    start: int
    numel: int


def torch_pickle(data: bytes, storages: Storages) -> PickleReader:
    """A reader of the pickles in a file of torch, whose storages it declares."""
    return PickleReader(data, _names(), (Tensor, torch.Size, torch.dtype), _persistent(storages), explained)


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat tensor."""
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(bytearray())


def _names() -> Mapping[str, object]:
    tensors = TensorMaker()
    functions = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor": tensors.rebuild,
        "torch._utils._rebuild_tensor_v2": tensors.rebuild,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": _size,
    }
    dtypes = {str(dtype): dtype for dtype in STORAGES.values()}
    kinds = {f"torch.{name}": StorageType(dtype) for name, dtype in STORAGES.items()}
    return {name: Function(name, call) for name, call in functions.items()} | dtypes | kinds


@dataclass(frozen=True)
class StorageType:
    dtype: torch.dtype


def _persistent(storages: Storages) -> Any:
    def storage(identity: Any) -> Storage:
        """("storage", type, key, where it was, numel), and in old files (key, start, numel) of a part or None."""
        fields = [*identity, None] if type(identity) is tuple and len(identity) == 5 else identity
        if not isinstance(fields, (tuple, list)) or len(fields) != 6 or fields[0] != "storage":
            raise RefusedError(f"refers to something else than a storage of numbers; {AGAIN}")
        _, kind, key, _, numel, part = fields
        if not isinstance(kind, StorageType) or type(key) is not str or not _counts([numel]):
            raise RefusedError(f"describes a storage wrongly; {AGAIN}")
        flat = storages.declare(key, kind.dtype, numel)
        if part is None:
            return Storage(flat, 0, numel)
        if type(part) is not tuple or len(part) != 3 or not _counts(part[1:]) or part[1] + part[2] > numel:
            raise RefusedError(f"uses a part outside of storage {one_line(key, 30)}; {AGAIN}")
        return Storage(flat, part[1], part[2])

    return storage


def _counts(values: Any) -> bool:
    return all(type(value) is int and 0 <= value < MAX_SIZE for value in values)


class TensorMaker:
    """``torch._utils._rebuild_tensor_v2``, with every number checked before torch sees it."""

    def __init__(self) -> None:
        self._count = 0

    def rebuild(self, arguments: tuple[Any, ...]) -> Tensor:
        """Of (storage, offset, size, stride), and what says how it was trained, which is dropped."""
        self._count += 1
        if self._count > MAX_TENSORS:
            raise RefusedError(f"holds more than {MAX_TENSORS:,} tensors, as no model does; check where it is from")
        if len(arguments) not in (4, 6, 7) or not isinstance(arguments[0], Storage):
            raise RefusedError(f"describes a tensor wrongly; {AGAIN}")
        storage, offset, size, stride = arguments[:4]
        if type(size) not in (tuple, torch.Size) or type(stride) is not tuple:
            raise RefusedError(f"describes a tensor wrongly; {AGAIN}")
        check_view([offset, *size, *stride], offset, size, stride, storage.numel)
        empty = torch.empty(0, dtype=storage.flat.dtype)
        try:
            return empty.set_(storage.flat.untyped_storage(), storage.start + offset, size, stride)
        except RuntimeError as error:
            raise RefusedError(f"describes a tensor that torch refuses ({one_line(error, 60)}); {AGAIN}") from error


def check_view(numbers: list[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], numel: int) -> None:
    """Refuses a tensor that reaches out of its storage of ``numel`` elements, or repeats them into something larger."""
    shown = f"a tensor of shape {one_line(list(size), 60)}, strides {one_line(list(stride), 60)}"
    if not _counts(numbers) or len(size) != len(stride) or len(size) > MAX_DIMS:
        raise RefusedError(f"has {shown} and offset {one_line(offset, 30)}, which is none; check where it is from")
    if math.prod(max(n, 1) for n in size) >= MAX_SIZE:
        raise RefusedError(f"has {shown}, which nothing can hold; check where it is from")
    count = math.prod(size)
    if count == 0:
        outside = offset > numel
    else:
        outside = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= numel
    if outside:
        raise RefusedError(f"has {shown} that reaches out of its {numel:,} numbers; check where it is from")
    if count > numel:
        raise RefusedError(
            f"has {shown} made of only {numel:,} numbers; save it with .contiguous(), or check where it is from"
        )


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise RefusedError(f"describes a parameter wrongly; {AGAIN}")
    return arguments[0]


def _size(arguments: tuple[Any, ...]) -> torch.Size:
    if len(arguments) != 1 or type(arguments[0]) is not tuple or not _counts(arguments[0]):
        raise RefusedError(f"describes a shape wrongly; {AGAIN}")
    return torch.Size(arguments[0])


def _ordered_dict(arguments: tuple[Any, ...]) -> OrderedDict[str | int, Any]:
    """Empty, or as Python 2 wrote it, of a list of pairs."""
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or type(pairs) is not list or any(type(p) not in (list, tuple) or len(p) != 2 for p in pairs):
        raise RefusedError(f"describes a dict wrongly; {AGAIN}")
    return OrderedDict((checked_key(key), value) for key, value in pairs)
