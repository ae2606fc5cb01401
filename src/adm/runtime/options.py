"""What the options of a component mean, as its docstring says."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal

from adm.runtime._spelling import spelled
from adm.runtime.config import SENTENCE_END
from adm.runtime.lookup import arguments

__all__ = ["OptionGroup", "option_groups", "option_meanings", "written"]

OptionGroup = tuple[tuple[str, ...], str]
"""Options as they are written with their defaults, and the one meaning they have; empty if none is documented."""

BEFORE = r"(?:^|(?<=\. ))"


def option_meanings(component: Any) -> dict[str, str]:
    """Option -> the sentence of the docstring that begins with its name ("eta: the share of noise."), without the stop.

    Several options may share one ("mean, std: ..."). The choices of an option that offers a few follow in brackets,
    unless the sentence names them. An option without a sentence is left out.
    """
    text = " ".join(inspect.cleandoc(component.__doc__ or "").split())
    known = arguments(component)
    name = "|".join(map(re.escape, known))
    sentence = rf"{BEFORE}((?:{name})(?:, (?:{name}))*): (.+?)(?:{SENTENCE_END}|$)"
    said: dict[str, str] = {}
    for entry in re.finditer(sentence, text) if known else ():
        for option in entry[1].split(", "):
            said.setdefault(option, entry[2] + _choices(known, option, entry[2]))
    return {option: said[option] for option in known if option in said}


def option_groups(component: Any) -> list[OptionGroup]:
    """All options in order, those with one sentence together: (("low=0", "high=inf"), "the noise levels between")."""
    said = option_meanings(component)
    groups: list[OptionGroup] = []
    for name, argument in arguments(component).items():
        meaning = said.get(name, "").replace("None", "none")
        if groups and meaning and groups[-1][1] == meaning:
            groups[-1] = ((*groups[-1][0], written(name, argument)), meaning)
        else:
            groups.append(((written(name, argument),), meaning))
    return groups


def written(name: str, argument: inspect.Parameter) -> str:
    """name=default as in a spec, where a list stands in parentheses; the name alone for what must be given."""
    if argument.default is argument.empty:
        return name
    value = spelled(argument.default)
    return f"{name}=({value})" if "," in value else f"{name}={value}"


def _choices(known: Mapping[str, inspect.Parameter], option: str, sentence: str) -> str:
    annotation = known[option].annotation
    offered = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    if all(re.search(rf"\b{re.escape(str(choice))}\b", sentence) for choice in offered):
        return ""
    return f" ({', '.join(map(str, offered))})"
