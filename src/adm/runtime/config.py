"""Frozen dataclasses to JSON and back, with one-line errors that name the field.

Plain dataclasses are enough, nested ones too: unknown keys are refused at every depth, types are strict, and
the rules of ``__post_init__`` hold.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from adm.runtime._spelling import NotFromText, from_text, members, rule, spelled
from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line

__all__ = [
    "NotFromText",
    "assigned",
    "difference",
    "flat",
    "from_dict",
    "from_text",
    "meanings",
    "override",
    "settings",
    "to_dict",
]

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

SENTENCE_END = r"(?<!\bet al)(?<!\bAlg)(?<!\bEq)(?<!\be\.g)(?<!\bi\.e)\.(?= |$)"
"""A full stop that is no abbreviation's: of a source, such as Ho et al. 2022, Eq. 3, the rest belongs to it."""


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as JSON-able values: nested ones as dicts, tuples as lists, paths as strings."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a config: use numbers, text, tuples and dataclasses")


def from_dict(cls: type[T], mapping: Any, where: str = "config.json") -> T:
    """The dataclass from ``to_dict``'s form. ``UsageError`` with where, dotted name, value and rule.

    Types are strict (no "3" for 3), keys that are not fields are refused, NaN and infinity too.
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{where}: {one_line(mapping, 40)!r} is no mapping. Give the fields of {cls.__name__}.")
    try:
        text = json.dumps({"config": mapping}, default=_plain)
        wrapped = _wrapper(cls).validate_json(text, strict=True)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error, cls)}") from error
    return typing.cast(T, wrapped.config)


def _wrapper(cls: type) -> TypeAdapter[Any]:
    """A model around the dataclass: its settings reach plain dataclasses at every depth, which have none."""
    return TypeAdapter(create_model("Config", __config__=STRICT, config=(cls, ...)))


def _first_problem(error: ValidationError, cls: type) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or cls.__name__
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            owner, _, key = name.rpartition(".")
            guess = nearest(key, _names_below(cls, owner))
            return f"there is no {one_line(name)!r}{guess} Remove or rename it.{more}"
        case "missing" | "missing_argument":
            return f"{one_line(name)} is missing. Add it.{more}"
    value = first["input"]
    shown = "" if isinstance(value, Mapping) else f" = {one_line(json.dumps(value, default=str), 50)}"
    return f"{one_line(name)}{shown}: {rule(first['msg'])}. Correct it.{more}"


def _names_below(cls: Any, dotted: str) -> list[str]:
    """Field names of the dataclass that the dotted name leads to; none when it leads to no single one."""
    for part in dotted.split(".") if dotted else []:
        hint = _hints(cls).get(part) if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None
        found = [member for member in members(hint) if dataclasses.is_dataclass(member)]
        cls = found[0] if len(found) == 1 else None
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def override(config: T, assignments: Iterable[str]) -> T:
    """The config with ``"dotted.name=value"`` applied, all at once; the later of two for one name wins.

    Values are read by the field's type: 3e-4, true, none, 1,2,2. ``UsageError`` for a name that does not
    exist (with the nearest) and for a value that breaks its rule.
    """
    return typing.cast(T, _changed(config, _parsed(config, assignments), ""))


def assigned(config: Any, assignments: Iterable[str]) -> dict[str, str]:
    """Dotted name -> value, as ``settings`` has it, of what ``override`` would set, each by itself: whether they fit
    together is not asked."""
    values = _flat(_plain(_parsed(config, assignments)))
    return {name: spelled(value) for name, value in values.items()}


def _parsed(config: Any, assignments: Iterable[str]) -> dict[str, Any]:
    """The values by name, those of a group of settings as a dict of their own."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UsageError(f"{one_line(assignment)!r} sets nothing. Write name=value, e.g. optimizer.lr=3e-4.")
        *owners, last = name.replace("-", "_").split(".")
        group, place = config, values
        for owner in owners:
            _check_name(config, group, owner, name)
            group, place = getattr(group, owner), place.setdefault(owner, {})
        _check_name(config, group, last, name)
        if _is_config(getattr(group, last)):
            names = [f"{name}.{field}" for field in settings(getattr(group, last))]
            raise UsageError(f"{name} is a group of settings. Set one of them: {one_line(', '.join(names), 150)}.")
        try:
            place[last] = from_text(_hints(type(group))[last], text)
        except (ValueError, NotFromText) as error:
            raise UsageError(f"{name}={one_line(text, 60)}: {one_line(error, 150)}. Correct it.") from error
    return values


def _check_name(config: Any, group: Any, part: str, name: str) -> None:
    """Refuses a part of a dotted name that the group does not offer; says what is nearest, and what there is."""
    here = [field.name for field in _settable(group)] if _is_config(group) else []
    if part in here:
        return
    valid = [*settings(config)]
    last = name.replace("-", "_").split(".")[-1]
    same_last = [dotted for dotted in valid if dotted.split(".")[-1] == last]
    guess = nearest(name.replace("-", "_"), valid) if not same_last else f"; did you mean {same_last[0]!r}?"
    if group is not config and here:
        owner = name.replace("-", "_").partition(f".{part}")[0]
        choice = f"{owner} has {', '.join(here)}."
    else:
        alone = [field.name for field in _settable(config) if not _is_config(getattr(config, field.name))]
        groups = [field.name for field in _settable(config) if _is_config(getattr(config, field.name))]
        more = f", or one in {', '.join(groups)} (such as {next(n for n in valid if '.' in n)})" if groups else ""
        choice = f"Choose one of {', '.join(alone)}{more}."
    raise UsageError(f"there is no setting {one_line(name, 60)!r}{guess} {one_line(choice, 400)}")


def _changed(config: Any, values: Mapping[str, Any], owner: str) -> Any:
    """The config with the values, those of a group under the group's name."""
    fields = {
        name: _changed(getattr(config, name), value, f"{owner}{name}.") if _is_config(getattr(config, name)) else value
        for name, value in values.items()
    }
    try:
        return dataclasses.replace(config, **fields)
    except ValueError as error:
        plain = {name: value for name, value in values.items() if not _is_config(getattr(config, name))}
        given = ", ".join(f"{owner}{name}={spelled(value)}" for name, value in plain.items())
        raise UsageError(f"{one_line(given)}: {one_line(error, 150)}" if given else one_line(error, 200)) from error


def settings(config: Any, owner: str = "") -> dict[str, str]:
    """Dotted name -> value as --set takes it, of everything that ``override`` can change."""
    found: dict[str, str] = {}
    for field in _settable(config):
        value = getattr(config, field.name)
        dotted = f"{owner}{field.name}"
        found |= settings(value, f"{dotted}.") if _is_config(value) else {dotted: spelled(_plain(value))}
    return found


def _settable(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields that override may change: not those with one possible value, nor those marked ``settable: False``."""
    hints = _hints(type(config))
    return [
        field
        for field in dataclasses.fields(config)
        if field.metadata.get("settable", True)
        and not (typing.get_origin(hints[field.name]) is Literal and len(typing.get_args(hints[field.name])) == 1)
    ]


def meanings(config: Any) -> dict[str, str]:
    """Dotted name -> what the docstring of its dataclass, or of a base of that, says of it ("lr: the learning rate.").

    An entry begins a sentence with "name: " and ends with the sentence; what is not documented is left out. The
    choices of a field that offers a few follow in brackets.
    """
    found: dict[str, str] = {}
    hints = _hints(type(config))
    for field in _settable(config):
        value = getattr(config, field.name)
        if _is_config(value):
            found |= {f"{field.name}.{name}": meaning for name, meaning in meanings(value).items()}
            continue
        for cls in type(config).__mro__:
            text = " ".join((inspect.cleandoc(cls.__doc__ or "")).split())
            if entry := re.search(rf"(?:^|\. ){field.name}: (.+?)(?:{SENTENCE_END}|$)", text):
                choices = typing.get_args(hints[field.name]) if typing.get_origin(hints[field.name]) is Literal else ()
                found[field.name] = entry[1] + (f" ({', '.join(map(str, choices))})" if choices else "")
                break
    return found


def difference(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) where two configs differ; None for a field that one lacks."""
    old, new = flat(a), flat(b)
    names = [*old, *(name for name in new if name not in old)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def flat(config: Any) -> dict[str, Any]:
    """Dotted name -> JSON-able value of every field, also of those that ``override`` cannot change."""
    return _flat(to_dict(config))


def _flat(mapping: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in mapping.items():
        result |= _flat(value, f"{owner}{name}.") if isinstance(value, Mapping) else {f"{owner}{name}": value}
    return result


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)
