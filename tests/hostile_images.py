"""Images that are not what they say: more than 80 made by hand, any number mutated from valid ones, and what becomes of
them.

As a program: looks at every file below the folder given on the command line and prints, as JSON, the verdict and the
seconds of each, what the scan before training says of the folder, and how far the peak memory rose above that before.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mutations import changed, end_hangs, flipped, forget_peak, peak

SECONDS = 20
RNG = np.random.RandomState(3)
PIXELS = RNG.randint(0, 256, (24, 30, 4), np.uint8)
IMAGE, SKIPPED, HIDDEN = "image", "skipped", "hidden"
NOT_ONE = "not a PNG, JPEG, WEBP or BMP"

Case = tuple[str, bytes | Callable[[Path], None], str]
"""Name of the file, its contents or what makes it, and what it is: IMAGE, SKIPPED, HIDDEN, or why it is refused."""


# ---- how files are put together --------------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def picture(channels: int = 3) -> Image.Image:
    return Image.fromarray(PIXELS[:, :, :channels] if channels > 1 else PIXELS[:, :, 0].copy())


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND")


def grey_rows(width: int, height: int) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(width)) * height))


def behind_header(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks directly behind its IHDR."""
    return data[:33] + b"".join(chunks) + data[33:]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def deflated_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


# ---- by hand ---------------------------------------------------------------------------------------------------------


def hand_made() -> list[Case]:
    return [*good(), *of_other_kinds(), *broken(), *bombs(), *animated(), *special_files()]


def good() -> list[Case]:
    rgb, grey, rgba = encoded(picture()), encoded(picture(1)), encoded(picture(4))
    palette = picture().quantize(16)
    jpeg = encoded(picture(), "JPEG")
    wide = Image.fromarray(np.arange(720, dtype=np.uint16).reshape(24, 30) * 91)
    wide_colour = chunk(b"IDAT", zlib.compress((b"\0" + RNG.bytes(30 * 6)) * 24))
    cmyk = Image.fromarray(PIXELS, "CMYK")
    return [
        ("rgb.png", rgb, IMAGE),
        ("grey.png", grey, IMAGE),
        ("rgba.png", rgba, IMAGE),
        ("la.png", encoded(picture(4).convert("LA")), IMAGE),
        ("palette.png", encoded(palette), IMAGE),
        ("palette-transparent.png", encoded(palette, transparency=bytes([0, 128])), IMAGE),
        ("colour-transparent.png", encoded(picture(), transparency=(1, 2, 3)), IMAGE),
        ("bits.png", encoded(picture(1).convert("1")), IMAGE),
        ("wide.png", encoded(wide), IMAGE),
        ("wide-colour.png", png(header(30, 24, 16, 2), wide_colour), IMAGE),
        ("interlaced.png", png(header(8, 8, interlaced=1), _adam7(8)), IMAGE),
        ("profile-damaged.png", behind_header(rgb, chunk(b"iCCP", b"sRGB\0\0not zlib")), IMAGE),
        ("gamma.png", behind_header(rgb, chunk(b"gAMA", struct.pack(">I", 45455))), IMAGE),
        ("unknown-chunk.png", behind_header(rgb, chunk(b"prVt", b"anything")), IMAGE),
        ("trailing.png", rgb + RNG.bytes(300), IMAGE),
        ("turned.png", encoded(picture(), exif=exif(6)), IMAGE),
        ("rgb.jpg", jpeg, IMAGE),
        ("grey.jpg", encoded(picture(1), "JPEG"), IMAGE),
        ("cmyk.jpg", encoded(cmyk, "JPEG"), IMAGE),
        ("progressive.jpg", encoded(picture(), "JPEG", progressive=True), IMAGE),
        ("turned.jpg", encoded(picture(), "JPEG", exif=exif(8)), IMAGE),
        ("exif-damaged.jpg", encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), IMAGE),
        ("trailing.jpg", jpeg + b"\0" * 5000, IMAGE),
        ("lossy.webp", encoded(picture(), "WEBP"), IMAGE),
        ("lossless.webp", encoded(picture(4), "WEBP", lossless=True), IMAGE),
        ("rgb.bmp", encoded(picture(), "BMP"), IMAGE),
        ("palette.bmp", encoded(palette, "BMP"), IMAGE),
        ("bits.bmp", encoded(picture(1).convert("1"), "BMP"), IMAGE),
        ("png-inside.jpg", rgb, IMAGE),
        ("jpeg-inside.png", jpeg, IMAGE),
        ("no-extension", rgb, IMAGE),
        ("UPPER.PNG", rgb, IMAGE),
    ]


def _adam7(side: int) -> bytes:
    """The seven passes of an interlaced grey square of zeros."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [(b"\0" + bytes(-(-(side - x) // dx))) * (-(-(side - y) // dy)) for x, y, dx, dy in passes]
    return chunk(b"IDAT", zlib.compress(b"".join(rows)))


def of_other_kinds() -> list[Case]:
    """Other formats under the name of an image, and what has a right to be there."""
    rgb = picture()
    begins = {
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", f"an EPS, {NOT_ONE}"),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", f"a PDF, {NOT_ONE}"),
        "psd": (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + bytes(60), f"a PSD, {NOT_ONE}"),
        "fits": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), f"a FITS, {NOT_ONE}"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', f"an SVG, {NOT_ONE}"),
        "avif": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(40), f"an AVIF, HEIC or video, {NOT_ONE}"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", f"an AVIF, HEIC or video, {NOT_ONE}"),
        "page": (b"<!DOCTYPE html>\n<html><title>404</title></html>", f"a web page, {NOT_ONE}"),
        "lfs": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            f"a Git LFS pointer, {NOT_ONE}",
        ),
        "zip": (b"PK\3\4" + bytes(60), f"a zip, {NOT_ONE}"),
        "npy": (b"\x93NUMPY\1\0" + bytes(60), f"an .npy, {NOT_ONE}"),
        "ppm": (b"P6 2 2 255\n" + bytes(12), NOT_ONE),
        "text": (b"hello, I am an image", NOT_ONE),
        "bm-text": (b"BM, said the text, and went on for a while until it was long enough", "."),
        "riff": (b"RIFF\x20\0\0\0AVI LIST" + bytes(30), NOT_ONE),
        "nul": (bytes(1000), NOT_ONE),
        "noise": (b"\xd2" + np.random.RandomState(9).bytes(999), NOT_ONE),
    }
    return [
        *((f"{name}-inside.png", data, reason) for name, (data, reason) in begins.items()),
        ("gif-inside.png", encoded(rgb, "GIF"), f"a GIF, {NOT_ONE}"),
        ("tiff-inside.jpg", encoded(rgb, "TIFF"), f"a TIFF, {NOT_ONE}"),
        ("ico-inside.bmp", encoded(rgb, "ICO"), NOT_ONE),
        ("empty.png", b"", "empty file"),
        ("still.gif", encoded(rgb, "GIF"), SKIPPED),
        ("scan.tif", encoded(rgb, "TIFF"), SKIPPED),
        ("notes.txt", b"a note", SKIPPED),
        ("empty.txt", b"", SKIPPED),
        (".hidden.png", b"", HIDDEN),
        ("._rgb.png", b"\0\5\x16\7", HIDDEN),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", HIDDEN),
    ]


def broken() -> list[Case]:
    rgb, jpeg = encoded(picture()), encoded(picture(), "JPEG")
    webp, bmp = encoded(picture(), "WEBP"), encoded(picture(), "BMP")
    palette = encoded(picture().quantize(16))
    checksum, torn = "a checksum in it does not match", "(?i)truncated"
    no_palette = palette.replace(_chunk_in(palette, b"PLTE"), b"")
    return [
        ("half.png", rgb[: len(rgb) // 2], torn),
        ("less-1.png", rgb[:-1], torn),
        ("less-12.png", rgb[:-12], torn),
        ("less-16.png", rgb[:-16], torn),
        ("signature.png", rgb[:8], torn),
        ("flipped-pixel.png", flipped(rgb, 60), checksum),
        ("flipped-size.png", flipped(rgb, 19), checksum),
        ("flipped-palette.png", flipped(palette, palette.index(b"PLTE") + 9), checksum),
        ("flipped-length.png", flipped(rgb, 33, 6), "checksum|truncated"),
        ("long-chunk.png", rgb[:33] + b"\xff\xff\xff\xffIDAT" + rgb[41:], torn),
        ("no-pixels.png", png(header(4, 4)), "."),
        ("few-pixels.png", png(header(40, 40), grey_rows(40, 10)), IMAGE),  # whole, but for its last rows: black
        ("no-palette.png", no_palette, "without its palette"),
        ("no-header.png", png(grey_rows(4, 4)), "."),
        ("depth-3.png", png(header(4, 4, depth=3), grey_rows(4, 4)), "."),
        ("no-width.png", png(header(0, 4), grey_rows(1, 4)), "."),
        ("not-deflate.png", png(header(4, 4), chunk(b"IDAT", b"not deflate at all")), "."),
        ("half.jpg", jpeg[: len(jpeg) // 2], torn),
        ("less-20.jpg", jpeg[:-20], torn),
        ("head.jpg", jpeg[:200], "."),
        ("magic.jpg", b"\xff\xd8\xff\xe0", "."),
        ("no-rows.jpg", _with_jpeg_size(jpeg, 0, 30), "."),
        ("more-rows.jpg", _with_jpeg_size(jpeg, 4000, 300), IMAGE),  # libjpeg fills it up with grey
        ("half.webp", webp[: len(webp) // 2], "."),
        ("head.webp", webp[:30], "."),
        ("half.bmp", bmp[: len(bmp) // 2], torn),
        ("no-bits.bmp", bmp[:28] + b"\0\0" + bmp[30:], "."),
        ("no-header.bmp", bmp[:20], "."),
    ]


def _chunk_in(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind) - 4
    return data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]


def _with_jpeg_size(data: bytes, height: int, width: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def bombs() -> list[Case]:
    rgb, jpeg, bmp = encoded(picture()), encoded(picture(), "JPEG"), encoded(picture(), "BMP")
    zeros = deflated_zeros(300)
    huge_webp = encoded(picture(), "WEBP", lossless=True)
    at = huge_webp.index(b"VP8L") + 9
    return [
        ("pixels-60000.png", png(header(60000, 60000), grey_rows(4, 4)), "more than 67108864 pixels"),
        ("pixels-9000.png", png(header(9000, 8000), grey_rows(4, 4)), "9000x8000 is more than 67108864 pixels"),
        ("pixels.jpg", _with_jpeg_size(jpeg, 65500, 65500), "more than 67108864 pixels"),
        ("pixels.webp", huge_webp[:at] + b"\xff\xff\xff\x0f" + huge_webp[at + 4 :], "."),
        ("pixels.bmp", bmp[:18] + struct.pack("<ii", 2**30, 2**30) + bmp[26:], "more than 67108864 pixels"),
        ("whole-8000.png", png(header(8000, 8000, 1), _bit_rows(8000, 8000)), IMAGE),
        ("whole-rgba.png", png(header(8192, 8192, 8, 6), _zero_rows(8192, 8192, 4)), IMAGE),
        ("whole-wide.png", png(header(8192, 8192, 16, 0), _zero_rows(8192, 8192, 2)), IMAGE),
        ("aspect-down.png", png(header(1, 20000), grey_rows(1, 20000)), "1x20000 is longer than 64:1"),
        ("aspect-across.png", png(header(20000, 1), grey_rows(20000, 1)), "20000x1 is longer than 64:1"),
        ("text.png", behind_header(rgb, chunk(b"zTXt", b"Comment\0\0" + zeros)), IMAGE),
        ("international.png", behind_header(rgb, chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)), IMAGE),
        ("profile.png", behind_header(rgb, chunk(b"iCCP", b"sRGB\0\0" + zeros)), IMAGE),
        ("as-exif.png", behind_header(rgb, chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros)), IMAGE),
        ("surplus.png", png(header(4, 4), chunk(b"IDAT", zeros)), IMAGE),
        ("many-texts.png", behind_header(rgb, chunk(b"tEXt", b"k\0" + b"v" * 900) * 20_000), IMAGE),
    ]


def _bit_rows(width: int, height: int) -> bytes:
    return chunk(b"IDAT", zlib.compress((b"\0" + bytes(width // 8)) * height, 1))


def _zero_rows(width: int, height: int, sample_bytes: int) -> bytes:
    packer = zlib.compressobj(1)
    row = b"\0" + bytes(width * sample_bytes)
    return chunk(b"IDAT", b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()]))


def animated() -> list[Case]:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    return [
        ("moving.png", encoded(frames[0], "PNG", **more), "animated, 3 frames"),
        ("moving.webp", encoded(frames[0], "WEBP", **more), "animated, 3 frames"),
        ("moving-inside.png", encoded(frames[0], "GIF", **more), f"a GIF, {NOT_ONE}"),
        ("moving.gif", encoded(frames[0], "GIF", **more), SKIPPED),
    ]


def special_files() -> list[Case]:
    def large(path: Path) -> None:
        with path.open("wb") as stream:  # sparse
            stream.write(encoded(picture()))
            stream.truncate(200_000_000)

    def a_socket(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)

    return [
        ("pipe.png", lambda path: os.mkfifo(path), "not a regular file"),
        ("socket.png", a_socket, "not a regular file"),
        ("zero.png", lambda path: path.symlink_to("/dev/zero"), "a link that leads outside"),
        ("outside.png", lambda path: path.symlink_to(__file__), "a link that leads outside"),
        ("nowhere.png", lambda path: path.symlink_to("gone.png"), "a link that leads nowhere"),
        ("loop.png", lambda path: path.symlink_to("loop.png"), "a link that leads nowhere"),
        ("up.png", lambda path: path.symlink_to(path.parent.parent), "a link to a folder"),
        ("around", lambda path: path.symlink_to("."), "a link to a folder"),
        ("folder.png", lambda path: path.mkdir(), HIDDEN),  # a folder is gone into, whatever it is called
        ("large.png", large, "200 MB are more than 134 MB"),
        ("twin.png", lambda path: os.link(path.parent / "rgb.png", path), IMAGE),
    ]


def build(root: Path, cases: list[Case]) -> None:
    """The files, in one folder."""
    root.mkdir(parents=True)
    for name, contents, _ in cases:
        if isinstance(contents, bytes):
            (root / name).write_bytes(contents)
        else:
            contents(root / name)


# ---- mutated ---------------------------------------------------------------------------------------------------------


def mutated(num: int, seed: int = 0) -> dict[str, bytes]:
    """Valid images with flipped bits, other bytes, cuts, gaps and copies of themselves in them."""
    rng = np.random.RandomState(seed)
    originals = [(name, data) for name, data, _ in good() if isinstance(data, bytes)]
    made = {}
    for k in range(num):
        name, data = originals[k % len(originals)]
        # Half of the changes fall on the beginning, which describes the rest.
        at = rng.randint(len(data)) if k % 2 else rng.randint(min(len(data), 200))
        made[f"{k:04d}-{name}"] = changed(data, at, (k // len(originals)) % 7, rng)
    return made


def repaired(data: bytes) -> bytes:
    """A mutated PNG with checksums that match again, so that its decoder meets what was changed."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        stop = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if stop + 4 > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : stop]))
        at = stop + 4
    return b"".join([*parts, data[at:]])


# ---- looking at them -------------------------------------------------------------------------------------------------


def verdict(read: Callable[[str], bytes], name: str) -> dict[str, Any]:
    """What is said of one file, or the fault; and the seconds that took."""
    from adm.data._image_look import Look, looks

    started = time.perf_counter()
    try:
        ((_, found),) = looks(read, [name])
        said = {"said": IMAGE if isinstance(found, Look) else SKIPPED if found is None else found}
    except BaseException as error:
        said = {"fault": f"{type(error).__name__}: {error}"}
    return said | {"seconds": time.perf_counter() - started}


def before_training(root: Path) -> dict[str, Any]:
    """What the scan says of the folder, and one batch of all that it leaves."""
    from adm.data import Loader
    from adm.data.folder import Folder

    folder = Folder(root, channels=3, labels_from="none", skip_bad=True)
    loader = Loader(folder, 16, len(folder), seed=0)
    images = loader.batch(0).images
    return {"images": list(folder.paths), "bad": folder.bad, "finite": bool(images.isfinite().all())}


def main() -> None:
    from adm.data._file_tree import FolderTree

    warnings.simplefilter("ignore")  # what Pillow remarks, as the command line leaves it out
    root = Path(sys.argv[1])
    tree = FolderTree(root)
    before = forget_peak()
    end_hangs()
    verdicts = {}
    with tree.opened() as read:
        for name in sorted(tree.listing.top + tree.listing.below):
            signal.alarm(SECONDS)
            verdicts[name] = verdict(read, name)
    signal.alarm(20 * SECONDS)
    scanned = before_training(root)
    signal.alarm(0)
    json.dump({"peak": peak() - before, "verdicts": verdicts, "scan": scanned}, sys.stdout)


if __name__ == "__main__":
    main()
