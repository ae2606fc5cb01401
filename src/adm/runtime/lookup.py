"""Components by name: adding one is adding one file, and the command line never grows.

``find("sampling", "ddim")`` imports ``adm.sampling.ddim`` and returns the one name in its ``__all__``. A spec
such as ``"classifier:classifier=runs/clf,scale=4"`` names a component and the arguments of its constructor.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from adm.runtime.config import NotFromText, from_text
from adm.runtime.errors import AdmError, UsageError
from adm.runtime.text import nearest, one_line, split_list

__all__ = ["Resolve", "Spec", "arguments", "available", "build", "find", "parse_spec"]

Resolve = Callable[[Any, str], object]
"""(annotation, text) -> the object of that type which the text names, such as a model by its path."""

NOUNS = {
    "sampling": "sampler",
    "guidance": "guidance",
    "data": "data set",
    "metrics": "metric",
    "metrics.extractors": "feature extractor",
    "studies.experiments": "study",
}
"""What a component of each room is called in messages."""

PART = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True)
class Spec:
    """A component's name and its options, as written."""

    name: str
    options: Mapping[str, str]


def available(room: str) -> list[str]:
    """Names of the room's components: its files, without those that begin with an underscore and rooms within."""
    package = importlib.import_module(f"adm.{room}")
    modules = pkgutil.iter_modules(package.__path__)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def find(room: str, name: str) -> Any:
    """The component of that name: a file of the room (dashes do), a dotted module or a class in one.

    Raises ``UsageError`` with the nearest name and all that exist.
    """
    normal = name.replace("-", "_")
    if not all(PART.fullmatch(part) for part in normal.split(".")):
        raise UsageError(f"{_noun(room)} {one_line(name, 40)!r} is not a name. Use letters, digits, _ and dots.")
    if "." in normal:
        return _find_dotted(room, normal)
    names = available(room)
    if normal not in names:
        guess = nearest(normal.lower(), names)
        choice = one_line(", ".join(names), 150)
        raise UsageError(f"there is no {_noun(room)} {one_line(name, 40)!r}{guess} Choose one of: {choice}.")
    return _only_public(importlib.import_module(f"adm.{room}.{normal}"))


def _noun(room: str) -> str:
    return NOUNS.get(room, room)


def _find_dotted(room: str, name: str) -> Any:
    module = _imported(room, name)
    if module is not None:
        return _only_public(module)
    parent, _, attribute = name.rpartition(".")
    module = _imported(room, parent)
    if module is None or not hasattr(module, attribute):
        raise UsageError(
            f"{_noun(room)} {one_line(name)!r} is neither a module nor a name in one. "
            "Check the spelling, and that it is installed or on PYTHONPATH."
        )
    return getattr(module, attribute)


def _imported(room: str, name: str) -> types.ModuleType | None:
    """The module, or None when there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{name}.".startswith(f"{missing}."):
            return None
        raise UsageError(
            f"{_noun(room)} {one_line(name)!r} needs {missing!r}, which is missing. Install it."
        ) from error


def _only_public(module: types.ModuleType) -> Any:
    names = list(getattr(module, "__all__", ()))
    if len(names) != 1:
        raise UsageError(
            f"{one_line(module.__name__)} has {len(names)} names in __all__, a component file has one. "
            "Name the one to use there, or give its full dotted name."
        )
    return getattr(module, names[0])


def parse_spec(text: str) -> Spec:
    """``"name"`` or ``"name:option=value,option=value"``; values may hold : / = and, in brackets, commas."""
    name, colon, rest = text.partition(":")
    options: dict[str, str] = {}
    try:
        pieces = split_list(rest) if colon else []
    except ValueError as error:
        raise UsageError(f"{error}. Write name:option=value,option=value.") from error
    for piece in pieces:
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not PART.fullmatch(key.replace("-", "_")):
            raise UsageError(
                f"{one_line(text)!r}: {one_line(piece, 40)!r} is no option. "
                "Write name:option=value,option=value, and a list in parentheses: option=(1,2)."
            )
        key = key.replace("-", "_")
        if key in options:
            raise UsageError(f"{one_line(text)!r}: {one_line(key, 40)!r} is given twice. Leave one of them out.")
        options[key] = value
    return Spec(name.strip(), options)


def build(room: str, spec: str, resolve: Resolve | None = None, given: Mapping[str, object] | None = None) -> Any:
    """The component of the spec, constructed with its options.

    resolve: makes the arguments that text alone cannot become. given: ready arguments, offered to every
    constructor; those that it does not have are left out, and an option of the same name wins. Raises
    ``UsageError`` in one line for an unknown or missing option and for a value that breaks its rule.
    """
    parsed = parse_spec(spec)
    component = find(room, parsed.name)
    known = arguments(component)
    _refuse_unknown(parsed, known)
    values = {name: value for name, value in (given or {}).items() if name in known}
    for name, text in parsed.options.items():
        values[name] = _value(parsed.name, name, known[name].annotation, text, resolve)
    for name, argument in known.items():
        if name not in values and argument.default is argument.empty:
            raise UsageError(f"{one_line(parsed.name)} needs {name!r}. Write {one_line(parsed.name)}:{name}=...")
    try:
        return component(**values)
    except ValueError as error:
        raise UsageError(f"{one_line(parsed.name)}: {one_line(error, 200)}") from error


def arguments(component: Any) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name, annotations evaluated where each was written."""
    target = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(component if dataclasses.is_dataclass(component) else target, include_extras=True)
    return {
        name: argument.replace(annotation=hints.get(name, Any))
        for name, argument in inspect.signature(component).parameters.items()
        if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
    }


def _refuse_unknown(spec: Spec, known: Mapping[str, object]) -> None:
    for name in spec.options:
        if name not in known:
            choice = f"It has {', '.join(known)}." if known else "It has no options."
            guess = nearest(name, known)
            raise UsageError(
                f"{one_line(spec.name)} has no option {one_line(name, 40)!r}{guess} {one_line(choice, 120)}"
            )


def _value(component: str, name: str, annotation: Any, text: str, resolve: Resolve | None) -> object:
    try:
        return from_text(annotation, text, finite=False)  # some options are bounds, and inf is none
    except NotFromText:
        pass
    except ValueError as error:
        raise UsageError(f"{one_line(component)}: {name}={one_line(text, 60)}: {one_line(error, 120)}") from error
    if resolve is None:
        raise UsageError(f"{one_line(component)}: {name} cannot be given as text. Pass the object from Python instead.")
    return _resolved(component, name, annotation, text, resolve)


def _resolved(component: str, name: str, annotation: Any, text: str, resolve: Resolve) -> object:
    wanted = annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            wanted = members[0]
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    try:
        return resolve(wanted, text)
    except AdmError:
        raise
    except ValueError as error:
        raise UsageError(f"{one_line(component)}: {name}={one_line(text, 60)}: {one_line(error, 120)}") from error
