"""The ImageNet classes, against what is known of single classes and of the whole list elsewhere."""

from __future__ import annotations

import hashlib
import re

import pytest

from adm.checkpoints.imagenet import NAMES, SYNONYMS, WNIDS, find_class


def test_there_are_a_thousand_in_the_order_of_their_wordnet_ids():
    assert len(WNIDS) == len(NAMES) == len(SYNONYMS) == 1000
    assert list(WNIDS) == sorted(set(WNIDS)) and all(re.fullmatch(r"n\d{8}", wnid) for wnid in WNIDS)
    assert all(words and all(word == word.strip() and word for word in words) for words in SYNONYMS)


def test_the_whole_list_is_the_one_that_other_projects_carry():
    # The hash is of timm's imagenet_synsets.txt joined with its imagenet_synset_to_lemma.txt. A second list, in the
    # format of Caffe's synset_words.txt, had the same lines but for one word that its owner had added ("crane bird").
    lines = "".join(f"{wnid} {', '.join(words)}\n" for wnid, words in zip(WNIDS, SYNONYMS, strict=True))
    assert (
        hashlib.sha256(lines.encode()).hexdigest() == "acf75ef0abe89694b19056e0796401068b459c457baa30335f240c7692857355"
    )


@pytest.mark.parametrize(
    ("label", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (151, "n02085620", "Chihuahua"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (282, "n02123159", "tiger cat"),
        (388, "n02510455", "giant panda"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_a_class_is_found_by_number_id_and_name(label: int, wnid: str, name: str):
    assert (WNIDS[label], NAMES[label]) == (wnid, name)
    for text in (str(label), wnid, wnid.upper(), name, name.upper(), name.replace(" ", "_"), f"  {name} "):
        assert find_class(text) == label


def test_any_word_of_a_class_means_it_unless_it_is_the_first_of_another():
    assert find_class("Tinca tinca") == 0 and find_class("alsatian") == 235
    assert find_class("harp") == 594 and "harp" in SYNONYMS[593]


@pytest.mark.parametrize(
    ("name", "labels"),
    [("crane", (134, 517)), ("maillot", (638, 639)), ("cardigan", (264, 474)), ("panda", (387, 388))],
)
def test_a_name_of_two_classes_is_refused_with_both(name: str, labels: tuple[int, int]):
    with pytest.raises(ValueError, match="means 2 ImageNet classes") as refusal:
        find_class(name)
    for label in labels:
        assert f"{label} " in str(refusal.value) and WNIDS[label] in str(refusal.value)


def test_every_class_can_be_named_and_every_word_is_answered():
    words = {word for synonyms in SYNONYMS for word in synonyms}
    ambiguous = set()
    for word in words:
        try:
            assert word.casefold() in [synonym.casefold() for synonym in SYNONYMS[find_class(word)]]
        except ValueError:
            ambiguous.add(word.casefold())
    assert {"crane", "maillot", "cardigan"} <= ambiguous and len(ambiguous) < 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tenc", r"no ImageNet class; the nearest are tench \(0\)"),
        ("bear", r"\(\d+\), .*ear"),
        ("1000", "label 1000: ImageNet's classes are 0 to 999"),
        ("-1", "no ImageNet class"),
        ("", "'' is no ImageNet class"),
        ("n00000000", "the nearest are"),
        ("x" * 10_000, "no ImageNet class"),
    ],
)
def test_what_is_no_class_is_refused_in_one_line(text: str, words: str):
    with pytest.raises(ValueError, match=words) as refusal:
        find_class(text)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300
