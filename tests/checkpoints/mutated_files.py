"""Valid files with something changed in them: bits, instructions of their pickles, parts of their zips, their ends."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from checkpoints.hostile_files import plain_zip


@dataclass(frozen=True)
class Mutated:
    """checked: the format has checksums, so that whoever accepts the file must see what it was."""

    name: str
    data: bytes
    checked: bool


def weights() -> dict[str, Tensor]:
    """Shaped like a network: views, shared numbers, several types, an empty tensor and a single number."""
    torch_generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 8, generator=torch_generator)
    return OrderedDict(
        {
            "input.weight": matrix,
            "input.transposed": matrix.t(),
            "input.row": matrix[3],
            "half": torch.randn(5, generator=torch_generator).half(),
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "mask": torch.tensor([True, False, True]),
        }
    )


def saved(value: object, new: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def mutated_files(count: int) -> Iterator[Mutated]:
    """``count`` files, the same at each call, of every kind in turn; fewer are the beginning of more."""
    new, old = saved(weights()), saved(weights(), new=False)
    safe = save_safetensors({name: tensor.clone().contiguous() for name, tensor in weights().items()})
    pickled = zipfile.ZipFile(io.BytesIO(new)).read("archive/data.pkl")
    kinds: dict[str, tuple[Callable[[random.Random], bytes], bool]] = {
        "zip-bits": (lambda draw: flipped(new, draw), True),
        "zip-structure": (lambda draw: flipped_around(new, b"PK", draw), True),
        "zip-cut": (lambda draw: cut(new, draw), True),
        "zip-surgery": (lambda draw: surgery(new, draw), False),
        "zip-instructions": (lambda draw: with_pickle(new, spliced(pickled, draw)), False),
        "zip-pickle-bits": (lambda draw: with_pickle(new, flipped(pickled, draw)), False),
        "legacy-bits": (lambda draw: flipped(old, draw), False),
        "legacy-instructions": (lambda draw: spliced(old[: len(pickled)], draw) + old[len(pickled) :], False),
        "legacy-cut": (lambda draw: cut(old, draw), False),
        "safetensors-bits": (lambda draw: flipped(safe[:600], draw) + safe[600:], False),
        "safetensors-cut": (lambda draw: cut(safe, draw), False),
        "crossed": (lambda draw: crossed(new, old, draw), False),
    }
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        make, checked = kinds[kind]
        suffix = "safetensors" if kind.startswith("safe") else "pt"
        yield Mutated(f"{number:04d}-{kind}.{suffix}", make(random.Random(number)), checked)


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 3, 20))):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flipped_around(data: bytes, mark: bytes, draw: random.Random) -> bytes:
    """One byte anew, within the record that begins with ``mark``."""
    starts = [at for at in range(len(data)) if data.startswith(mark, at)]
    changed = bytearray(data)
    changed[min(draw.choice(starts) + draw.randrange(64), len(data) - 1)] = draw.choice((0, 1, 8, 127, 128, 255))
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data))
    return draw.choice((data[:start], data[:start], data[start:], data[:start] + data[start + draw.randrange(64) :]))


# Instructions and operands that mean something nearly everywhere.
SPLICES = (
    *(bytes([code]) for code in b"(t)]}021NRbQuse.\x81\x85\x86\x87\x88\x89\x92\x93\x94"),
    *(b"q\0", b"h\0", b"h\1", b"h\x0d", b"K\0", b"K\x7f", b"M\xff\xff", b"J\xff\xff\xff\xff", b"X\4\0\0\0true"),
    *(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch\nHalfStorage\n", b"ctorch._utils\n_rebuild_parameter\n"),
)


def spliced(data: bytes, draw: random.Random) -> bytes:
    """Instructions put in, taken out, doubled or exchanged."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, length = draw.randrange(2, len(data)), draw.randrange(1, 12)
        piece = draw.choice((draw.choice(SPLICES), data[at : at + length] * 2, b""))
        data = data[:at] + piece + data[at + draw.choice((0, len(piece), length)) :]
    return data


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


def with_pickle(data: bytes, pickled: bytes) -> bytes:
    """The zip with another pickle and right checksums, as whoever means harm would make it."""
    return plain_zip([(name, pickled if name.endswith("data.pkl") else value) for name, value in members_of(data)])


def surgery(data: bytes, draw: random.Random) -> bytes:
    """A member dropped, exchanged, cut, lengthened, renamed or moved, or the end of the zip anew."""
    members = members_of(data)
    at, other = draw.randrange(len(members)), draw.randrange(len(members))
    (name, value), operation = members[at], draw.randrange(7)
    if operation == 0:
        del members[at]
    elif operation == 1:
        members[at], members[other] = (name, members[other][1]), (members[other][0], value)
    elif operation == 2:
        members[at] = (name, value[: draw.randrange(len(value) + 1)])
    elif operation == 3:
        members[at] = (name, value + bytes(draw.randrange(9)))
    elif operation == 4:
        members[at] = (name.replace("a", draw.choice("ab/."), 1), value)
    elif operation == 5:
        members.insert(other, members.pop(at))
    made = plain_zip(members)
    if operation == 6:
        start = len(made) - 22 + draw.choice((8, 10, 12, 16, 20))
        return made[:start] + struct.pack("<H", draw.randrange(1 << 16)) + made[start + 2 :]
    return made


def crossed(first: bytes, second: bytes, draw: random.Random) -> bytes:
    """Two files in one: behind, before or inside of each other."""
    at = draw.randrange(len(first))
    return draw.choice(
        (first + second, second + first, first[:at] + second + first[at:], first + first, second + second)
    )
