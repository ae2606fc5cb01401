"""Files of torch < 1.6: five pickles and then the storages, one after another, each with its length before it.

The format has no checksums: a changed bit among the numbers cannot be seen here, only against a recorded sha256.

Source: _legacy_save and _legacy_load in torch/serialization.py; numbers are little-endian whatever machine wrote them.
"""

from __future__ import annotations

from typing import Any

from adm.checkpoints._foreign_file import AGAIN, ForeignFile, RefusedError
from adm.checkpoints._pickle_reader import MAX_PICKLE
from adm.checkpoints._torch_objects import Storages, bytes_of, torch_pickle
from adm.runtime.text import one_line

__all__ = ["MAGIC", "read_legacy", "read_pickle"]

NUMBER = 0x1950A86A20F9469CFC6C
MAGIC = b"\x8a\x0a" + NUMBER.to_bytes(10, "little") + b"."
VERSION = 1001


def read_legacy(file: ForeignFile) -> Any:
    """What ``torch.save`` was given. Raises ``RefusedError``."""
    storages = Storages(file.size)
    reader = torch_pickle(file.read(0, min(file.size, MAX_PICKLE)), storages)
    number, version = reader.read(), reader.read()
    if number != NUMBER or version != VERSION:
        raise RefusedError(f"is of version {one_line(version, 20)} of the old format of torch; {AGAIN}")
    reader.read()  # about the machine that wrote it
    content = reader.read()
    keys = reader.read()
    if type(keys) is not list or any(type(key) is not str or key not in storages for key in keys):
        raise RefusedError(f"lists storages that no tensor uses; {AGAIN}")
    if sorted(keys) != sorted(key for key, _ in storages):
        raise RefusedError(f"lists a storage twice or not at all; {AGAIN}")
    at = reader.at
    for key in keys:
        flat = storages[key]
        numel = int.from_bytes(file.read(at, 8), "little", signed=True)
        if numel != flat.numel():
            raise RefusedError(
                f"has {numel:,} numbers in storage {one_line(key, 30)} and says {flat.numel():,}; {AGAIN}"
            )
        data = bytes_of(flat)
        if at + 8 + len(data) > file.size:
            raise RefusedError(f"is cut short in storage {one_line(key, 30)}; {AGAIN}")
        file.read_into(at + 8, data)
        at += 8 + len(data)
    if at != file.size:
        raise RefusedError(f"has {file.size - at:,} bytes behind its last storage; {AGAIN}")
    return content


def read_pickle(file: ForeignFile) -> Any:
    """The value of a file that is one pickle without tensors, which need a file of torch around them."""
    reader = torch_pickle(file.read(0, min(file.size, MAX_PICKLE)), Storages(0))
    content = reader.read()
    if reader.at != file.size:
        raise RefusedError(f"has {file.size - reader.at:,} bytes behind the end of its pickle; {AGAIN}")
    return content
