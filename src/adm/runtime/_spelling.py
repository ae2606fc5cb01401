"""Values as text: what stands after the = of a setting or an option."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Union

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from adm.runtime.text import one_line, split_list

__all__ = ["NotFromText", "from_text", "members", "rule", "spelled"]


class NotFromText(TypeError):
    """No text can become a value of this type."""


def from_text(annotation: Any, text: str, finite: bool = True) -> Any:
    """The value of the annotated type that the text spells: 0.3, true, none, (1,2) or 1,2 for lists.

    finite: False admits inf and -inf as numbers; nan is none. ``ValueError`` with the rule when it spells none;
    ``NotFromText`` when the type (a model, a protocol) has no spelling.
    """
    offered = members(annotation)
    if text.lower() == "none" and type(None) in offered:
        return None
    lists = [member for member in offered if _is_list(member)]
    others = [member for member in offered if member not in lists and member is not type(None)]
    value: Any = text
    if lists and (not others or text[:1] in ("(", "[") or len(split_list(text)) > 1):
        value = _nested(text)
    try:
        return _adapter(annotation).validate_python(value)
    except ValidationError as error:
        if not finite:
            with contextlib.suppress(ValidationError):
                infinite = _adapter(annotation, allow_inf_nan=True).validate_python(value)
                if not _has_nan(infinite):
                    return infinite
        rules = dict.fromkeys(rule(problem["msg"]) for problem in error.errors(include_url=False))
        raise ValueError(", or ".join(list(rules)[:3])) from error


def _adapter(annotation: Any, allow_inf_nan: bool = False) -> TypeAdapter[Any]:
    if any(dataclasses.is_dataclass(member) for member in members(annotation)):
        raise NotFromText("a group of settings has no spelling of its own")
    if any(Callable in (member, typing.get_origin(member)) for member in members(annotation)):
        raise NotFromText("a function has no spelling")
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=allow_inf_nan))
    except PydanticSchemaGenerationError as error:
        raise NotFromText(f"{one_line(annotation, 60)} has no spelling") from error


def _has_nan(value: Any) -> bool:
    if isinstance(value, Collection) and not isinstance(value, (str, bytes)):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _nested(text: str) -> list[Any]:
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(split_list(text)) == 1:
        text = text[1:-1]
    return [_nested(part) if part[:1] in ("(", "[") else part for part in split_list(text)]


def members(annotation: Any) -> list[Any]:
    """What a union offers, or the one type itself, without ``Annotated``."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in typing.get_args(annotation) for inner in members(member)]
    return [annotation]


def _is_list(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Collection) and not issubclass(kind, (str, bytes, Mapping))


def spelled(value: Any) -> str:
    """The value as ``from_text`` reads it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(f"({spelled(item)})" if isinstance(item, (list, tuple)) else spelled(item) for item in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def rule(message: str) -> str:
    """A message of pydantic as the end of a line of ours."""
    message = one_line(message.removeprefix("Value error, "), 120).rstrip(".")
    if message == "Field required":  # of a tuple's items
        return "too few values"
    return message[:1].lower() + message[1:] if message.startswith("Input") else message
