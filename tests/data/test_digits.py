"""The digits: 17 levels kept exactly, a split that never moves."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from adm.data.digits import NUM_LEVELS, Digits, levels_to_uint8, uint8_to_levels
from adm.runtime.errors import DataError

RECORDED = {"train": "17b7036b00640b14", "test": "9c80d518c40e56e1"}


def test_levels_are_distinct_grey_values_and_come_back():
    levels = np.arange(NUM_LEVELS)
    grey = levels_to_uint8(levels)
    assert grey.tolist() == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    assert np.array_equal(grey, np.round(levels * 255 / 16))
    assert np.array_equal(uint8_to_levels(grey), levels)


def test_any_grey_value_goes_to_its_nearest_level():
    values = np.arange(256, dtype=np.uint8)
    distance = np.abs(values[:, None] / 255 - np.arange(NUM_LEVELS) / 16)
    assert np.array_equal(uint8_to_levels(values), distance.argmin(axis=1))


def test_all_digits_are_those_of_scikit_learn():
    digits, truth = Digits("all"), load_digits()
    images = np.stack([digits.image(i) for i in range(len(digits))])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8
    assert np.array_equal(uint8_to_levels(images)[..., 0], truth.images)
    assert [digits.label(i) for i in range(len(digits))] == truth.target.tolist()
    assert digits.class_names == tuple("0123456789") and digits.channels == 1 and digits.default_flip is False


def test_train_and_test_are_a_partition_with_two_thirds_of_each_class():
    train, test, everything = Digits("train"), Digits("test"), Digits("all")
    assert (len(train), len(test)) == (1198, 599)

    def rows(digits):
        return sorted((digits.image(i).tobytes(), digits.label(i)) for i in range(len(digits)))

    assert len(set(rows(everything))) == 1797  # no two digits are equal, so the partition is one of indices too
    assert sorted(rows(train) + rows(test)) == rows(everything)
    share = np.bincount(train.labels) / np.bincount(everything.labels)
    assert np.abs(share - 2 / 3).max() < 0.004


def test_the_split_never_moves():
    """Recorded once: published numbers on the held-out digits depend on it."""
    content = {split: hashlib.sha256(Digits(split).images.tobytes()).hexdigest()[:16] for split in ("train", "test")}
    assert content == RECORDED


def test_fingerprints_tell_the_splits_apart_and_repeat():
    prints = [Digits(split).fingerprint for split in ("train", "test", "all")]
    assert len(set(prints)) == 3
    assert prints[0] == Digits().fingerprint


def test_images_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="read-only"):
        Digits().image(0)[0, 0] = 1


@pytest.mark.parametrize(("arguments", "match"), [(("dev",), "'dev'.*train, test, all"), (("train", 3), "1 channel")])
def test_errors_teach(arguments, match):
    with pytest.raises(DataError, match=match):
        Digits(*arguments)
