"""The header of an .npy array: read without evaluating anything, and believed only if it fits the bytes there are.

Source: the format's definition, versions 1.0, 2.0 and 3.0, in numpy.lib.format.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data._member import MemberReader
from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line, shown_path

__all__ = ["MAGIC", "Header", "raw_bytes", "read_header", "read_values"]

MAGIC = b"\x93NUMPY"
MAX_HEADER = 16384
MAX_AXES = 32

_ITEM = r"""\s*(?:
    (?P<q{i}>['"])(?P<key{i}>descr|fortran_order|shape)(?P=q{i})\s*:\s*
    (?P<value{i}>'[^'\\]*'|"[^"\\]*"|True|False|\([\d\s,L]*\)|\[.*\])
)\s*"""
_HEADER = re.compile(
    r"\{" + ",".join(_ITEM.replace("{i}", str(i)) for i in range(3)) + r",?\s*\}\s*", re.VERBOSE | re.DOTALL
)
_PLAIN = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SUV]\d{1,9}|[mM]8(?:\[\w+\])?|\?)")


@dataclass(frozen=True)
class Header:
    """Type, order and shape of an array whose elements begin `offset` bytes into the member."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(reader: MemberReader) -> Header:
    """The header at the beginning of a member. Raises DamagedError, also when the array is not of the member's size."""
    where = f"{shown_path(reader.file.path)} is refused: {_named(reader)}"
    size = reader.member.size
    start = reader.read(min(size, 8))
    if len(start) < 8 or start[:6] != MAGIC:
        raise DamagedError(f"{where} is no .npy array. Save it with numpy.savez.")
    version, width = start[6:8], 2 if start[6] == 1 else 4
    if version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise DamagedError(f"{where} has .npy version {start[6]}.{start[7]}. Save it with numpy.savez.")
    length = int.from_bytes(reader.read(min(width, size - 8)), "little")
    if length > min(MAX_HEADER, size - 8 - width):
        raise DamagedError(f"{where} has a header of {length} bytes. Save it with numpy.savez.")
    try:
        text = reader.read(length).decode("utf-8" if start[6] == 3 else "latin-1")
        fields = _fields(text)
    except ValueError:
        raise DamagedError(f"{where} has a header that is not one of numpy's. Save it with numpy.savez.") from None
    dtype = _dtype(fields["descr"], where)
    header = Header(dtype, fields["fortran_order"] == "True", _shape(fields["shape"], where), 8 + width + length)
    if header.offset + header.num_bytes != size:
        raise DamagedError(
            f"{where} says {one_line(header.shape, 60)} of {dtype}, {header.num_bytes} bytes, but holds "
            f"{size - header.offset}. Get another copy, or make the file again."
        )
    return header


def read_values(reader: MemberReader, header: Header) -> NDArray[Any]:
    """The whole array behind its header, C-contiguous, in its own type, checked to its end. Raises DamagedError."""
    flat = np.empty(math.prod(header.shape), header.dtype)
    reader.readinto(raw_bytes(flat))
    reader.finish()
    return np.ascontiguousarray(flat.reshape(header.shape, order="F" if header.fortran else "C"))


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array, to be filled."""
    return array.reshape(-1).view(np.uint8).data


def _named(reader: MemberReader) -> str:
    return f"member {one_line(reader.member.name, 60)!r}" if reader.member.crc is not None else "the array"


def _fields(text: str) -> dict[str, str]:
    match = _HEADER.fullmatch(text)
    if match is None:
        raise ValueError(text)
    fields = {match[f"key{i}"]: match[f"value{i}"] for i in range(3)}
    quoted = fields.get("descr", "")[:1] in ("'", '"', "[")
    if len(fields) < 3 or not quoted or fields["fortran_order"][0] not in "TF" or fields["shape"][0] != "(":
        raise ValueError(text)
    return fields


def _dtype(descr: str, where: str) -> np.dtype[Any]:
    text = descr.strip("'\"")
    if "O" in text:
        raise DamagedError(
            f"{where} holds pickled Python objects, which could run code. Save plain numbers with numpy.savez."
        )
    if not _PLAIN.fullmatch(text):
        raise DamagedError(f"{where} has elements of type {one_line(text, 40)!r}. Save plain numbers.")
    try:
        return np.dtype(text)
    except TypeError:  # float128 is not everywhere
        raise DamagedError(f"{where} has elements of type {text!r}, unknown here. Save plain numbers.") from None


def _shape(text: str, where: str) -> tuple[int, ...]:
    parts = [part.strip().removesuffix("L") for part in text.strip("()").split(",")]
    if not parts[-1]:
        parts.pop()
    if len(parts) > MAX_AXES or not all(part.isdecimal() and len(part) <= 19 for part in parts):
        raise DamagedError(f"{where} has the shape {one_line(text, 40)}. Save it with numpy.savez.")
    return tuple(map(int, parts))
