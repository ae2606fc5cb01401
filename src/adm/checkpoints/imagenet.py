"""The 1,000 classes of ILSVRC 2012 in the order of the released labels: by WordNet id.

Source: WordNet 3.0, whose licence stands in `imagenet_classes.tsv`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib.resources import files

from adm.runtime.text import one_line

__all__ = ["NAMES", "SYNONYMS", "WNIDS", "find_class"]


def _read() -> tuple[tuple[str, tuple[str, ...]], ...]:
    text = (files(__package__) / "imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple((wnid, tuple(words.split(", "))) for wnid, words in rows)


_CLASSES = _read()
WNIDS: tuple[str, ...] = tuple(wnid for wnid, _ in _CLASSES)
"""The WordNet id of each class, such as "n02123159"."""
SYNONYMS: tuple[tuple[str, ...], ...] = tuple(words for _, words in _CLASSES)
"""The words for each class, at least one."""
NAMES: tuple[str, ...] = tuple(words[0] for words in SYNONYMS)
"""The first word for each class. "crane", "maillot" and (but for its capital) "cardigan" are two classes each."""


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())


def _index(words: Iterable[tuple[int, str]]) -> dict[str, tuple[int, ...]]:
    """Plain word -> the labels that it stands for."""
    labels: dict[str, tuple[int, ...]] = {}
    for label, word in words:
        known = labels.get(_plain(word), ())
        labels[_plain(word)] = known if label in known else (*known, label)
    return labels


_FIRST = _index(enumerate(NAMES))
_WORDS = _index((label, word) for label, words in enumerate(SYNONYMS) for word in (*words, WNIDS[label]))


def find_class(text: str) -> int:
    """The label of a class given by number ("207"), WordNet id ("n02099601") or any of its words ("Golden_Retriever").

    Case does not count, and an underscore is a space. A word that comes first for one class alone means that class, as
    "harp" does, although a harmonica is called so too. Raises ValueError, naming the candidates, for a word that means
    several classes, and naming the nearest for one that means none.
    """
    word = _plain(text)
    if re.fullmatch(r"[0-9]{1,9}", word):
        if int(word) < len(NAMES):
            return int(word)
        raise ValueError(
            f"label {int(word)}: ImageNet's classes are 0 to {len(NAMES) - 1}. Give one of them, or a name"
        )
    found = _FIRST.get(word) or _WORDS.get(word) or ()
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{one_line(text, 40)!r} means {len(found)} ImageNet classes: {', '.join(map(_shown, found))}. "
            "Give the number or the WordNet id"
        )
    raise ValueError(f"{one_line(text, 40)!r} is no ImageNet class{_nearest(word)}. Give a name, number or WordNet id")


def _shown(label: int) -> str:
    """A class with its number, as many of its words as tell it from others of its name, and its id."""
    words = SYNONYMS[label][:2] if NAMES.count(NAMES[label]) > 1 else SYNONYMS[label][:1]
    return f"{label} {' or '.join(words)} ({WNIDS[label]})"


def _nearest(word: str) -> str:
    """The words "; the nearest are ..." for three similar classes, those with the very word in their name first."""
    similar = [name for name in _WORDS if word in name.split()][:2]
    similar += difflib.get_close_matches(word[:100], _WORDS, n=3, cutoff=0.6)
    shown = list(dict.fromkeys(f"{name} ({_WORDS[name][0]})" for name in similar))[:3]
    return f"; the nearest are {', '.join(shown)}" if shown else ""
