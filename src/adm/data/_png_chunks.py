"""The chunks of a PNG, before a decoder sees them: none is damaged, and what says nothing of the pixels is left out.

Source: PNG specification, third edition, sections 5.3 (chunk layout) and 11.3 (ancillary chunks).
"""

from __future__ import annotations

import zlib

__all__ = ["SIGNATURE", "checked"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OF_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
"""Keywords of texts that may turn the image."""
MAX_TEXT = 2**16
"""Bytes, as stored, of a text that may turn the image; longer ones are of something else."""


def checked(data: bytes) -> bytes:
    """The PNG up to its end, without texts and colour profiles, which may inflate to any size.

    Nothing is inflated; every checksum is compared. Raises ValueError with the reason for a damaged or truncated file.
    """
    parts: list[memoryview] = []
    at, kept_from, view = len(SIGNATURE), 0, memoryview(data)
    while at + 12 <= len(data):
        kind, body = bytes(view[at + 4 : at + 8]), at + 8
        stop = body + int.from_bytes(view[at : at + 4], "big")
        if stop + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : stop]) != int.from_bytes(view[stop : stop + 4], "big"):
            raise ValueError("a checksum in it does not match")
        if _is_left_out(kind, data[body : min(stop, body + 32)], stop - body):
            parts.append(view[kept_from:at])
            kept_from = stop + 4
        at = stop + 4
        if kind == b"IEND":
            return b"".join([*parts, view[kept_from:at]]) if parts else data
    raise ValueError("truncated")


def _is_left_out(kind: bytes, begin: bytes, length: int) -> bool:
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        return length > MAX_TEXT or not begin.startswith(OF_ORIENTATION)
    return kind == b"iCCP"
