"""Tar archives read in place: where each file in them lies, and nothing that an archive says is believed unchecked.

Links, devices and folders in an archive are passed over; sparse files are refused, and so is an archive without the
zeros at its end, which is a truncated one. Source: POSIX.1-2008, pax (ustar and pax interchange formats); GNU tar
manual, "Basic Tar Format" (long names, sizes in base 256).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adm.data._open_file import OpenFile
from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line, shown_path

__all__ = ["TarMember", "is_tar", "tar_members"]

BLOCK = 512
MAX_NAME = 1 << 16
"""Bytes of what a record may say of the next file."""

REGULAR, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, SPARSE = (b"0", b"\0", b"7"), b"L", b"K", b"x", b"g", b"S"


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in an archive; its contents are `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def is_tar(file: OpenFile) -> bool:
    """Whether the file begins as a tar archive does."""
    return file.size >= BLOCK and file.read_at(257, 5) == b"ustar"


def tar_members(file: OpenFile) -> Iterator[TarMember]:
    """The regular files in the order of the archive. Raises DamagedError."""
    at = 0
    said: dict[str, str] = {}
    while at + BLOCK <= file.size:
        header = file.read_at(at, BLOCK)
        if not any(header):
            return
        kind, size = header[156:157], _size(file, header)
        if kind in (PAX, LONG_NAME) and size > MAX_NAME:
            raise _refused(file, f"a record of {size} bytes stands where a name is expected")
        if kind == PAX:
            said |= _pax(file, file.read_at(at + BLOCK, size))
        elif kind == LONG_NAME:
            said["path"] = _text(file.read_at(at + BLOCK, size).rstrip(b"\0"))
        elif kind == SPARSE or any(key.startswith("GNU.sparse") for key in said):
            raise _refused(file, "it holds sparse files")
        elif kind not in (LONG_LINK, PAX_GLOBAL):
            size = _decimal(file, said["size"]) if "size" in said else size
            if kind in REGULAR:
                name = said.get("path") or _name(header)
                if at + BLOCK + size > file.size:
                    raise _refused(file, f"member {one_line(name, 60)!r} is truncated")
                if not name.endswith("/"):
                    yield TarMember(name.removeprefix("./"), at + BLOCK, size)
            said = {}
        at += BLOCK + -(-size // BLOCK) * BLOCK
    raise _refused(file, "it ends without the zeros that end a tar archive, so it is truncated")


def _size(file: OpenFile, header: bytes) -> int:
    """The size, the header's checksum being right."""
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _octal(file, header[148:156]) != unsigned:
        raise _refused(file, "a header in it does not match its checksum")
    field = header[124:136]
    return int.from_bytes(field[4:], "big") if field[0] == 0x80 else _octal(file, field)


def _octal(file: OpenFile, field: bytes) -> int:
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # int() would take signs, too: a negative size leads backwards
        raise _refused(file, "a header in it holds no number where one is expected")
    return int(digits or b"0", 8)


def _decimal(file: OpenFile, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise _refused(file, "a header in it holds no number where one is expected")
    return int(text)


def _pax(file: OpenFile, data: bytes) -> dict[str, str]:
    """The records "length key=value\\n" of an extended header."""
    records: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:
        digits = data[at : data.find(b" ", at)]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals or at + length > len(data):
            raise _refused(file, "an extended header in it is damaged")
        records[_text(key)] = _text(value)
        at += length
    return records


def _name(header: bytes) -> str:
    name, prefix = header[:100].split(b"\0", 1)[0], header[345:500].split(b"\0", 1)[0]
    return _text(prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _refused(file: OpenFile, why: str) -> DamagedError:
    return DamagedError(f"{shown_path(file.path)} is refused: {why}. Get another copy, or make the file again.")
