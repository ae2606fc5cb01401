"""How the classes of data differ from those of a run, in words."""

import pytest

from adm.data._labels import describe_difference


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("ab", "ab", ""),
        ((), (), ""),
        ("abc", "ab", "of the classes, 'c' is missing (3 before, 2 now)"),
        ("ab", "abc", "of the classes, 'c' is new (2 before, 3 now)"),
        ("abc", "adc", "of the classes, 'b' is missing and 'd' is new (3 before, 3 now)"),
        ("ab", "uvwxyz", "of the classes, 'a', 'b' are missing and 'u', 'v', 'w', ... are new (2 before, 6 now)"),
        ("abc", "acb", "the classes are in another order: label 1 was 'b', is now 'c'"),
        ("ab", (), "the run has classes, the data have none"),
        ((), "ab", "the data have classes, the run has none"),
    ],
)
def test_the_difference_of_classes_in_words(before, after, words):
    assert describe_difference(tuple(before), tuple(after)) == words
