"""What is in a member of an archive, as a stream that does not trust it."""

from __future__ import annotations

import zlib

from adm.data._archive import DEFLATED, Member, contents_offset, refused, shown
from adm.data._open_file import OpenFile
from adm.runtime.errors import DamagedError

__all__ = ["MemberReader"]

BLOCK = 1 << 18


class MemberReader:
    """The contents of one member from its beginning on, checked against its size and checksum at its end."""

    def __init__(self, file: OpenFile, member: Member) -> None:
        self.file, self.member = file, member
        self.start = member.offset if member.crc is None else contents_offset(file, member)
        self.position = 0
        self._read = 0
        self._crc: int | None = 0
        self._inflate = zlib.decompressobj(-15) if member.method == DEFLATED else None
        self._pending = b""

    def readinto(self, view: memoryview) -> None:
        """Fills the view of bytes. Raises DamagedError when the member is damaged or ends before."""
        if self.position + len(view) > self.member.size:
            raise self._damaged("ends before its contents do")
        if self._inflate is None:
            if self.file.readinto_at(self.start + self.position, view) < len(view):
                raise self._damaged("is truncated")
        else:
            self._inflate_into(view, self._inflate)
        self.position += len(view)
        if self._crc is not None and self.member.crc is not None:
            self._crc = zlib.crc32(view, self._crc)

    def read(self, count: int) -> bytes:
        data = bytearray(count)
        self.readinto(memoryview(data))
        return bytes(data)

    def skip(self, count: int) -> None:
        """Goes on without the next bytes. In a stored member that is a jump, after which there is no checksum."""
        if self._inflate is None:
            self.position += count
            self._crc = None if count else self._crc
            return
        scratch = memoryview(bytearray(min(count, BLOCK)))
        while count:
            self.readinto(scratch[: min(count, BLOCK)])
            count -= min(count, BLOCK)

    def finish(self) -> None:
        """Reads what is left and checks the whole. Raises DamagedError."""
        if self._crc is None and self.member.crc is not None:
            raise RuntimeError("a member whose parts were skipped has no checksum")
        if self.position < self.member.size:
            scratch = memoryview(bytearray(min(BLOCK, self.member.size - self.position)))
            while self.position < self.member.size:
                self.readinto(scratch[: min(BLOCK, self.member.size - self.position)])
        if self._inflate is not None:
            self._check_inflated(self._inflate)
        if self.member.crc is not None and self._crc != self.member.crc:
            raise self._damaged("does not match its checksum")

    def _inflate_into(self, view: memoryview, inflate: zlib._Decompress) -> None:
        done = 0
        while done < len(view):
            data = self._inflated(inflate, min(len(view) - done, BLOCK))
            if not data:
                raise self._damaged("ends before its contents do")
            view[done : done + len(data)] = data
            done += len(data)

    def _inflated(self, inflate: zlib._Decompress, at_most: int) -> bytes:
        """The next bytes of the contents; none when the stream has ended."""
        while not inflate.eof:
            if not self._pending:
                self._pending = self._compressed()
            ended = not self._pending
            try:
                data = inflate.decompress(self._pending, at_most)
            except zlib.error:
                raise self._damaged("is damaged: it cannot be inflated") from None
            self._pending = inflate.unconsumed_tail
            if data or ended:
                return data
        return b""

    def _compressed(self) -> bytes:
        count = min(BLOCK, self.member.compressed - self._read)
        data = self.file.read_at(self.start + self._read, count) if count else b""
        self._read += count
        return data

    def _check_inflated(self, inflate: zlib._Decompress) -> None:
        if self._inflated(inflate, 1):
            raise self._damaged("inflates to more than it says")
        if not inflate.eof or inflate.unused_data or self._read < self.member.compressed:
            raise self._damaged("is not one whole deflate stream")

    def _damaged(self, why: str) -> DamagedError:
        return refused(self.file, f"{shown(self.member)} {why}")
