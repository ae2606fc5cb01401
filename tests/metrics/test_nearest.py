"""Nearest training images are found, at their exact distance; copies are counted, unseen images are not."""

import numpy as np
import pytest
import torch

from adm.metrics._features import Features, pixel_features
from adm.metrics._neighbours import nearest, nearest_neighbour
from adm.metrics.nearest import NearestDistance
from adm.runtime.errors import UsageError


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


@pytest.mark.parametrize("tile", [7, 1024])
def test_several_nearest_come_in_order_and_equals_by_index(tile):
    # Grey levels 0..3 in four pixels: plenty of ties.
    sample, train = (
        np.random.RandomState(i).randint(0, 4, (n, 2, 2, 1), dtype=np.uint8) for i, n in ((1, 30), (2, 50))
    )
    squares = ((sample[:, None].astype(float) - train[None]) ** 2).mean((2, 3, 4))
    order = squares.argsort(axis=1, kind="stable")[:, :5]
    distance, index = nearest(pixel_features(sample).values, pixel_features(train).values, 5, tile)
    assert np.array_equal(index.numpy(), order)
    np.testing.assert_allclose(distance.numpy() ** 2, np.take_along_axis(squares, order, 1), rtol=1e-14)


def test_the_report_names_the_copies_and_measures_real_images_beside_them():
    train, held_out = images(2, 40), images(5, 30)
    sample = np.concatenate([images(3, 15), train[[7, 30]] ^ 1])
    report = NearestDistance().report(*(pixel_features(x) for x in (sample, train, held_out)), k=2)
    assert report.copies().tolist() == [15, 16] and report.index[15:, 0].tolist() == [7, 30]
    assert report.distance.shape == (17, 2) and report.distance[15:, 0].tolist() == [1.0, 1.0]
    assert report.closest(3)[2] == report.distance[:15, 0].argmin()
    real = np.sqrt(((held_out[:, None].astype(float) - train[None]) ** 2).mean((2, 3, 4))).min(1)
    row = report.quantiles()["p50"]
    assert row["real"] == pytest.approx(np.median(real), rel=1e-14) and row["ratio"] == row["sample"] / row["real"]
    assert report.held_out and report.quantiles()["p01"]["ratio"] < 0.1


def test_without_held_out_images_the_training_images_among_themselves_are_the_yardstick():
    train = images(2, 40)
    squares = ((train[:, None].astype(float) - train[None]) ** 2).mean((2, 3, 4))
    np.fill_diagonal(squares, np.inf)
    report = NearestDistance().report(pixel_features(images(3, 15)), pixel_features(train))
    np.testing.assert_allclose(report.baseline.numpy(), np.sqrt(squares.min(1)), rtol=1e-14)
    assert not report.held_out and 0.9 < report.quantiles()["p50"]["ratio"] < 1.1


def test_pixels_are_compared_unless_another_extractor_is_asked_for():
    class Other:
        name, taps, conditions = "other", ("features",), {}

    assert NearestDistance().extractor.name == "pixels" and NearestDistance().tap == "features"
    x = Features(torch.zeros(3, 2), "other.features")
    assert NearestDistance(extractor=Other())(x, x)["nearest_train_median_other"] == 0.0


@pytest.mark.parametrize("k", [0, 41])
def test_a_report_of_more_neighbours_than_there_are_is_refused(k):
    with pytest.raises(UsageError, match="nearest"):
        NearestDistance().report(pixel_features(images(3, 15)), pixel_features(images(2, 40)), k=k)
