"""Labels as people write them: names or numbers, with commas and stars."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from adm.checkpoints import imagenet
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line

__all__ = ["class_number", "label_policy", "labels_in_turn", "parse_labels"]

WORTH_LISTING = 120
"""Characters: shorter lists of class names are shown whole."""


def parse_labels(text: str) -> list[str]:
    """`tench,207,cat*3` -> ["tench", "207", "cat", "cat", "cat"]."""
    labels: list[str] = []
    for part in text.split(","):
        name, star, times = part.strip().rpartition("*")
        if star and times.strip().isdecimal():
            labels += [name.strip()] * int(times)
        else:
            labels.append(part.strip())
    if not labels or not all(labels):
        raise UsageError(f"labels {one_line(text)!r}: write names or numbers with commas, such as cat,3,dog*2.")
    return labels


def labels_in_turn(
    given: Sequence[int | str] | None, num: int | None, names: tuple[str, ...], num_classes: int | None
) -> list[int]:
    """One label for each of num images: those given, in turn; else every class in turn; -1 where nothing has classes.

    given: names or numbers; text is read as on the command line. num: None for one image for each label given, or 64.
    names, num_classes: as for `class_number`. Raises UsageError.
    """
    words = [] if given is None else parse_labels(given) if isinstance(given, str) else list(given)
    if words:
        chosen = [class_number(word, names, num_classes) for word in words]
    else:
        chosen = [-1] if num_classes is None else list(range(num_classes))
    count = num if num is not None else len(words) or 64
    if count < 1:
        raise UsageError(f"{count} images were asked for. Ask for at least 1.")
    return [chosen[k % len(chosen)] for k in range(count)]


def label_policy(given: Sequence[int | str] | None, num_classes: int | None) -> str:
    """How `labels_in_turn` chooses, in words."""
    if given:
        return "given, in turn"
    return "none" if num_classes is None else "every class in turn"


def class_number(label: int | str, names: tuple[str, ...], num_classes: int | None) -> int:
    """The number of a class by its name, or by its number when no class is called so.

    num_classes: None if unknown. Of the 1,000 ImageNet classes every synonym and WNID is a name. Elsewhere a name is
    as it is written, or in other case when that leaves one. Raises UsageError with the nearest names or candidates.
    """
    if isinstance(label, str):
        label = label.strip()
        if label in names and names != imagenet.NAMES:
            return names.index(label)
        if not label.removeprefix("-").isdecimal():
            return _by_name(label, names, num_classes)
    if int(label) < 0 or (num_classes is not None and int(label) >= num_classes):
        raise UsageError(f"label {label} is no class. {_rule(num_classes)}")
    return int(label)


def _by_name(label: str, names: tuple[str, ...], num_classes: int | None) -> int:
    if names == imagenet.NAMES:
        try:
            return imagenet.find_class(label)
        except ValueError as error:
            raise UsageError(_sentence(str(error))) from error
    same = [number for number, name in enumerate(names) if name.casefold() == label.casefold()]
    if len(same) == 1:
        return same[0]
    shown = repr(one_line(label, 40))
    if same:
        raise UsageError(f"label {shown} may be {_numbered(same, names)}. Write it as it is there, or its number.")
    if not names:
        raise UsageError(f"label {shown} is no class. {_rule(num_classes)}")
    raise UsageError(f"label {shown} is no class{_nearest(label, names)}")


def _nearest(label: str, names: tuple[str, ...]) -> str:
    """What follows "is no class": the nearest names with their numbers, and all of them where they are few."""
    folded: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        folded.setdefault(name.casefold(), []).append(number)
    matches = difflib.get_close_matches(label[:200].casefold(), folded, n=3, cutoff=0.5)
    numbers = [number for match in matches for number in folded[match]][:3]
    everything = ", ".join(names)
    if len(everything) <= WORTH_LISTING:
        guess = f"; did you mean {names[numbers[0]]!r}?" if numbers else "."
        return f"{guess} The classes are {one_line(everything, WORTH_LISTING)}, numbered from 0."
    guess = f"; did you mean {_numbered(numbers, names)}?" if numbers else "."
    return f"{guess} Write a class's name, or a number from 0 to {len(names) - 1}."


def _numbered(numbers: Sequence[int], names: tuple[str, ...]) -> str:
    """ "'cat' (3) or 'Cat' (7)"."""
    words = [f"{one_line(names[number], 40)!r} ({number})" for number in numbers]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)


def _rule(num_classes: int | None) -> str:
    return "Use whole numbers from 0 up." if num_classes is None else f"Use 0 to {num_classes - 1}."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else f"{text}."
