"""What the options of a component mean: sentences of its docstring that begin with their names."""

from dataclasses import dataclass
from typing import Literal

from adm.runtime.options import option_groups, option_meanings


@dataclass
class Component:
    """Claims something: not an option (Ho et al. 2020, Eq. 3).

    first: the one before, as in Ho et al. 2020, Alg. 2, of 1.5 pixels. It goes on. low, high: the ends; None: no end.
    way: "up" or "down". kind: how. Beside last: this is no beginning of a sentence.

    numbers: several.
    """

    first: float
    low: float | None = None
    high: float | None = None
    way: Literal["up", "down"] = "up"
    kind: Literal["a", "b"] = "a"
    numbers: tuple[int, ...] = (1, 2)
    last: int = 3


def test_a_meaning_is_the_sentence_and_shared_ones_are_for_each():
    assert option_meanings(Component) == {
        "first": "the one before, as in Ho et al. 2020, Alg. 2, of 1.5 pixels",
        "low": "the ends; None: no end",
        "high": "the ends; None: no end",
        "way": '"up" or "down"',
        "kind": "how (a, b)",
        "numbers": "several",
    }


def test_groups_are_written_as_in_a_spec_and_keep_what_is_not_documented():
    assert option_groups(Component) == [
        (("first",), "the one before, as in Ho et al. 2020, Alg. 2, of 1.5 pixels"),
        (("low=none", "high=none"), "the ends; none: no end"),
        (("way=up",), '"up" or "down"'),
        (("kind=a",), "how (a, b)"),
        (("numbers=(1,2)",), "several"),
        (("last=3",), ""),
    ]


def test_neither_a_docstring_nor_an_option_is_needed():
    def nothing():
        pass

    def undocumented(scale: float = 1.0):
        pass

    assert option_meanings(nothing) == option_meanings(undocumented) == {}
    assert option_groups(nothing) == [] and option_groups(undocumented) == [(("scale=1",), "")]
