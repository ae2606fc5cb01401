"""Files that are not what they say: 60 made by hand, any number mutated from valid ones, and what reading them does.

As a program: reads every file given on stdin (one path a line) and prints, as JSON, the outcome of each and how far
the peak memory rose above that of the program before.
"""

from __future__ import annotations

import io
import json
import signal
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mutations import changed, end_hangs, forget_peak, patched, peak

SECONDS = 10
DATA, DAMAGED = 3, 4
RNG = np.random.RandomState(5)
IMAGES = RNG.randint(0, 256, (13, 6, 5, 3), np.uint8)
LABELS = RNG.randint(0, 7, 13).astype(np.int64)
MU = RNG.standard_normal(4)
SIGMA = np.cov(RNG.standard_normal((4, 30)))


# ---- how files are put together --------------------------------------------------------------------------------------


def npy(array: Any = IMAGES, header: str | bytes | None = None, version: int = 1, data: bytes | None = None) -> bytes:
    """An .npy whose header may say anything."""
    array = np.asarray(array)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    if header is None:
        header = f"{{'descr': {array.dtype.str!r}, 'fortran_order': {fortran}, 'shape': {array.shape}, }}"
    text = header.encode() if isinstance(header, str) else header
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    contents = array.tobytes(order="F" if fortran else "C") if data is None else data
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + contents


def archive(
    entries: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED, piped: bool = False, wide: bool = False
) -> bytes:
    """A zip archive; piped: written to what cannot seek, so that sizes follow the contents."""
    stream = io.BytesIO()
    target: Any = _Pipe(stream) if piped else stream
    with zipfile.ZipFile(target, "w", method) as made:
        for name, contents in entries:
            with made.open(_info(name, method), "w", force_zip64=wide) as member:
                member.write(contents)
    return stream.getvalue()


def _info(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


class _Pipe:
    def __init__(self, stream: io.BytesIO) -> None:
        self.write, self.flush = stream.write, stream.flush


def npz(images: bytes | None = None, method: int = zipfile.ZIP_STORED, **more: Any) -> bytes:
    """The layout: arr_0 first, then the others as arrays or as bytes."""
    entries = [("arr_0.npy", npy() if images is None else images)]
    entries += [(f"{name}.npy", a if isinstance(a, bytes) else npy(a)) for name, a in more.items()]
    return archive(entries, method)


def directory_of(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def end_of(data: bytes) -> int:
    return data.rindex(b"PK\x05\x06")


def as_zip64(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """An archive with every number in its wide form, as if it held more than 4 GB."""
    limit, zipfile.ZIP64_LIMIT = zipfile.ZIP64_LIMIT, 1
    try:
        return archive(entries, wide=True)
    finally:
        zipfile.ZIP64_LIMIT = limit


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


# ---- valid ones -----------------------------------------------------------------------------------------------------


def valid() -> dict[str, bytes]:
    """Every way to write the same images (and, in most, the same labels and statistics)."""
    f = np.asfortranarray(IMAGES)
    statistics = {"mu": MU, "sigma": SIGMA}
    deflated = zipfile.ZIP_DEFLATED
    return {
        "savez": saved(np.savez, IMAGES, LABELS, **statistics),
        "compressed": saved(np.savez_compressed, IMAGES, LABELS, **statistics),
        "fortran": saved(np.savez, f, LABELS, **statistics),
        "fortran-compressed": saved(np.savez_compressed, f, LABELS, **statistics),
        "version-2": npz(npy(version=2), arr_1=LABELS, **statistics),
        "version-3": npz(npy(version=3), deflated, arr_1=LABELS, **statistics),
        "piped": archive([("arr_0.npy", npy()), ("arr_1.npy", npy(LABELS))], piped=True),
        "zip64": as_zip64([("arr_0.npy", npy()), ("arr_1.npy", npy(LABELS))]),
        "big-endian": saved(np.savez, IMAGES.astype(">i4"), LABELS.astype(">i8"), **statistics),
        "int64": saved(np.savez_compressed, IMAGES.astype(np.int64), LABELS.astype(np.uint8)),
        "labels-first": archive([("arr_1.npy", npy(LABELS)), ("arr_0.npy", npy())]),
        "other-arrays": npz(arr_1=LABELS, extra=np.zeros(3), **statistics),
        "with-a-text": archive([("arr_0.npy", npy()), ("arr_1.npy", npy(LABELS)), ("README", b"hello")]),
        "keys-in-another-order": npz(
            npy(header=f"{{'shape': {IMAGES.shape}, 'fortran_order': False, 'descr': '|u1'}}"), arr_1=LABELS
        ),
    }


# ---- hostile ones ---------------------------------------------------------------------------------------------------


def hand_made() -> dict[str, tuple[int, str, bytes]]:
    """(exit code, what the line says, bytes) by name; every one is wrong in one way."""
    good = npz(arr_1=LABELS)
    deflated = npz(method=zipfile.ZIP_DEFLATED, arr_1=LABELS)
    return {**_wrong_arrays(), **_wrong_statistics(), **_lying_headers(), **_wrong_archives(good, deflated)}


def _wrong_arrays() -> dict[str, tuple[int, str, bytes]]:
    unit = (IMAGES / 255).astype(np.float32)
    return {
        "float-0-1": (DATA, r"float32 in \[0, 1\].*x \* 255", npz(npy(unit))),
        "float-1-1": (DATA, r"float64 in \[-1, 1\].*x \+ 1", npz(npy(np.float64(unit) * 2 - 1))),
        "float-0-255": (DATA, r"float16 in \[0, 255\].*round", npz(npy(IMAGES.astype(np.float16)))),
        "float-nan": (DATA, "float32 without a finite number", npz(npy(unit * np.nan))),
        "bool": (DATA, "bool, expected uint8", npz(npy(IMAGES > 127))),
        "complex": (DATA, "complex64, expected uint8", npz(npy(IMAGES.astype(np.complex64)))),
        "text": (DATA, "expected uint8", npz(npy(np.full((2, 4, 4, 3), "ab")))),
        "int-negative": (DATA, r"int16 in -1\.\.", npz(npy(IMAGES.astype(np.int16) - 1 - IMAGES.min()))),
        "int-too-large": (DATA, r"\.\.510", npz(npy(IMAGES.astype(np.int32) * 2 * 255 // IMAGES.max()))),
        "int-zero-one": (DATA, r"int64 in 0\.\.1", npz(npy((IMAGES > 127).astype(np.int64)))),
        "nchw": (DATA, r"\(N, C, H, W\).*transpose", npz(npy(IMAGES.transpose(0, 3, 1, 2).copy()))),
        "grey-3d": (DATA, r"arr\[\.\.\., None\]", npz(npy(IMAGES[..., 0].copy()))),
        "rgba": (DATA, "1 .grey. or 3 .RGB. channels", npz(npy(np.zeros((2, 4, 4, 4), np.uint8)))),
        "flat": (DATA, r"expected \(N, H, W, C\)", npz(npy(IMAGES.reshape(13, -1)))),
        "scalar": (DATA, r"expected \(N, H, W, C\)", npz(npy(np.uint8(3)))),
        "none": (DATA, "no images", npz(npy(IMAGES[:0]))),
        "zero-width": (DATA, "sides must be at least 1", npz(npy(IMAGES[:, :, :0]))),
        "too-long": (DATA, "longer than 64:1", npz(npy(np.zeros((1, 2, 400, 3), np.uint8)))),
        "labels-float": (DATA, "arr_1.*float64, expected integers", npz(arr_1=LABELS.astype(float))),
        "labels-short": (DATA, r"arr_1.*\(12,\), expected \(13,\)", npz(arr_1=LABELS[:12])),
        "labels-one-hot": (DATA, r"arr_1.*\(13, 7\)", npz(arr_1=np.eye(7, dtype=int)[LABELS])),
        "labels-negative": (DATA, r"-5\.\.", npz(arr_1=LABELS - 5 - LABELS.min())),
        "labels-huge": (DATA, r"1000000, expected 0\.\.999999", npz(arr_1=LABELS + 1_000_000 - LABELS.max())),
        "labels-objects": (DAMAGED, "arr_1.*pickled", npz(arr_1=saved(np.save, np.array([{}] * 13)))),
        "other-name": (DATA, "'images', and no arr_0", saved(np.savez, images=IMAGES)),
        "no-arrays": (DATA, "no arrays", archive([("README.txt", b"hello")])),
        "statistics-only": (DATA, "holds statistics, no images", saved(np.savez, mu=MU, sigma=SIGMA)),
    }


def _wrong_statistics() -> dict[str, tuple[int, str, bytes]]:
    nan = SIGMA.copy()
    nan[1, 2] = np.nan
    return {
        "mu-alone": (DATA, "mu without sigma", npz(mu=MU)),
        "mu-s-alone": (DATA, "mu_s without mu", npz(mu_s=MU, sigma_s=SIGMA)),
        "mu-2d": (DATA, r"mu is .*expected \(D,\)", npz(mu=MU[None], sigma=SIGMA)),
        "mu-inf": (DATA, "mu holds NaN", npz(mu=np.full(4, np.inf), sigma=SIGMA)),
        "mu-ints": (DATA, "mu is int64", npz(mu=np.arange(4), sigma=SIGMA)),
        "sigma-nan": (DATA, "sigma holds NaN", npz(mu=MU, sigma=nan)),
        "sigma-other-size": (DATA, "do not belong together", npz(mu=MU, sigma=SIGMA[:3, :3])),
        "sigma-not-square": (DATA, r"sigma is .*expected \(D, D\)", npz(mu=MU, sigma=SIGMA[:3])),
        "sigma-asymmetric": (DATA, "not symmetric", npz(mu=MU, sigma=SIGMA + np.triu(np.ones((4, 4)), 1))),
        "sigma-negative": (DATA, "negative variances", npz(mu=MU, sigma=-SIGMA)),
        "sigma-huge": (DATA, "with D from 1 to 4096", npz(mu=np.zeros(9000), sigma=_zeros((9000, 9000)))),
    }


def _zeros(shape: tuple[int, ...]) -> bytes:
    return npy(header=f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}", data=bytes(1000))


def _header(descr: str = "|u1", fortran: str = "False", shape: str = str(IMAGES.shape)) -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"


def _lying_headers() -> dict[str, tuple[int, str, bytes]]:
    code = "__import__('os').system('echo no')"
    return {
        "objects": (DAMAGED, "pickled Python objects", saved(np.savez, np.array([{}, 3]))),
        "header-10-12": (DAMAGED, "but holds", npz(npy(header=_header(shape="(1000000000000, 6, 5, 3)"), data=b""))),
        "header-overflow": (
            DAMAGED,
            "shape",
            npz(npy(header=_header(shape="(18446744073709551615,)"))),
        ),
        "header-many-digits": (DAMAGED, "shape", npz(npy(header=_header(shape="(" + "9" * 60 + ", 6, 5, 3)")))),
        "header-one-less": (DAMAGED, "but holds", npz(npy(header=_header(shape="(12, 6, 5, 3)")))),
        "header-negative": (DAMAGED, "not one of numpy's", npz(npy(header=_header(shape="(-13, 6, 5, 3)")))),
        "header-code": (DAMAGED, "not one of numpy's", npz(npy(header=_header(shape=code)))),
        "header-deep": (DAMAGED, "not one of numpy's", npz(npy(header="(" * 9000 + ")" * 6000))),
        "header-axes": (DAMAGED, "shape", npz(npy(header=_header(shape="(" + "1," * 99 + ")")))),
        "header-twice": (
            DAMAGED,
            "not one of numpy's",
            npz(npy(header="{'descr': '|u1', 'descr': '|u1', 'shape': (1,)}")),
        ),
        "header-record": (DAMAGED, "elements of type", npz(npy(header=_header().replace("'|u1'", "[('r', '|u1')]")))),
        "header-type": (DAMAGED, "elements of type", npz(npy(header=_header("u99999999")))),
        "header-length": (DAMAGED, "header of", npz(patched(npy(version=2), 8, b"\xff\xff\xff\x7f"))),
        "npy-version-9": (DAMAGED, "version 9.0", npz(patched(npy(), 6, b"\x09"))),
        "npy-magic": (DAMAGED, "no .npy array", npz(b"NUMPY!" + npy()[6:])),
        "npy-empty": (DAMAGED, "no .npy array", npz(b"")),
        "npy-cut": (DAMAGED, "but holds", npz(npy()[:-1])),
    }


def _wrong_archives(good: bytes, deflated: bytes) -> dict[str, tuple[int, str, bytes]]:
    entry, end = directory_of(good), end_of(good)
    deflated_entry = directory_of(deflated)
    bomb = npy(header=_header(shape="(14, 1024, 1024, 3)"), data=bytes(14 * 2**20 * 3))
    first_size = len(npy())
    return {
        "empty": (DAMAGED, "is empty", b""),
        "plain-text": (DAMAGED, "no .npz or .npy", b"hello, these are not the images you look for"),
        "pickle": (DAMAGED, "no .npz or .npy", b"\x80\x04\x95" + bytes(40)),
        "truncated-half": (DAMAGED, "truncated", good[: len(good) // 2]),
        "truncated-one": (DAMAGED, "truncated", good[:-1]),
        "crc-of-images": (DAMAGED, "does not match its checksum", patched(good, 700, bytes([good[700] ^ 1]))),
        "crc-of-deflated": (DAMAGED, "member 'arr_0.npy'", patched(deflated, 700, bytes([deflated[700] ^ 1]))),
        "bomb": (DAMAGED, "grows from", npz(bomb, zipfile.ZIP_DEFLATED)),
        "directory-says-less": (DAMAGED, "not what", patched(deflated, deflated_entry + 24, struct.pack("<I", 900))),
        "both-say-less": (DAMAGED, "but holds", _packed(npy(), size=first_size - 9)),
        "both-say-more": (DAMAGED, "but holds", _packed(npy(), size=first_size + 9)),
        "stored-sizes-differ": (DAMAGED, "is stored in", patched(good, entry + 24, struct.pack("<I", 9))),
        "beyond-the-file": (DAMAGED, "reaches beyond", patched(good, entry + 42, struct.pack("<I", 2**31))),
        "overlap": (DAMAGED, "overlap", _nested()),
        "local-name": (DAMAGED, "not what the directory says", patched(good, 30, b"arr_9")),
        "labels-renamed": (DAMAGED, "not what", patched(good, good.rindex(b"arr_1.npy"), b"brr_1")),
        "duplicate": (DAMAGED, "twice", good.replace(b"arr_1.npy", b"arr_0.npy")),
        "slip": (DAMAGED, "leads out", good.replace(b"arr_1.npy", b"../../npy")),
        "absolute": (DAMAGED, "leads out", good.replace(b"arr_1.npy", b"/rr_1.npy")),
        "drive": (DAMAGED, "leads out", good.replace(b"arr_1.npy", b"c:r_1.npy")),
        "encrypted": (DAMAGED, "encrypted", patched(good, entry + 8, b"\x01\x00")),
        "bzip2": (DAMAGED, "method 12", archive([("arr_0.npy", npy())], zipfile.ZIP_BZIP2)),
        "split": (DAMAGED, "split", patched(good, end + 4, b"\x01\x00")),
        "count": (DAMAGED, "member|directory", patched(good, end + 8, b"\x09\x00\x09\x00")),
        "count-less": (DAMAGED, "goes on after", patched(good, end + 8, b"\x01\x00\x01\x00")),
        "many-members": (DAMAGED, "more than 256", archive([(f"{k}.npy", b"") for k in range(300)])),
        "prefixed": (DAMAGED, "not where it says", b"#!/bin/sh\n" + good),
        "two-ends": (DAMAGED, "two zip archives", good[:-2] + struct.pack("<H", 22) + good[-22:]),
        "deflate-garbage": (DAMAGED, "member 'arr_0.npy'", patched(deflated, 60, b"\xff" * 40)),
        "deflate-tail": (DAMAGED, "deflate stream", _packed(npy(), tail=b"hidden")),
        "deflate-more": (DAMAGED, "inflates to more", _packed(npy() + b"hidden", size=first_size)),
        "deflate-less": (DAMAGED, "ends before", _packed(npy()[:-9], size=first_size)),
    }


def _nested() -> bytes:
    """The labels are a part of the images: their entry leads to a whole member inside the other one."""
    inner = archive([("arr_1.npy", npy(LABELS))])
    record = inner[: directory_of(inner)]
    images = np.frombuffer(record.ljust(13 * 8 * 8 * 3, b"."), np.uint8).reshape(13, 8, 8, 3)
    good = npz(npy(images), arr_1=LABELS)
    entry = good.index(b"PK\x01\x02", directory_of(good) + 4)
    return patched(good, entry + 42, struct.pack("<I", good.index(record)))


def _packed(contents: bytes, size: int | None = None, tail: bytes = b"") -> bytes:
    """An archive of one deflated arr_0 that says it holds `size` bytes, in both places, and has a tail."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(contents) + packer.flush() + tail
    name = b"arr_0.npy"
    size = len(contents) if size is None else size
    numbers = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, zlib.crc32(contents), len(packed), size, len(name), 0)
    local = b"PK\x03\x04" + numbers + name + packed
    directory = b"PK\x01\x02" + struct.pack("<H", 20) + numbers + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + directory + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)


def mutated(num: int, seed: int = 0) -> dict[str, bytes]:
    """Valid archives with flipped bits, other bytes, cuts, gaps and copies of themselves in them."""
    rng = np.random.RandomState(seed)
    originals = list(valid().items())
    made = {}
    for k in range(num):
        name, data = originals[k % len(originals)]
        # Half of the changes fall on what describes the contents, which is the smaller part.
        at = rng.randint(len(data)) if k % 2 else len(data) - 1 - rng.randint(min(len(data), 400))
        made[f"{name}-{k}"] = changed(data, at, (k // len(originals)) % 7, rng)
    return made


# ---- reading --------------------------------------------------------------------------------------------------------


def outcome(path: Path) -> dict[str, Any]:
    """What becomes of one file: its arrays' bytes, or the error; and the seconds that took."""
    import hashlib

    from adm.data import open_images, stored_statistics
    from adm.runtime.errors import AdmError

    started = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        statistics = stored_statistics(path)
        source = open_images(path)
        digest = hashlib.sha256()
        for batch in source.batches(5):
            digest.update(batch.tobytes())
        result["images"] = digest.hexdigest()
        result["labels"] = None if source.labels is None else source.labels.tolist()
        result["statistics"] = None if statistics is None else {n: a.tolist() for n, a in statistics.items()}
    except AdmError as error:
        result |= {"code": error.exit_code, "line": str(error)}
    except Exception as error:
        result |= {"fault": f"{type(error).__name__}: {error}"}
    return result | {"seconds": time.perf_counter() - started}


def main() -> None:
    import adm.data  # noqa: F401  the program's own memory

    end_hangs()
    before = forget_peak()
    outcomes = {}
    for line in sys.stdin.read().splitlines():
        signal.alarm(SECONDS)
        outcomes[Path(line).stem] = outcome(Path(line))
        signal.alarm(0)
    json.dump({"peak": peak() - before, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
