"""Files that nobody should trust, each made by a few lines: pickles that ask for code, and files that lie.

What would run does nothing worse than `true`, so that the twin, a reader that does run it, can be shown to be caught.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
ROOT = "archive"


@dataclass(frozen=True)
class Hostile:
    """A file to be refused: what makes it at a path, and words that the refusal must contain."""

    name: str
    make: bytes | Callable[[Path], object]
    says: str

    def write(self, directory: Path) -> Path:
        path = directory / self.name
        if isinstance(self.make, bytes):
            path.write_bytes(self.make)
        else:
            self.make(path)
        return path


# ---- pickles, instruction by instruction ----------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def many(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return many(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + b"R"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


EMPTY = name("collections", "OrderedDict") + b")R"


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 6, legacy: bool = False) -> bytes:
    fields = [text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)]
    return many(*fields, *([b"N"] if legacy else [])) + b"Q"


def tensor(size=(2, 3), stride=(3, 1), offset: int = 0, at: bytes | None = None) -> bytes:
    """As torch writes it; size and stride may be ready-made instructions."""
    shape = size if isinstance(size, bytes) else numbers(size)
    steps = stride if isinstance(stride, bytes) else numbers(stride)
    where = offset if isinstance(offset, bytes) else number(offset)
    function = name("torch._utils", "_rebuild_tensor_v2")
    return call(function, storage() if at is None else at, where, shape, steps, b"\x89", EMPTY)


VALID = program(mapping(weight=tensor()))
DATA = {"0": struct.pack("<6f", *range(6))}


# ---- containers ------------------------------------------------------------------------------------


def torch_zip(pickled: bytes = VALID, data: dict[str, bytes] = DATA, extra: dict[str, bytes] | None = None) -> bytes:
    """A zip as torch writes it, with these parts."""
    members = {"data.pkl": pickled, "byteorder": b"little"}
    members |= {f"data/{key}": value for key, value in data.items()} | {"version": b"3\n"} | (extra or {})
    return plain_zip([(f"{ROOT}/{member}", value) for member, value in members.items()])


def plain_zip(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for member, data in members:
            info = zipfile.ZipInfo(member)
            info.compress_type = method
            archive.writestr(info, data)
    return stream.getvalue()


def legacy(pickled: bytes, data: dict[str, bytes] | None = None, keys: object = None, version: int = 1001) -> bytes:
    data = {} if data is None else data
    head = MAGIC + pickle.dumps(version, 2) + pickle.dumps({"little_endian": True}, 2) + pickled
    head += pickle.dumps(list(data) if keys is None else keys, 2)
    return head + b"".join(struct.pack("<q", len(value) // 4) + value for value in data.values())


LEGACY = legacy(program(mapping(weight=tensor(at=storage(legacy=True)))), DATA)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(start: int, end: int, shape: list[object] | None = None, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# ---- code ------------------------------------------------------------------------------------------

# What is asked for, and the arguments with which it would run.
CALLS: dict[str, tuple[bytes, ...]] = {
    "posix.system": (text("true"),),
    "os.system": (text("true"),),
    "builtins.eval": (text("1"),),
    "builtins.exec": (text("pass"),),
    "builtins.__import__": (text("this_module_is_not_there"),),
    "builtins.getattr": (name("os", "system"), text("__name__")),
    "builtins.open": (text(os.devnull), text("w")),
    "builtins.compile": (text("1"), text("<file>"), text("eval")),
    "functools.partial": (name("os", "system"), text("true")),
    "subprocess.Popen": (b"(" + text("true") + b"l",),
    "importlib.import_module": (text("this_module_is_not_there"),),
    "socket.socket": (),
    "codecs.encode": (text("a"), text("rot13")),
    "copyreg._reconstructor": (name("builtins", "object"), name("builtins", "object"), b"N"),
    "numpy.core.multiarray.scalar": (name("numpy", "dtype"), text("1234")),
    "argparse.Namespace": (),
    "dnnlib.util.EasyDict": (),
    "torch_utils.persistence._reconstruct_persistent_obj": (mapping(module_src=text("import os")),),
    "torch.storage._load_from_bytes": (text("abc"),),
    "torch.nn.modules.conv.Conv2d": (number(3), number(3), number(3)),
    "torch.hub.load": (text("a"), text("b")),
    "shutil.rmtree": (text("/nowhere-at-all"),),
}


def code() -> Iterator[Hostile]:
    for called, arguments in CALLS.items():
        module, _, attribute = called.rpartition(".")
        body = program(mapping(weight=tensor(), evil=call(name(module, attribute), *arguments)))
        old = program(mapping(evil=call(name(module, attribute), *arguments)))
        yield Hostile(f"code-zip-{called}.pt", torch_zip(body), called)
        yield Hostile(f"code-legacy-{called}.pt", legacy(old), called)
        yield Hostile(f"code-bare-{called}.pkl", old, called)
    system = name("posix", "system")
    machine = MAGIC + pickle.dumps(1001, 2) + program(call(system, text("true")))
    yield Hostile("code-in-the-machine-pickle.pt", machine, "posix.system")
    yield Hostile("code-in-the-keys.pt", legacy(program(EMPTY), {}, Evil()), "posix.system")
    yield Hostile("code-after-valid.pt", torch_zip(VALID + program(call(system, text("true")))), "behind the end")
    yield Hostile("code-protocol-0.pkl", b"cposix\nsystem\n(S'true'\ntR.", "posix.system")
    yield Hostile("code-protocol-0-inst.pkl", b"(S'true'\niposix\nsystem\n.", "posix.system")
    yield Hostile("code-protocol-4.pkl", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system")
    yield Hostile("code-inst.pt", torch_zip(program(b"(" + text("true") + b"iposix\nsystem\n")), "posix.system")
    yield Hostile("code-obj.pt", torch_zip(program(b"(" + system + text("true") + b"o")), "posix.system")
    yield Hostile("code-newobj.pt", torch_zip(program(name("collections", "OrderedDict") + b")\x81")), "NEWOBJ")
    yield Hostile("code-newobj-ex.pt", torch_zip(program(EMPTY + b")}\x92")), "NEWOBJ_EX")
    both = program(many(system, name("os", "popen")))
    yield Hostile("code-names-twice.pt", torch_zip(both), "posix.system and os.popen")
    yield Hostile("code-extension.pt", torch_zip(program(b"\x82\x01")), "EXT1")
    yield Hostile("code-persid.pt", torch_zip(program(b"Pposix.system\n")), "PERSID")
    dotted = text("collections") + text("OrderedDict.fromkeys") + b"\x93"
    yield Hostile("code-dotted-name.pt", torch_zip(program(dotted)), "OrderedDict.fromkeys")
    yield Hostile("code-build.pt", torch_zip(program(EMPTY + mapping(__class__=number(1)) + b"b")), "attributes")
    yield Hostile("code-build-slots.pt", torch_zip(program(EMPTY + b"N" + mapping(a=b"N") + b"\x86b")), "attributes")
    yield Hostile("code-setstate.pt", torch_zip(program(tensor() + mapping(a=b"N") + b"b")), "values")
    hooks = program(call(name("torch._utils", "_rebuild_from_type_v2")))
    yield Hostile("code-hooks.pt", torch_zip(hooks), "asks to call torch._utils._rebuild_from_type_v2")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


# ---- bombs -----------------------------------------------------------------------------------------


def bombs() -> Iterator[Hostile]:
    def zipped(label: str, body: bytes, says: str) -> Hostile:
        return Hostile(f"bomb-{label}.pt", torch_zip(program(body), {}), says)

    yield zipped("nested-lists", b"]" * 100_000 + b"a" * 99_999, "nested")
    yield zipped("nested-tuples", b")" + b"\x85" * 100_000, "nested")
    yield zipped("nested-dicts", b"".join(b"}" + text("a") for _ in range(40)) + b"N" + b"s" * 40, "nested")
    yield zipped("nested-ordered-dicts", b"".join(EMPTY + text("a") for _ in range(40)) + b"N" + b"s" * 40, "nested")
    laugh = b"]q\0(" + b"N" * 10 + b"e"
    for level in range(1, 30):
        laugh += b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e"
    yield zipped("laughs", b"(" + laugh + b"t", "many times")
    doubling = b"Nq\0" + b"".join(b"h\0h\0\x86q\0" for _ in range(31))
    yield zipped("doubling", b"(" + doubling + b"t", "many times")
    yield zipped("holds-itself", b"]q\0h\0a", "holds itself")
    yield zipped("holds-itself-deeply", b"]q\0}" + text("a") + b"h\0sa", "holds itself")
    yield zipped("long-text", b"X\xff\xff\xff\x7f", "text of")
    yield zipped("cut-text", b"X\x00\x00\x01\x00abc", "cut short")
    yield zipped("long-integer", b"\x8a\xff" + b"\x7f" * 255, "integer of 255")
    yield zipped("longer-integer", b"\x8b\xff\xff\xff\x7f", "LONG4")
    yield zipped("integer-text", b"I" + b"9" * 5000 + b"\n", "INT")
    yield zipped("pop", b"N0", "POP")
    yield zipped("marks", b"(" * (1 << 20) + b"(", "steps")
    yield zipped("dicts", b"(" + b"}" * (1 << 20), "steps")
    pairs = b"](" + b"".join(text(str(i)) + b"N\x86" for i in range(2000)) + b"e\x85q\0"
    maker = name("collections", "OrderedDict") + b"q\x01"
    yield zipped("copies", b"(" + pairs + maker + b"h\x01h\0R" * 2000 + b"t", "steps")
    sizes = numbers((1,) * 64) + b"q\0" + name("torch", "Size") + b"q\x01h\0\x85q\2" + b"h\1h\2R" * 100_000
    yield zipped("sizes", b"(" + sizes + b"t", "steps")
    yield zipped("empty-stack", b"a", "not there")
    yield zipped("empty-stack-pop", b"\x85", "not there")
    yield zipped("below-the-mark", b"N(a", "than it has")
    yield zipped("no-mark", b"t", "not there")
    yield zipped("no-memo", b"h\x07", "not there")
    yield zipped("left-over", b"NN", "unused")
    yield zipped("left-mark", b"N(", "unused")
    yield zipped("odd-items", b"}(NNNu", "without a value")
    yield zipped("append-to-number", b"K\1K\2a", "where none can be")
    yield zipped("calls-number", b"K\1)R", "no function")
    yield zipped("calls-list", name("collections", "OrderedDict") + b"]R", "no function")
    yield zipped("bad-text", b"X\2\0\0\0\xff\xfe", "UTF-8")
    yield zipped("surrogate", b"X\3\0\0\0\xed\xa0\x80", "UTF-8")
    yield zipped("key-tuple", b"})Ns", "tuple")
    yield zipped("key-huge-integer", b"}" + number(1 << 64) + b"Ns", "int")
    yield zipped("key-float", b"}G" + b"\0" * 8 + b"Ns", "float")
    yield zipped("unknown-instruction", b"\xff", "0xff")
    yield zipped("protocol", b"\x80\x63N", "protocol 99")
    yield zipped("name-without-end", b"c" + b"a" * 5000, "without an end")
    yield Hostile("bomb-no-stop.pt", torch_zip(b"\x80\x02}", {}), "cut short")
    yield Hostile("bomb-pickle-of-20-mb.pt", torch_zip(b"N" * 20_000_000, {}), "pickle of 20 MB")


# ---- tensors that lie ------------------------------------------------------------------------------


def lies() -> Iterator[Hostile]:
    def zipped(label: str, value: bytes, says: str, data: dict[str, bytes] = DATA) -> Hostile:
        return Hostile(f"lie-{label}.pt", torch_zip(program(mapping(weight=value)), data), says)

    yield zipped("stride-bomb", tensor((1 << 38,), (0,)), "made of only 6")
    yield zipped("expanded", tensor((100, 6), (0, 1)), "made of only 6")
    yield zipped("stride", tensor((2, 3), (4, 1)), "reaches out")
    yield zipped("stride-overflow", tensor((2, 3), (1 << 61, 1)), "reaches out")
    yield zipped("negative-stride", tensor((2, 3), (-3, 1), 3), "which is none")
    yield zipped("negative-size", tensor((-2, -3)), "which is none")
    yield zipped("negative-offset", tensor(offset=-1), "which is none")
    yield zipped("offset", tensor(offset=1), "reaches out")
    yield zipped("offset-of-empty", tensor((0,), (1,), 7), "reaches out")
    yield zipped("huge-offset", tensor(offset=(1 << 63) - 1), "which is none")
    yield zipped("size", tensor((3, 3)), "reaches out")
    yield zipped("size-overflow", tensor((1 << 32, 1 << 32, 1 << 32), (0, 0, 0)), "nothing can hold")
    yield zipped("size-wraps-to-6", tensor((1 << 40, 1 << 40, 0), (1, 1, 1)), "nothing can hold")
    yield zipped("size-and-stride", tensor((2, 3), (1,)), "which is none")
    yield zipped("dimensions", tensor((1,) * 100, (1,) * 100), "which is none")
    yield zipped("size-is-bool", tensor(b"\x88\x85", (1,)), "which is none")
    yield zipped("size-is-real", tensor(b"G" + b"\0" * 8 + b"\x85", (1,)), "which is none")
    yield zipped("size-is-list", tensor(b"]", (1,)), "tensor wrongly")
    yield zipped("offset-is-text", tensor(offset=text("a")), "which is none")  # type: ignore[arg-type]
    yield zipped("no-storage", tensor(at=number(1)), "tensor wrongly")
    yield zipped("tensor-as-storage", tensor(at=tensor()), "tensor wrongly")
    yield zipped("no-arguments", call(name("torch._utils", "_rebuild_tensor_v2")), "tensor wrongly")
    yield zipped("parameter", call(name("torch._utils", "_rebuild_parameter"), text("a"), b"\x88", EMPTY), "parameter")
    yield zipped("data-short", tensor(), "and says 24", {"0": DATA["0"][:-4]})
    yield zipped("data-long", tensor(), "and says 24", {"0": DATA["0"] + b"\0"})
    yield zipped("data-missing", tensor(), "lacks", {"1": DATA["0"]})
    yield zipped("storage-huge", tensor((1,), (1,), at=storage(numel=1 << 40)), "more than the file")
    yield zipped("storage-overflow", tensor((1,), (1,), at=storage(numel=(1 << 62) - 1)), "more than the file")
    yield zipped("storage-negative", tensor(at=storage(numel=-6)), "storage wrongly")
    yield zipped("storage-many", b"(" + b"".join(storage(str(i), numel=100) for i in range(100)) + b"t", "more than")
    yield zipped("storage-outside", tensor(at=storage("../data.pkl")), "lacks")
    yield zipped("storage-key", tensor(at=many(text("storage"), name("torch", "FloatStorage"), b"NNNQ")), "refers")
    twice = many(tensor(), tensor((3,), (1,), at=storage(kind="IntStorage")))
    yield zipped("storage-in-two-types", twice, "twice")
    yield zipped("storage-bare", storage(), "storage by itself")
    yield zipped("storage-type-bare", name("torch", "FloatStorage"), "by itself")
    yield zipped("function-bare", name("torch._utils", "_rebuild_tensor_v2"), "function by itself")
    yield zipped("persistent-number", b"K\1Q", "refers")
    yield zipped("persistent-module", many(text("module"), text("a"), text("b"), text("c")) + b"Q", "refers")
    yield zipped("complex", tensor(at=storage(kind="ComplexFloatStorage")), "ComplexFloatStorage")
    yield zipped("quantized", tensor(at=storage(kind="QInt8Storage")), "QInt8Storage")
    maker = name("torch._utils", "_rebuild_tensor_v2") + b"q\0"
    fields = many(storage(), number(0), b"))\x89", EMPTY) + b"q\1"
    yield zipped("tensors-many", b"(" + maker + fields + b"h\0h\1R" * 60_000 + b"t", "50,000 tensors")
    yield Hostile("lie-sharing.pt", shared_many_times(), "many times over")


def shared_many_times() -> bytes:
    """1,000 names of the same 400,000 bytes: nothing to hold, 400 MB to whoever copies or casts them."""
    stream = io.BytesIO()
    flat = torch.zeros(100_000)
    torch.save({str(i): flat[:] for i in range(1000)}, stream)
    return stream.getvalue()


# ---- zips that lie ---------------------------------------------------------------------------------


def saved() -> bytes:
    """A file of torch.save itself."""
    stream = io.BytesIO()
    torch.save({"weight": torch.arange(600.0).view(20, 30), "bias": torch.arange(20)}, stream)
    return stream.getvalue()


def sealed(data: bytes, count: int, size: int, start: int, comment: bytes = b"") -> bytes:
    return data + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, len(comment)) + comment


def record(member: str, data: bytes, at: int = 0, **said: int) -> tuple[bytes, bytes]:
    """A local header with its data, and the line of the directory; ``said`` changes what the latter says."""
    raw = member.encode()
    crc, size = zlib.crc32(data), len(data)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, size, size, len(raw), 0) + raw + data
    fields = {"flags": 0, "method": 0, "crc": crc, "packed": size, "size": size, "disk": 0, "header": at} | said
    line = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 20, 20, fields["flags"], fields["method"], 0, 33, fields["crc"], fields["packed"],
        fields["size"], len(raw), 0, 0, fields["disk"], 0, 0, fields["header"],
    )  # fmt: skip
    return local, line + raw


def hand_zip(change: str = "", members: int = 3, gap: bytes = b"", before: bytes = b"", **said: int) -> bytes:
    """A zip written field by field, hiding ``gap`` and ``before``; ``said`` is what the directory says of one."""
    parts = {"data.pkl": VALID, "data/0": DATA["0"], "version": b"3\n"}
    body, directory = before, b""
    for member, data in list(parts.items())[:members]:
        changed = said if change and member.endswith(change) else {}
        local, line = record(f"{ROOT}/{member}", data, len(body), **changed)
        body += local + gap
        directory += line
    return sealed(body + directory, members, len(directory), len(body))


def zips() -> Iterator[Hostile]:
    valid, real = torch_zip(), saved()
    end = len(valid) - 22

    def case(label: str, data: bytes, says: str) -> Hostile:
        return Hostile(f"zip-{label}.pt", data, says)

    deflated = plain_zip([(f"{ROOT}/data.pkl", VALID), (f"{ROOT}/data/0", bytes(24))], zipfile.ZIP_DEFLATED)
    yield case("deflated", deflated, "compressed")
    bomb = plain_zip([(f"{ROOT}/data.pkl", VALID), (f"{ROOT}/data/0", bytes(5_000_000))], zipfile.ZIP_DEFLATED)
    yield case("deflated-bomb", bomb, "compressed")
    yield case("lzma", plain_zip([(f"{ROOT}/data.pkl", VALID)], zipfile.ZIP_LZMA), "compressed")
    local, line = record(f"{ROOT}/data.pkl", VALID)
    second, other = record(f"{ROOT}/data.pkl", program(call(name("posix", "system"), text("true"))), len(local))
    duplicate = sealed(local + second + line + other, 2, len(line + other), len(local + second))
    yield case("duplicate", duplicate, "two members")
    yield case("same-header-twice", sealed(local + line + line, 2, 2 * len(line), len(local)), "larger or smaller")
    yield case("overlap", hand_zip("data/0", header=10), "larger or smaller")
    yield case("gap", hand_zip(gap=b"MZ hidden"), "larger or smaller")
    yield case("before", b"\x7fELF" + valid, "program")
    yield case("before-hidden", hand_zip(before=b"PK\3\4 hidden"), "before its first member")
    yield case("before-shell", b"#!/bin/sh\ntrue\n" + valid, "no file of torch")
    yield case("behind", valid + b"\0", "behind its end")
    yield case("two-ends", valid + valid[end:], "not where it says")
    yield case("two-zips", valid + real, "not where it says")
    yield case("comment", patched(valid, len(valid) - 2, b"\4\0") + b"evil", "behind its end")
    yield case("comment-promised", patched(valid, len(valid) - 2, b"\4\0"), "behind its end")
    yield case("crc-of-data", patched(real, real.index(b"data/0") + 200, b"\x55"), "checksum")
    yield case("crc-of-pickle", hand_zip("data.pkl", crc=1), "twice and differently")
    unused = torch_zip(extra={"data/9": b"abcd" * 9})
    yield case("crc-of-unused-data", unused.replace(b"abcdabcd", b"abcdabce", 1), "checksum")
    yield case("encrypted", hand_zip("data/0", flags=1), "encrypted")
    yield case("strongly-encrypted", hand_zip("data/0", flags=0x41), "encrypted")
    yield case("method-in-directory", hand_zip("data/0", method=8), "compressed")
    yield case("method-in-header", patched(valid, 8, b"\x08\0"), "differently")
    yield case("size-in-directory", hand_zip("data/0", size=1 << 31, packed=1 << 31), "differently")
    yield case("sizes-differ", hand_zip("data/0", size=1 << 31), "two sizes")
    yield case("size-64", hand_zip("data/0", size=0xFFFFFFFF, packed=0xFFFFFFFF), "differently")
    yield case("size-in-header", patched(valid, 18, b"\1\0\0\0\1\0\0\0"), "differently")
    yield case("name-in-header", patched(valid, 30, b"b"), "differently")
    yield case("disk", hand_zip("data/0", disk=1), "damaged directory")
    yield case("header-outside", hand_zip("version", header=1 << 30), "larger or smaller")
    yield case("count-low", patched(valid, end + 8, b"\1\0\1\0"), "more members")
    yield case("count-high", patched(valid, end + 8, b"\x50\0\x50\0"), "fewer members")
    yield case("count-zero", patched(valid, end + 8, b"\0\0\0\0"), "0 members")
    yield case("counts-differ", patched(valid, end + 8, b"\1\0"), "not where it says")
    yield case("directory-elsewhere", patched(valid, end + 16, b"\0\0\0\0"), "not where it says")
    yield case("directory-outside", patched(valid, end + 12, b"\xff\xff\xff\x7f"), "not where it says")
    yield case("end-64-differs", patched(real, len(real) - 22 + 12, b"\1\0"), "differ")
    yield case("end-64-elsewhere", patched(real, len(real) - 42 + 8, b"\1"), "not where it says")
    yield case("descriptor-crc", patched(real, real.index(b"PK\7\x08") + 4, b"\0\0\0\0"), "differently")
    yield case("descriptor", real.replace(b"PK\7\x08", b"PK\7\x09", 1), "differently")
    yield case("cut-end", real[:-1], "cut short")
    yield case("cut-half", real[: len(real) // 2], "cut short")
    yield case("cut-start", real[64:], "more than the file has left")
    yield case("only-end", sealed(b"PK", 0, 0, 2), "0 members")
    yield case("only-magic", b"PK\3\4", "cut short")
    yield case("escapes", plain_zip([("../data.pkl", VALID)]), "of the name")
    yield case("absolute", plain_zip([("/data.pkl", VALID)]), "of the name")
    yield case("backslash", plain_zip([("a\\data.pkl", VALID)]), "of the name")
    yield case("two-roots", plain_zip([("a/data.pkl", VALID), ("b/data.pkl", VALID)]), "did not write")
    yield case("no-root", plain_zip([("data.pkl", VALID)]), "did not write")
    yield case("documents", plain_zip([("word/document.xml", b"<a/>"), ("[Content_Types].xml", b"")]), "did not write")
    yield case("npz", plain_zip([("arr_0.npy", b"\x93NUMPY")]), "npz")
    yield case("torchscript-hand", torch_zip(extra={"constants.pkl": program(b")"), "code/a.py": b"1"}), "TorchScript")
    yield case("package", plain_zip([("p/.data/extern_modules", b"os"), ("p/data.pkl", VALID)]), "torch.package")
    middle = plain_zip([("a/data.pkl", VALID), ("a/byteorder", b"middle"), ("a/data/0", bytes(24))])
    yield case("byteorder", middle, "byte order")
    yield case("members", plain_zip([(f"a/{i}", b"") for i in range(50_001)]), "50,001 members")
    script = {"data.pkl": program(name("__torch__", "M") + b")\x81"), "code/__torch__.py": b"class M(Module):\n"}
    yield case("torchscript", plain_zip([(f"m/{member}", data) for member, data in script.items()]), "TorchScript")


# ---- old files, other files, no files ---------------------------------------------------------------


def legacies() -> Iterator[Hostile]:
    def case(label: str, data: bytes, says: str) -> Hostile:
        return Hostile(f"legacy-{label}.pt", data, says)

    value = program(mapping(weight=tensor(at=storage(legacy=True))))
    yield case("numel", LEGACY[:-32] + struct.pack("<q", 1 << 40) + LEGACY[-24:], "and says 6")
    yield case("negative-numel", LEGACY[:-32] + struct.pack("<q", -6) + LEGACY[-24:], "and says 6")
    yield case("behind", LEGACY + b"\0" * 8, "behind its last storage")
    yield case("zip-behind", LEGACY + torch_zip(), "behind its last storage")
    yield case("cut", LEGACY[:-1], "cut short")
    yield case("cut-pickle", LEGACY[:100], "cut short")
    yield case("only-magic", MAGIC, "cut short")
    yield case("version", legacy(value, DATA, version=1002), "version 1002")
    yield case("keys-none", legacy(value, {}), "not at all")
    yield case("keys-twice", legacy(value, DATA, ["0", "0"]), "twice")
    yield case("keys-foreign", legacy(value, DATA, ["1"]), "no tensor uses")
    yield case("keys-number", legacy(value, DATA, 7), "no tensor uses")
    huge = program(mapping(weight=tensor((1,), (1,), at=storage(numel=1 << 37, legacy=True))))
    yield case("storage-huge", legacy(huge, DATA), "more than the file")
    for which, part in (("outside", (1, 4, 4)), ("negative", (1, -4, 4)), ("short", (1, 4))):
        at = storage(legacy=True).replace(b"Nt", numbers(part) + b"t")
        yield case(f"part-{which}", legacy(program(mapping(weight=tensor(at=at))), DATA), "part outside")
    yield Hostile("legacy-tar.pt", tar, "tar archive")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for member in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(member))


def safe() -> Iterator[Hostile]:
    def case(label: str, data: bytes, says: str) -> Hostile:
        return Hostile(f"safe-{label}.safetensors", data, says)

    eight = bytes(8)
    yield case("overlap", safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlaps")
    yield case("same-bytes", safetensors({"a": entry(0, 8), "b": entry(0, 8)}, eight), "overlaps")
    yield case("hole", safetensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "hole")
    yield case("hole-first", safetensors({"a": entry(4, 8)}, eight), "hole")
    yield case("behind", safetensors({"a": entry(0, 4)}, eight), "behind its data")
    yield case("cut", safetensors({"a": entry(0, 8)}, eight[:-1]), "cut short")
    twice = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}'
    yield case("duplicate", safetensors(twice, bytes(4)), "twice")
    yield case("dtype", safetensors({"a": entry(0, 8, dtype="F33")}, eight), "F33")
    yield case("dtype-is-list", safetensors({"a": entry(0, 8, dtype=[])}, eight), "write it as")
    yield case("shape", safetensors({"a": entry(0, 8, shape=[3])}, eight), "8 bytes for a")
    yield case("shape-overflow", safetensors({"a": entry(0, 8, shape=[1 << 61, 1 << 61])}, eight), "8 bytes for a")
    yield case("shape-negative", safetensors({"a": entry(0, 8, shape=[-1, -2])}, eight), "wrongly")
    yield case("shape-is-bool", safetensors({"a": entry(0, 4, shape=[True])}, bytes(4)), "wrongly")
    yield case("shape-is-real", safetensors({"a": entry(0, 4, shape=[1.0])}, bytes(4)), "wrongly")
    yield case("backwards", safetensors({"a": entry(8, 0)}, eight), "wrongly")
    yield case("outside", safetensors({"a": entry(0, 1 << 40)}, eight), "cut short")
    yield case("no-offsets", safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "wrongly")
    yield case("more-keys", safetensors({"a": entry(0, 4) | {"b": 1}}, bytes(4)), "wrongly")
    yield case("notes", safetensors({"__metadata__": {"a": 1}, "a": entry(0, 4)}, bytes(4)), "notes")
    yield case("header-cut", safetensors({"a": entry(0, 4)}, length=1000), "cut short")
    yield Hostile("safe-header-100-mb.safetensors", lambda path: sparse(path, 100_000_000), "header of 100 MB")
    yield case("header-huge", safetensors({"a": entry(0, 4)}, length=1 << 31), "cut short")
    yield case("header-json", safetensors(b'{"a": '), "damaged header")
    yield case("header-utf-8", safetensors(b'{"\xff": 1}'), "damaged header")
    yield case("header-nested", safetensors(b'{"a":' * 100_000), "damaged header")
    yield case("header-empty", safetensors(b"{}"), "empty dict")
    yield case("dimensions", safetensors({"a": entry(0, 4, shape=[1] * 99)}, bytes(4)), "wrongly")


def sparse(path: Path, header: int) -> None:
    path.write_bytes(struct.pack("<Q", header) + b"{")
    os.truncate(path, 8 + header)


def others() -> Iterator[Hostile]:
    page = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
    yield Hostile("empty.pt", b"", "is empty")
    yield Hostile("page.pt", page, "web page")
    yield Hostile("page-after-spaces.pt", b"\xef\xbb\xbf\r\n  " + page, "web page")
    yield Hostile("denied.pt", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page or XML")
    yield Hostile("notes.pt", b"these are the weights, honestly\n", "is text")
    yield Hostile("commit.pt", b"commit me\nto memory\n", "is text")
    yield Hostile("config.pt", b'{"model": "unet"}', "is text")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield Hostile("pointer.pt", pointer, "git lfs pull")
    yield Hostile("gzip.pt", b"\x1f\x8b\x08" + bytes(100), "gzip")
    yield Hostile("zeros.pt", bytes(100_000), "zeros")
    yield Hostile("noise.pt", bytes(i * 197 % 256 for i in range(5, 5000)), "no file of torch")
    yield Hostile("array.npy", b"\x93NUMPY\x01\0", "numpy array")
    yield Hostile("program.pt", b"\x7fELF" + bytes(100), "program")
    yield Hostile("picture.pt", b"\x89PNG\r\n\x1a\n" + bytes(100), "picture")
    yield Hostile("keras.pt", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5")
    yield Hostile("one-byte.pt", b"\x80", "cut short")
    yield Hostile("bare-list.pkl", pickle.dumps([1, 2], 2), "holds a list")
    yield Hostile("bare-numbers.pkl", pickle.dumps({"a": 1}, 2), "no tensors but a")
    edm = b"\x80\x04" + mapping(ema=call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), mapping()))
    yield Hostile("network-snapshot.pkl", edm + b".", "EDM or StyleGAN")
    yield Hostile("fifo.pt", os.mkfifo, "no file")
    yield Hostile("socket.pt", listening, "no file")
    yield Hostile("device.pt", lambda path: path.symlink_to("/dev/zero"), "no file")
    yield Hostile("directory.pt", Path.mkdir, "is a directory")
    yield Hostile("dcp", dcp, "torch.distributed.checkpoint")
    yield Hostile("unpacked", lambda path: (path.mkdir(), (path / "data.pkl").write_bytes(VALID)), "unpacked")


def listening(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{here}/{path.name}")  # the names of sockets are short
    server.close()
    os.close(here)
    assert stat.S_ISSOCK(path.stat().st_mode)


def dcp(path: Path) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(program(call(name("posix", "system"), text("true"))))
    (path / "__0_0.distcp").write_bytes(b"")


def contents() -> Iterator[Hostile]:
    """Files without malice that are no weights."""
    weights = {"a.weight": torch.ones(2), "a.bias": torch.ones(1)}
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    for label, value, says in (
        ("optimizer", adam, "state of Adam"),
        ("tensor", torch.ones(2), "single tensor"),
        ("list", [torch.ones(2)], "holds a list"),
        ("nothing", {}, "empty dict"),
        ("two", {"model": weights, "ema": weights, "step": 3}, "2 state dicts (model, ema)"),
        ("counter", weights | {"step": 3}, "2 tensors beside step"),
        ("settings", {"lr": 1.0, "args": {"a": "b"}}, "no tensors but lr, args"),
        ("numbered", {0: torch.ones(2)}, "names are numbers"),
    ):
        stream = io.BytesIO()
        torch.save(value, stream)
        yield Hostile(f"content-{label}.pt", stream.getvalue(), says)


@functools.cache
def hostile_files() -> list[Hostile]:
    rooms = (code, bombs, lies, zips, legacies, safe, others, contents)
    return [case for room in rooms for case in room()]
