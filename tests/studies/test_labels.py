"""Labels by name and number: ImageNet's 1,000 classes, and a model's own."""

import pytest

from adm.checkpoints import imagenet
from adm.runtime.errors import UsageError
from adm.studies.labels import class_number, labels_in_turn, parse_labels

NAMES = ("cat", "7", "dog")


def test_labels_are_written_with_commas_and_stars():
    assert parse_labels("tench,207, cat*3") == ["tench", "207", "cat", "cat", "cat"]
    assert parse_labels("a*b") == ["a*b"]
    for text in ("", ",", "a,,b", "*3", "a*0"):
        with pytest.raises(UsageError, match="names or numbers with commas"):
            parse_labels(text)


def test_a_name_wins_over_a_number_and_numbers_are_bounded():
    assert class_number("7", NAMES, 3) == 1
    assert class_number("2", NAMES, 3) == 2
    for label in (3, "3", -1, "-1"):
        with pytest.raises(UsageError, match="Use 0 to 2"):
            class_number(label, NAMES, 3)
    with pytest.raises(UsageError, match=r"'dgo' is no class; did you mean 'dog'\? The classes are cat, 7, dog, numb"):
        class_number("dgo", NAMES, 3)
    with pytest.raises(UsageError, match=r"is no class\. Use 0 to 2"):
        class_number("dog", (), 3)


def test_case_does_not_count_where_one_class_is_left():
    names = ("Cat", "dog", "DOG", "Straße")
    assert [class_number(word, names, 4) for word in ("cat", "CAT", "dog", "DOG", " STRASSE ")] == [0, 0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"'Dog' may be 'dog' \(1\) or 'DOG' \(2\)\. Write it as it is there"):
        class_number("Dog", names, 4)


def test_of_many_classes_the_nearest_are_listed_with_their_numbers():
    names = tuple(f"species {chr(97 + k // 26)}{chr(97 + k % 26)} of bird" for k in range(200))
    with pytest.raises(UsageError, match=r"did you mean .*'species ac of bird' \(2\).*number from 0 to 199") as error:
        class_number("species ac of birds", names, 200)
    assert len(str(error.value)) < 250


# The released label order: numbers and WNIDs as the lists of ILSVRC 2012 have them.
IMAGENET = {"tench": 0, "chihuahua": 151, "golden retriever": 207, "tabby": 281, "tiger cat": 282, "toilet tissue": 999}


@pytest.mark.parametrize(("name", "number"), IMAGENET.items())
def test_imagenets_classes_have_their_numbers(name, number):
    for word in (name, name.upper(), name.replace(" ", "_"), str(number), imagenet.WNIDS[number]):
        assert class_number(word, imagenet.NAMES, 1000) == number


def test_the_forms_of_the_command_line_together():
    words = parse_labels("tiger cat,207,n02123159,tench*4")
    assert labels_in_turn(words, None, imagenet.NAMES, 1000) == [282, 207, 282, 0, 0, 0, 0]
    assert labels_in_turn(["chihuahua", 207], 3, imagenet.NAMES, 1000) == [151, 207, 151]


def test_a_name_of_two_imagenet_classes_lists_both():
    for label, numbers in (("crane", (134, 517)), ("Maillot", (638, 639))):
        with pytest.raises(UsageError) as error:
            class_number(label, imagenet.NAMES, 1000)
        assert all(str(number) in str(error.value) for number in numbers) and "\n" not in str(error.value)


def test_an_unknown_imagenet_name_lists_the_nearest_with_numbers():
    with pytest.raises(UsageError, match=r"chihuahua \(151\)"):
        class_number("chihuaua", imagenet.NAMES, 1000)
    with pytest.raises(UsageError, match="Use 0 to 999"):
        class_number(1000, imagenet.NAMES, 1000)
    for label in ("1000", "-1"):
        with pytest.raises(UsageError, match="0 to 999"):
            class_number(label, imagenet.NAMES, 1000)
