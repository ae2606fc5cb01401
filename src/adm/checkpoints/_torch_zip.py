"""Files of torch >= 1.6: a zip of stored members, read so that nothing in it has a second meaning.

The members and the directory must tile the file from its first byte to its last, in one way: nothing before, between
or behind them, every name once, no compression, no encryption, local headers that agree with the directory. The CRC-32
of every member is checked, also of those that nothing refers to; torch writes it and does not look at it.

Source: PKWARE APPNOTE 6.3 section 4.3; the layout of members is that of torch/serialization.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints._foreign_file import AGAIN, ForeignFile, RefusedError
from adm.checkpoints._pickle_reader import MAX_PICKLE
from adm.checkpoints._torch_objects import SAVE, Storages, bytes_of, torch_pickle
from adm.runtime.text import num_bytes, one_line

__all__ = ["read_zip"]

MAX_MEMBERS = 50_000
MAX_DIRECTORY = 16 << 20
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
HAS_DESCRIPTOR, UTF_8 = 0x0008, 0x0800
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    name: str
    header: int
    size: int
    crc: int
    flags: int
    start: int = 0


def read_zip(file: ForeignFile) -> Any:
    """What ``torch.save`` was given. Raises ``RefusedError``."""
    members = _members(file)
    root = _root(members)
    pickle = members.pop(f"{root}data.pkl")
    if pickle.size > MAX_PICKLE:
        raise RefusedError(f"has a pickle of {num_bytes(pickle.size)}, no model needs that; check where it is from")
    program = file.read(pickle.start, pickle.size)
    _check_crc(pickle, zlib.crc32(program))
    swapped = _is_big_endian(file, members.get(f"{root}byteorder"))
    storages = Storages(file.size)
    reader = torch_pickle(program, storages)
    content = reader.read()
    if reader.at != len(program):
        raise RefusedError(f"has {len(program) - reader.at:,} bytes behind the end of its pickle; {AGAIN}")
    parts = [(flat, _storage_member(members, f"{root}data/{key}", flat)) for key, flat in storages]
    for flat, member in parts:
        data = bytes_of(flat)
        file.read_into(member.start, data)
        _check_crc(member, zlib.crc32(data))
        if swapped:
            _swap(flat)
    for member in members.values():
        _check_crc(member, _crc(file, member))
    return content


def _storage_member(members: dict[str, Member], name: str, flat: Tensor) -> Member:
    member = members.pop(name, None)
    needed = flat.numel() * flat.dtype.itemsize
    if member is None:
        raise RefusedError(f"lacks its tensor data {one_line(name, 60)}; {AGAIN}")
    if member.size != needed:
        raise RefusedError(f"has {member.size:,} bytes of {one_line(name, 60)} and says {needed:,}; {AGAIN}")
    return member


def _crc(file: ForeignFile, member: Member) -> int:
    crc = 0
    for block in file.blocks(member.start, member.size):
        crc = zlib.crc32(block, crc)
    return crc


def _check_crc(member: Member, crc: int) -> None:
    if crc != member.crc:
        raise RefusedError(f"the checksum of {one_line(member.name, 60)} is wrong, the file was changed; {AGAIN}")


def _is_big_endian(file: ForeignFile, member: Member | None) -> bool:
    if member is None:
        return False
    order = file.read(member.start, min(member.size, 8))
    if order not in (b"little", b"big"):
        raise RefusedError(f"does not say its byte order; {AGAIN}")
    return order == b"big"


def _swap(flat: Tensor) -> None:
    if flat.dtype.itemsize > 1 and flat.numel():
        numbers = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.dtype.itemsize]).numpy()
        numbers.byteswap(inplace=True)


# ---- what the members are ----


def _root(members: dict[str, Member]) -> str:
    """ "archive/", the directory in which all members of a file of torch lie."""
    roots = {name.partition("/")[0] + "/" for name in members}
    root = next(iter(roots)) if len(roots) == 1 else ""
    if f"{root}constants.pkl" in members or any(name.startswith(f"{root}code/") for name in members):
        raise RefusedError(f"is a TorchScript program, not weights; {SAVE}")
    if f"{root}.data/extern_modules" in members or ".data/extern_modules" in members:
        raise RefusedError(f"is a torch.package program, not weights; {SAVE}")
    if any(name.endswith(".npy") for name in members):
        raise RefusedError("is a numpy .npz archive, not weights; give a .pt or .safetensors file")
    if not root or f"{root}data.pkl" not in members:
        raise RefusedError("is a zip archive that torch did not write; give the .pt file itself")
    return root


# ---- what the zip is ----


def _members(file: ForeignFile) -> dict[str, Member]:
    """Every member by name, its header found to agree with the directory."""
    count, start, size = _directory(file)
    listed = sorted(_entries(file.read(start, size), count), key=lambda member: member.header)
    if listed[0].header != 0:
        raise RefusedError(f"has bytes before its first member; {AGAIN}")
    members: dict[str, Member] = {}
    for member, end in zip(listed, [*(member.header for member in listed[1:]), start], strict=True):
        if member.name in members:
            raise RefusedError(f"has two members {one_line(member.name, 60)}; check where it is from")
        members[member.name] = _located(file, member, end)
    return members


def _directory(file: ForeignFile) -> tuple[int, int, int]:
    """Number of members, start and size of the directory, from the record at the end of the file."""
    at = file.size - END.size
    if at < 0:
        raise RefusedError(f"is cut short: a zip without its end; {AGAIN}")
    magic, disk, first_disk, here, count, size, start, comment = END.unpack(file.read(at, END.size))
    if magic != b"PK\5\6" or comment:
        raise RefusedError(f"is cut short, or has something behind its end; {AGAIN}")
    if at >= LOCATOR.size and file.read(at - LOCATOR.size, 4) == b"PK\6\7":
        short = [(disk, FULL_16), (first_disk, FULL_16), (here, FULL_16), (count, FULL_16), (size, FULL_32)]
        at, disk, first_disk, here, count, size, start = _directory_64(file, at, [*short, (start, FULL_32)])
    if disk or first_disk or here != count or start + size != at:
        raise RefusedError(f"has a directory that is not where it says; {AGAIN}")
    if not 0 < count <= MAX_MEMBERS or size > MAX_DIRECTORY:
        raise RefusedError(f"has {count:,} members, a file of torch has 1 to {MAX_MEMBERS:,}; check where it is from")
    return count, start, size


def _directory_64(file: ForeignFile, end: int, short: list[tuple[int, int]]) -> tuple[int, ...]:
    """The end record of a large zip, which stands before the small one; where that says something, it must agree."""
    _, locator_disk, at, disks = LOCATOR.unpack(file.read(end - LOCATOR.size, LOCATOR.size))
    if at + END_64.size + LOCATOR.size != end or locator_disk or disks > 1:
        raise RefusedError(f"has an end record that is not where it says; {AGAIN}")
    magic, length, _, _, *fields = END_64.unpack(file.read(at, END_64.size))
    agree = all(value in (full, field) for (value, full), field in zip(short, fields, strict=True))
    if magic != b"PK\6\6" or length != END_64.size - 12 or not agree:
        raise RefusedError(f"has two end records that differ; {AGAIN}")
    return at, *fields


def _entries(directory: bytes, count: int) -> Iterator[Member]:
    at = 0
    for _ in range(count):
        if at + ENTRY.size > len(directory):
            raise RefusedError(f"lists fewer members than it says; {AGAIN}")
        fields = ENTRY.unpack_from(directory, at)
        magic, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, header = fields
        name_length, extra_length, comment_length, disk = lengths
        at += ENTRY.size
        name = _name(directory[at : at + name_length])
        extra = directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if magic != b"PK\1\2" or disk or at > len(directory):
            raise RefusedError(f"has a damaged directory; {AGAIN}")
        if method or flags & ~(HAS_DESCRIPTOR | UTF_8):
            raise RefusedError(
                f"has the member {one_line(name, 60)} compressed or encrypted, as torch never writes it; "
                "write it again with torch.save"
            )
        size, packed, header = _large(extra, [size, packed, header])
        if packed != size:
            raise RefusedError(f"has two sizes of {one_line(name, 60)}; {AGAIN}")
        yield Member(name, header, size, crc, flags)
    if at != len(directory):
        raise RefusedError(f"lists more members than it says; {AGAIN}")


def _name(data: bytes) -> str:
    try:
        name = data.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"has a member whose name is not UTF-8; {AGAIN}") from error
    if not name or "\0" in name or "\\" in name or ".." in name.split("/") or name.startswith("/"):
        raise RefusedError(f"has a member of the name {one_line(name, 60)!r}; check where it is from")
    return name


def _large(extra: bytes, values: list[int]) -> list[int]:
    """The values, those that are too large for 32 bits from the extra field made for them."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            values = [next(wide, FULL_32) if value == FULL_32 else value for value in values]
    return values


def _located(file: ForeignFile, member: Member, end: int) -> Member:
    """With where its data start, having found that header, data and descriptor fill the space up to ``end``."""
    fields = LOCAL.unpack(file.read(member.header, LOCAL.size))
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    start = member.header + LOCAL.size + name_length + extra_length
    name = file.read(member.header + LOCAL.size, name_length)
    later = (0,) if flags & HAS_DESCRIPTOR else ()
    agree = crc in (member.crc, *later) and {size, packed} <= {member.size, FULL_32, *later}
    if magic != b"PK\3\4" or name != member.name.encode() or (flags, method) != (member.flags, 0) or not agree:
        raise RefusedError(f"describes {one_line(member.name, 60)} twice and differently; {AGAIN}")
    behind = end - start - member.size
    if behind != 0 if not later else behind not in (12, 16, 20, 24):
        raise RefusedError(f"has {one_line(member.name, 60)} larger or smaller than its place; {AGAIN}")
    if later:
        _check_descriptor(file.read(end - behind, behind), member)
    return Member(member.name, member.header, member.size, member.crc, member.flags, start)


def _check_descriptor(data: bytes, member: Member) -> None:
    """The CRC and sizes that stand behind the data of a member, in 4 or 8 bytes, with or without a mark."""
    marked = len(data) in (16, 24)
    described = struct.unpack("<LLL" if len(data) in (12, 16) else "<LQQ", data[4 if marked else 0 :])
    if described != (member.crc, member.size, member.size) or (marked and data[:4] != b"PK\7\x08"):
        raise RefusedError(f"describes {one_line(member.name, 60)} twice and differently; {AGAIN}")
