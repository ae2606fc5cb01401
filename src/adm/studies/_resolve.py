"""What an option's text stands for where text alone is no value: a model, another guidance, somebody's function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_origin

from adm.checkpoints.presets import is_preset
from adm.guidance import Guidance
from adm.runtime import lookup
from adm.runtime._spelling import members
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line

__all__ = ["names_of", "nested_options", "resolver", "unwrapped", "words_of"]

Load = Callable[[str, bool], object]
"""(path or preset, whether a classifier is wanted) -> the model."""


def resolver(load: Load) -> lookup.Resolve:
    """Makes guidance options of text: a spec where a guidance is wanted, with options of its own; the name of a
    function in a module where a function is; else a model by its path or preset. Raises UsageError."""

    def resolve(annotation: Any, text: str) -> object:
        wanted = members(annotation)
        if Guidance in wanted:
            return lookup.build("guidance", unwrapped(text), resolve)
        functions = [member for member in wanted if _is_function(member)]
        if functions and (len(functions) == len(wanted) or not _names_model(text)):
            return _function(text)
        # What is asked for gradients is a classifier; any other model in a guidance is a denoiser.
        return load(text, any(hasattr(member, "grad_log_prob") for member in wanted))

    return resolve


def nested_options(text: str) -> list[str]:
    """The options of a guidance's spec that are specs of guidances themselves."""
    spec = lookup.parse_spec(text)
    arguments = lookup.arguments(lookup.find("guidance", spec.name))
    return [name for name in spec.options if name in arguments and Guidance in members(arguments[name].annotation)]


def names_of(text: str) -> Iterator[str]:
    """The names of the guidances that a spec builds, outermost first."""
    spec = lookup.parse_spec(text)
    yield spec.name
    for name in nested_options(text):
        yield from names_of(unwrapped(spec.options[name]))


def words_of(text: str) -> Iterator[str]:
    """The names of the guidances that a spec builds, outermost first, and the values of their options."""
    spec = lookup.parse_spec(text)
    yield spec.name
    inner = nested_options(text)
    for name, value in spec.options.items():
        if name in inner:
            yield from words_of(unwrapped(value))
        else:
            yield value


def unwrapped(text: str) -> str:
    """A spec without the parentheses that kept its commas together."""
    return text[1:-1].strip() if text.startswith("(") and text.endswith(")") else text


def _is_function(annotation: Any) -> bool:
    return annotation is Callable or get_origin(annotation) is Callable


def _names_model(text: str) -> bool:
    return Path(text).exists() or is_preset(text) or "/" in text or "." not in text


def _function(text: str) -> object:
    if "." not in text:
        raise UsageError(f"{one_line(text, 60)!r} names no function. Write its module too, such as mylab.losses.dark.")
    found = lookup.find("function", text)  # a dotted name is of no room: this is what messages call it
    if not callable(found):
        raise UsageError(f"{one_line(text, 60)!r} is a {type(found).__name__}. Give the name of a function.")
    return found
