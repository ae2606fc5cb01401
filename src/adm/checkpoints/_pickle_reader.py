"""A closed reader of pickles: data, and calls of the few functions that the caller lends; everything else is refused.

Pickle is a language for a stack machine. This machine knows the instructions with which ``torch.save`` writes state
dicts and optimizer states (protocol 2, and what protocol 4 has in their place), builds None, booleans, numbers, text,
lists, tuples and dicts by itself, and imports nothing. Work and memory are bounded by ``MAX_STEPS``, ``MAX_TEXT`` and
``MAX_PICKLE``, and what is returned is bounded in depth and extent (``_pickle_extent``).

Source: the comments of CPython's Lib/pickletools.py, which are the definition of the language.
"""

from __future__ import annotations

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from adm.checkpoints._foreign_file import AGAIN, RefusedError
from adm.checkpoints._pickle_extent import LEAVES, check_extent
from adm.checkpoints._pickle_names import names_in

__all__ = ["MAX_PICKLE", "Function", "PickleReader", "checked_key"]

MAX_PICKLE = 16 << 20
MAX_STEPS = 1 << 19
MAX_TEXT = 1 << 20
MAX_LONG = 16
MAX_PROTOCOL = 5
MAX_NAMES = 5


@dataclass(frozen=True, eq=False)
class Function:
    """What a name of the allowed list stands for when it may be called: ``call`` gets the tuple of arguments."""

    name: str
    call: Callable[[tuple[Any, ...]], Any]


class PickleReader:
    """Reads the pickles that follow one another in ``data``.

    names: "module.name" -> what it means here; a ``Function`` may be called. leaves: types of the values that those
    calls make and that may be returned. persistent: the meaning of a persistent id. explain: the words with which
    names that are not in ``names`` are refused. Raises ``RefusedError``.
    """

    def __init__(
        self,
        data: bytes,
        names: Mapping[str, object],
        leaves: tuple[type, ...],
        persistent: Callable[[Any], Any],
        explain: Callable[[list[str]], str],
    ) -> None:
        self._data, self._names, self._persistent, self._explain = data, names, persistent, explain
        self._leaves = (*LEAVES, *leaves)
        self.at = 0
        self._steps = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle that starts at ``at``, which then is its end."""
        start = self.at
        self._stack, self._marks, self._memo = [], [], {}
        try:
            while True:
                self.spend(1)
                code = self._take(1)[0]
                if code == STOP:
                    break
                instruction = INSTRUCTIONS.get(code)
                if instruction is None:
                    self._refuse_instruction(code, start)
                instruction(self)
        except (IndexError, KeyError) as error:
            raise self._broken("uses what is not there") from error
        if len(self._stack) != 1 or self._marks:
            raise self._broken("leaves unused values")
        check_extent(self._stack[0], self._leaves)
        return self._stack[0]

    def spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise RefusedError(f"takes more than {MAX_STEPS:,} steps to read, no model does; check where it is from")

    # ---- the text of the program ----

    def _take(self, count: int) -> bytes:
        taken = self._data[self.at : self.at + count]
        if len(taken) != count:
            raise RefusedError(f"is cut short inside its pickle; {AGAIN}")
        self.at += count
        return taken

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self.at, self.at + 1024)
        if end < 0:
            raise self._broken("has a name without an end")
        line = self._data[self.at : end]
        self.at = end + 1
        return self._decoded(line)

    def _text(self, length: int) -> str:
        if length > MAX_TEXT:
            raise self._broken(f"has a text of {length:,} bytes")
        return self._decoded(self._take(length))

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._broken("has a text that is not UTF-8") from error

    # ---- the stack ----

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise self._broken("takes more values than it has")
        return self._stack.pop()

    def _top(self, kind: type | tuple[type, ...]) -> Any:
        if (self._marks and len(self._stack) <= self._marks[-1]) or not isinstance(self._stack[-1], kind):
            raise self._broken("puts values where none can be")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # ---- instructions ----

    def protocol(self) -> None:
        if (version := self._take(1)[0]) > MAX_PROTOCOL:
            raise self._broken(f"is of protocol {version}")

    def frame(self) -> None:
        self._take(8)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def integer(self, width: int) -> None:
        self._push(self._unsigned(width))

    def signed(self) -> None:
        self._push(int.from_bytes(self._take(4), "little", signed=True))

    def long(self) -> None:
        if (length := self._take(1)[0]) > MAX_LONG:
            raise self._broken(f"has an integer of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def real(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def text(self, width: int) -> None:
        self._push(self._text(self._unsigned(width)))

    def tuple_of(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def tuple_since_mark(self) -> None:
        self._push(tuple(self._since_mark()))

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def set_items(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._top(dict)
        if len(values) % 2:
            raise self._broken("has a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[checked_key(key)] = value

    def put(self, width: int) -> None:
        self._memo[self._unsigned(width)] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, width: int) -> None:
        self._push(self._memo[self._unsigned(width)])

    def name(self) -> None:
        self._push_name(f"{self._line()}.{self._line()}")

    def name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._broken("names nothing")
        self._push_name(f"{module}.{name}")

    def _push_name(self, name: str) -> None:
        if name not in self._names:
            raise RefusedError(self._explain(self._foreign_names(name)))
        self._push(self._names[name])

    def call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise self._broken("calls what is no function")
        self.spend(sum(len(each) for each in arguments if isinstance(each, (list, tuple, dict))))
        self._push(function.call(arguments))

    def build(self) -> None:
        """Gives an object attributes: of these, only ``_metadata`` of a module's state dict is known, and dropped."""
        state = self._pop()
        self._top(OrderedDict)
        if type(state) is not dict or set(state) - {"_metadata"}:
            raise self._broken("gives attributes to what has none")

    def persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))

    # ---- refusals ----

    def _broken(self, what: str) -> RefusedError:
        return RefusedError(f"its pickle is damaged or made by hand, it {what} (before byte {self.at}); {AGAIN}")

    def _foreign_names(self, first: str) -> list[str]:
        names = [first, *(name for name in names_in(self._data[self.at :]) if name not in self._names)]
        return list(dict.fromkeys(names))[:MAX_NAMES]

    def _refuse_instruction(self, code: int, start: int) -> NoReturn:
        known = next((op for op in pickletools.opcodes if op.code == chr(code)), None)
        if known is None:
            raise self._broken(f"has an instruction {code:#04x}")
        names = [name for name in names_in(self._data[start:]) if name not in self._names]
        if names:
            raise RefusedError(self._explain(list(dict.fromkeys(names))[:MAX_NAMES]))
        raise RefusedError(
            f"its pickle has the instruction {known.name}, which model weights never need; save its state dict alone "
            "with torch.save"
        )


def checked_key(key: Any) -> str | int:
    """A key whose hash nobody can have chosen so that a dict becomes slow, as they can for long integers."""
    if type(key) is str or (type(key) is int and -(1 << 63) <= key < 1 << 63):
        return key
    raise RefusedError(f"has a {type(key).__name__} as a name; save a state dict, name -> tensor, with torch.save")


STOP = ord(".")
INSTRUCTIONS: dict[int, Callable[[PickleReader], None]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": PickleReader.protocol,
        "\x95": PickleReader.frame,
        "(": PickleReader.mark,
        "N": lambda machine: machine._push(None),
        "\x88": lambda machine: machine._push(True),
        "\x89": lambda machine: machine._push(False),
        "K": lambda machine: machine.integer(1),
        "M": lambda machine: machine.integer(2),
        "J": PickleReader.signed,
        "\x8a": PickleReader.long,
        "G": PickleReader.real,
        "U": lambda machine: machine.text(1),  # the text of Python 2
        "T": lambda machine: machine.text(4),
        "\x8c": lambda machine: machine.text(1),
        "X": lambda machine: machine.text(4),
        ")": lambda machine: machine._push(()),
        "\x85": lambda machine: machine.tuple_of(1),
        "\x86": lambda machine: machine.tuple_of(2),
        "\x87": lambda machine: machine.tuple_of(3),
        "t": PickleReader.tuple_since_mark,
        "]": lambda machine: machine._push([]),
        "a": PickleReader.append,
        "e": PickleReader.appends,
        "}": lambda machine: machine._push({}),
        "s": PickleReader.set_item,
        "u": PickleReader.set_items,
        "q": lambda machine: machine.put(1),
        "r": lambda machine: machine.put(4),
        "\x94": PickleReader.memoize,
        "h": lambda machine: machine.get(1),
        "j": lambda machine: machine.get(4),
        "c": PickleReader.name,
        "\x93": PickleReader.name_on_stack,
        "R": PickleReader.call,
        "b": PickleReader.build,
        "Q": PickleReader.persistent_id,
    }.items()
}
