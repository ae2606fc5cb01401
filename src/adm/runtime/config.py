"""Frozen dataclasses to JSON and back, with one-line errors that name the field.

Plain dataclasses are enough, nested ones too: unknown keys are refused at every depth, types are strict, and
the rules of ``__post_init__`` hold.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, TypeVar, Union

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError, create_model

from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line, split_list

__all__ = ["NotFromText", "difference", "from_dict", "from_text", "override", "to_dict"]

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class NotFromText(TypeError):
    """No text can become a value of this type."""


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
    return f"{one_line(name)}{shown}: {_rule(first['msg'])}. Correct it.{more}"


def _rule(message: str) -> str:
    message = one_line(message.removeprefix("Value error, "), 120).rstrip(".")
    return message[:1].lower() + message[1:] if message.startswith("Input") else message


def _names_below(cls: Any, dotted: str) -> list[str]:
    """Field names of the dataclass that the dotted name leads to; none when it leads to no single one."""
    for part in dotted.split(".") if dotted else []:
        hint = _hints(cls).get(part) if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None
        found = [member for member in _members(hint) if dataclasses.is_dataclass(member)]
        cls = found[0] if len(found) == 1 else None
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def override(config: T, assignments: Iterable[str]) -> T:
    """The config with ``"dotted.name=value"`` applied, all at once; the later of two for one name wins.

    Values are read by the field's type: 3e-4, true, none, 1,2,2. ``UsageError`` for a name that does not
    exist (with the nearest) and for a value that breaks its rule.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise UsageError(f"{one_line(assignment)!r} sets nothing. Write name=value, e.g. optimizer.lr=3e-4.")
        _insert(config, name, value, changes)
    return typing.cast(T, _changed(config, changes, ""))


def _insert(config: Any, name: str, value: str, changes: dict[str, Any]) -> None:
    """Puts the text under its dotted name, having checked that the name exists."""
    *owners, last = name.replace("-", "_").split(".")
    target = config
    for i, part in enumerate([*owners, last]):
        names = [field.name for field in dataclasses.fields(target)] if _is_config(target) else []
        if part not in names:
            valid = _leaf_names(config)
            same_last = [dotted for dotted in valid if dotted.split(".")[-1] == last]
            guess = nearest(name.replace("-", "_"), valid) if not same_last else f"; did you mean {same_last[0]!r}?"
            choice = one_line(", ".join(valid), 120)
            raise UsageError(f"there is no setting {one_line(name, 60)!r}{guess} Choose one of: {choice}.")
        if i < len(owners):
            target, changes = getattr(target, part), changes.setdefault(part, {})
    if _is_config(getattr(target, last)):
        names = [f"{name}.{field.name}" for field in dataclasses.fields(getattr(target, last))]
        raise UsageError(f"{name} is a group of settings. Set one of them: {one_line(', '.join(names), 150)}.")
    changes[last] = value


def _changed(config: Any, changes: Mapping[str, Any], owner: str) -> Any:
    hints = _hints(type(config))
    values = {}
    for name, change in changes.items():
        dotted = f"{owner}{name}"
        if isinstance(change, dict):
            values[name] = _changed(getattr(config, name), change, f"{dotted}.")
            continue
        try:
            values[name] = from_text(hints[name], change)
        except (ValueError, NotFromText) as error:
            raise UsageError(f"{dotted}={one_line(change, 60)}: {one_line(error, 150)}. Correct it.") from error
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        given = ", ".join(f"{owner}{name}={v}" for name, v in changes.items() if not isinstance(v, dict))
        raise UsageError(f"{one_line(given)}: {one_line(error, 150)}" if given else one_line(error, 200)) from error


def difference(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) where two configs differ; None for a field that one lacks."""
    old, new = _flat(to_dict(a)), _flat(to_dict(b))
    names = [*old, *(name for name in new if name not in old)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _flat(mapping: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in mapping.items():
        result |= _flat(value, f"{owner}{name}.") if isinstance(value, Mapping) else {f"{owner}{name}": value}
    return result


def _leaf_names(config: Any, owner: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        dotted = f"{owner}{field.name}"
        names += _leaf_names(value, f"{dotted}.") if _is_config(value) else [dotted]
    return names


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


# ---- text to value -------------------------------------------------------------------------------


def from_text(annotation: Any, text: str) -> Any:
    """The value of the annotated type that the text spells: 0.3, true, none, (1,2) or 1,2 for lists.

    ``ValueError`` with the rule when it spells none; ``NotFromText`` when the type (a model, a protocol) has
    no spelling.
    """
    members = _members(annotation)
    if text.lower() == "none" and type(None) in members:
        return None
    lists = [member for member in members if _is_list(member)]
    others = [member for member in members if member not in lists and member is not type(None)]
    value: Any = text
    if lists and (not others or text[:1] in ("(", "[") or len(split_list(text)) > 1):
        value = _nested(text)
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        rules = dict.fromkeys(_rule(problem["msg"]) for problem in error.errors(include_url=False))
        raise ValueError(", or ".join(list(rules)[:3])) from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if any(dataclasses.is_dataclass(member) for member in _members(annotation)):
        raise NotFromText("a group of settings has no spelling of its own")
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    except PydanticSchemaGenerationError as error:
        raise NotFromText(f"{one_line(annotation, 60)} has no spelling") from error


def _nested(text: str) -> list[Any]:
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(split_list(text)) == 1:
        text = text[1:-1]
    return [_nested(part) if part[:1] in ("(", "[") else part for part in split_list(text)]


def _members(annotation: Any) -> list[Any]:
    """What a union offers, or the one type itself, without ``Annotated``."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]


def _is_list(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, (str, bytes, Mapping))
