"""Nearest training images are found, at their exact distance; copies are counted, unseen images are not."""

import numpy as np
import pytest

from adm.metrics._distances import nearest_neighbour
from adm.metrics._features import pixel_features
from adm.metrics.nearest import NearestDistance


def images(seed: int, n: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("tile", [1, 13, 4096])
def test_distances_and_indices_are_those_of_a_plain_search(tile):
    sample, train = images(1, 30), images(2, 40)
    all_pairs = np.sqrt(((sample[:, None].astype(float) - train[None]) ** 2).mean((2, 3, 4)))
    distance, index = nearest_neighbour(pixel_features(sample).values, pixel_features(train).values, tile)
    assert np.array_equal(index.numpy(), all_pairs.argmin(1))
    np.testing.assert_allclose(distance.numpy(), all_pairs.min(1), rtol=1e-14)


def test_the_unit_is_the_grey_level():
    train = images(2, 40) // 2
    scores = NearestDistance()(pixel_features(train + 20), pixel_features(train))
    assert scores["nearest_train_median"] == scores["nearest_train_p05"] == 20.0 and scores["nearest_train_copies"] == 0


def test_memorised_images_are_counted():
    train = images(2, 40)
    near = train[:5] ^ 1
    sample = np.concatenate([train[:10], near, images(3, 15)])
    scores = NearestDistance()(pixel_features(sample), pixel_features(train))
    assert scores["nearest_train_copies"] == 0.5
    exact = NearestDistance(copy_within=0)(pixel_features(sample), pixel_features(train))
    assert exact["nearest_train_copies"] == pytest.approx(1 / 3)


def test_no_held_out_digit_is_taken_for_a_copy():
    from sklearn.datasets import load_digits

    digits = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    scores = NearestDistance()(pixel_features(digits[1200:]), pixel_features(digits[:1200]))
    assert scores["nearest_train_copies"] == 0 and 25 < scores["nearest_train_median"] < 45
