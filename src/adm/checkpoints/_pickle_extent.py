"""How deep and how large a value is when somebody walks through it, found without doing so."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from adm.checkpoints._foreign_file import RefusedError

__all__ = ["LEAVES", "check_extent"]

MAX_DEPTH = 32
MAX_PARTS = 1 << 19
MAX_CONTAINERS = 1 << 17
CONTAINERS = (dict, OrderedDict, list, tuple)
LEAVES = (type(None), bool, int, float, str)


def check_extent(root: Any, leaves: tuple[type, ...]) -> None:
    """Refuses cycles, depth, sharing that would explode when somebody walks through the value, and other leaves."""
    extent: dict[int, tuple[int, int]] = {}  # depth and number of parts of each container that is done
    opened: dict[int, list[Any]] = {}  # the containers in each that is not
    stack = [[root]] if type(root) not in CONTAINERS else [root]
    while stack:
        value = stack[-1]
        if id(value) in extent:
            stack.pop()
        elif id(value) in opened:
            extent[id(stack.pop())] = _extent(len(value), [extent.get(id(inner)) for inner in opened.pop(id(value))])
        else:
            children = value.values() if isinstance(value, dict) else value
            opened[id(value)] = containers = [child for child in children if type(child) in CONTAINERS]
            if len(containers) < len(value):
                _check_leaves(children, leaves)
            stack.extend(containers)
        if len(extent) > MAX_CONTAINERS:
            raise RefusedError(f"holds more than {MAX_CONTAINERS:,} lists and dicts; check where it is from")


def _check_leaves(children: Any, leaves: tuple[type, ...]) -> None:
    allowed = (*leaves, *CONTAINERS)
    for child in children:
        if not isinstance(child, allowed):
            raise RefusedError(f"holds a {type(child).__name__.lower()} by itself; save a state dict of tensors")


def _extent(length: int, containers: list[tuple[int, int] | None]) -> tuple[int, int]:
    depth, parts = 1, 1 + length
    for each in containers:
        if each is None:  # it is what holds it
            raise RefusedError("holds itself, as no state dict does; check where it is from")
        depth, parts = max(depth, each[0] + 1), parts + each[1]
    if depth > MAX_DEPTH:
        raise RefusedError(f"is nested more than {MAX_DEPTH} deep, as no state dict is; check where it is from")
    if parts > MAX_PARTS:
        raise RefusedError("is huge by holding the same lists many times; check where it is from")
    return depth, parts
