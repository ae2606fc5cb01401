"""Zip archives read in place, and only as far as they are what they say.

Nothing is extracted, and the size of what is read is known before it is read. What is refused: prefixed, split or
doubly ended archives, encrypted members, compression other than deflate, duplicate names, names that lead out of
the archive, members that overlap or reach beyond the file, a directory that disagrees with the members, sizes that
deflate cannot honestly give, and contents that do not match their checksum.

Source: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3-4.5.
"""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass

from adm.data._open_file import OpenFile
from adm.runtime.errors import DamagedError
from adm.runtime.text import num_bytes, one_line, shown_path

__all__ = [
    "DEFLATED",
    "DamagedArchiveError",
    "Member",
    "contents_offset",
    "first_name",
    "is_archive",
    "members",
    "members_and_folders",
    "refused",
    "shown",
]

MAX_DIRECTORY = 128 << 20
MAX_MEMBERS = 1_500_000
MAX_RATIO = 256
"""Deflate reaches 1032 on constant bytes; images do not come near this."""
ALWAYS_HONEST = 16 << 20
"""Bytes up to which any ratio is taken: a few black images."""

LOCAL, DIRECTORY, END, END64, LOCATOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
STORED, DEFLATED = 0, 8
DESCRIPTOR = 1 << 3
KNOWN_FLAGS = 1 << 1 | 1 << 2 | DESCRIPTOR | 1 << 11
NAMES_IN_UTF8 = 1 << 11
FULL = 0xFFFFFFFF
DRIVE = re.compile("[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Member:
    """What the archive's directory says of one file in it; `size` is that of its contents, in bytes."""

    name: str
    offset: int
    compressed: int
    size: int
    crc: int | None
    method: int


class DamagedArchiveError(DamagedError):
    """An archive, or a member of one, that is not what it says. why: the reason alone."""

    def __init__(self, file: OpenFile, why: str) -> None:
        super().__init__(f"{shown_path(file.path)} is refused: {why}. Get another copy, or make the file again.")
        self.why = why


def is_archive(file: OpenFile) -> bool:
    """Whether the file begins as a zip archive does, or ends as one."""
    return file.size >= 22 and (file.read_at(0, 4) in (LOCAL, END) or _find_end(file) is not None)


def first_name(file: OpenFile) -> bytes:
    """The name of the first member as the file's first bytes have it; empty if it does not begin as an archive."""
    if file.size < 30 or file.read_at(0, 4) != LOCAL:
        return b""
    length = int.from_bytes(file.read_at(26, 2), "little")
    return file.read_at(30, min(length, file.size - 30))


def members(file: OpenFile, at_most: int = MAX_MEMBERS) -> dict[str, Member]:
    """The files in the archive by name, in the order of its directory; folders are left out. Raises DamagedError."""
    return members_and_folders(file, at_most)[0]


def members_and_folders(file: OpenFile, at_most: int = MAX_MEMBERS) -> tuple[dict[str, Member], list[str]]:
    """`members`, and the names of the folders that the archive lists by themselves, each with its "/" at the end."""
    end = _find_end(file)
    if end is None:
        raise refused(file, "it has no directory at its end, as of a truncated zip archive")
    count, length, start = _directory_place(file, end)
    if count > at_most:
        raise refused(file, f"it lists {count} members, more than {at_most}")
    if length > MAX_DIRECTORY or count * 46 > length:
        raise refused(file, f"its directory of {num_bytes(length)} does not fit {count} members")
    if count and file.read_at(0, 4) != LOCAL:
        raise refused(file, "something else precedes the zip archive in it")
    found: dict[str, Member] = {}
    names: dict[str, None] = {}
    data, at = file.read_at(start, length), 0
    for _ in range(count):
        member, at = _entry(file, data, at, start)
        if member.name in names:
            raise refused(file, f"it holds {shown(member)} twice")
        names[member.name] = None
        if not member.name.endswith("/"):
            found[member.name] = member
    if at != length:
        raise refused(file, f"its directory goes on after its {count} members")
    _refuse_overlap(file, found)
    return found, [name for name in names if name.endswith("/")]


def _find_end(file: OpenFile) -> int | None:
    """Where the end record begins; its comment must reach to the end of the file, so that there is one reading."""
    start = max(0, file.size - 22 - 0xFFFF)
    tail = file.read_at(start, file.size - start)
    at = tail.rfind(END)
    found = None
    while at >= 0:
        if at + 22 <= len(tail) and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
            if found is not None:
                raise refused(file, "it ends as two zip archives at once")
            found = start + at
        at = tail.rfind(END, 0, at)
    return found


def _directory_place(file: OpenFile, end: int) -> tuple[int, int, int]:
    """(number of members, bytes, offset) of the directory, which must lie directly before its end record."""
    disk, disk_start, here, count, length, start, _ = struct.unpack("<4xHHHHIIH", file.read_at(end, 22))
    stop = end
    if end >= 20 + 56 and file.read_at(end - 20, 4) == LOCATOR:
        _, at, num_disks = struct.unpack("<4xIQI", file.read_at(end - 20, 20))
        if num_disks > 1 or at + 56 > end - 20 or file.read_at(at, 4) != END64:
            raise refused(file, "its directory is not where it says")
        rest, disk, disk_start, here, count, length, start = struct.unpack("<4xQ4xIIQQQQ", file.read_at(at, 56))
        if at + 12 + rest != end - 20:
            raise refused(file, "its directory is not where it says")
        stop = at
    if disk or disk_start or here != count:
        raise refused(file, "it is a part of a split archive")
    if start + length != stop:
        raise refused(file, "its directory is not where it says")
    return count, length, start


def _entry(file: OpenFile, data: bytes, at: int, limit: int) -> tuple[Member, int]:
    """One entry of the directory, and where the next one begins."""
    if data[at : at + 4] != DIRECTORY or at + 46 > len(data):
        raise refused(file, "its directory is damaged")
    fields = struct.unpack_from("<8xHHHHIIIHHHHHII", data, at)
    flags, method, _, _, crc, compressed, size, name_length, extra_length, comment_length, disk, _, _, offset = fields
    name_at, stop = at + 46, at + 46 + name_length + extra_length + comment_length
    if stop > len(data):
        raise refused(file, "its directory is damaged")
    name = _name(file, data[name_at : name_at + name_length], flags)
    extra = data[name_at + name_length : name_at + name_length + extra_length]
    size, compressed, offset = _wide(file, extra, size, compressed, offset)
    member = Member(name, offset, compressed, size, crc, method)
    if flags & 1:
        raise refused(file, f"{shown(member)} is encrypted")
    if flags & ~KNOWN_FLAGS or disk or method not in (STORED, DEFLATED):
        raise refused(file, f"{shown(member)} is packed in a way that is not read (method {method}, flags {flags:#x})")
    if method == STORED and compressed != size:
        raise refused(file, f"{shown(member)} is stored in {compressed} bytes but holds {size}")
    if offset + 30 + name_length + compressed > limit:
        raise refused(file, f"{shown(member)} reaches beyond the members")
    if size > max(ALWAYS_HONEST, compressed * MAX_RATIO):
        raise refused(file, f"{shown(member)} grows from {num_bytes(compressed)} to {num_bytes(size)}")
    return member, stop


def _name(file: OpenFile, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8")  # also what does not say so, as macOS writes it
    except UnicodeDecodeError:
        if flags & NAMES_IN_UTF8:
            raise refused(file, "a member's name is not UTF-8") from None
        name = raw.decode("cp437")
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\\0") or DRIVE.match(name):
        raise refused(file, f"the member name {one_line(name, 60)!r} leads out of it")
    return name


def _wide(file: OpenFile, extra: bytes, size: int, compressed: int, offset: int) -> tuple[int, int, int]:
    """(size, compressed, offset), each from the zip64 field where the narrow one is full."""
    narrow = [size, compressed, offset]
    if FULL not in narrow:
        return size, compressed, offset
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1 and len(field) >= 8 * narrow.count(FULL):
            values = iter(struct.unpack_from(f"<{narrow.count(FULL)}Q", field))
            size, compressed, offset = (next(values) if value == FULL else value for value in narrow)
            return size, compressed, offset
        at += 4 + length
    raise refused(file, "a member of more than 4 GB does not say its size")


def _refuse_overlap(file: OpenFile, found: dict[str, Member]) -> None:
    ordered = sorted(found.values(), key=lambda member: member.offset)
    for member, following in itertools.pairwise(ordered):
        if member.offset + 30 + member.compressed > following.offset:
            raise refused(file, f"{shown(member)} and {shown(following)} overlap")


def contents_offset(file: OpenFile, member: Member) -> int:
    """Where the contents begin, by the header before them, which must say what the directory says."""
    header = file.read_at(member.offset, 30)
    flags, method, crc, compressed, size, name_length, extra_length = struct.unpack("<6xHH4xIIIHH", header)
    if header[:4] != LOCAL:
        raise refused(file, f"{shown(member)} is not where the directory says")
    rest = file.read_at(member.offset + 30, name_length + extra_length)
    name, extra = _name(file, rest[:name_length], flags), rest[name_length:]
    size, compressed, _ = _wide(file, extra, size, compressed, 0)
    said = (name, method, flags & 1)
    later = flags & DESCRIPTOR and not (size or compressed or crc)  # written to a pipe: the numbers follow the contents
    if said != (member.name, member.method, 0) or (
        not later and (size, compressed, crc) != (member.size, member.compressed, member.crc)
    ):
        raise refused(file, f"{shown(member)} is not what the directory says")
    return member.offset + 30 + name_length + extra_length


def shown(member: Member) -> str:
    return f"member {one_line(member.name, 60)!r}"


def refused(file: OpenFile, why: str) -> DamagedArchiveError:
    return DamagedArchiveError(file, why)
