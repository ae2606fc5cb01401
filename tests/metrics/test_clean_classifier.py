"""The independent judge: right on unseen digits, a function of its seed, carried by plain tensors."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from adm.metrics._clean_classifier import CleanClassifier
from adm.metrics.label_accuracy import LabelAccuracy
from adm.runtime.errors import DamagedError, UsageError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[..., None], data.target


@pytest.fixture(scope="module")
def brief(digits) -> CleanClassifier:
    return CleanClassifier.fit(digits[0][:400], digits[1][:400], 10, seed=3, steps=25)


def test_held_out_digits_are_read_right(digits):
    images, labels = digits
    order = np.random.RandomState(0).permutation(len(images))
    train, held_out = order[:1198], order[1198:]
    losses: list[float] = []
    classifier = CleanClassifier.fit(
        images[train], labels[train], 10, steps=250, on_progress=lambda step, loss: losses.append(loss)
    )
    scores = LabelAccuracy()(classifier.features(images[held_out], labels[held_out]))
    assert scores["label_accuracy"] >= 0.975
    assert len(losses) == 250 and losses[-1] < losses[0]


def test_training_is_a_function_of_data_and_seed_and_leaves_the_global_generators_alone(digits, brief):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = CleanClassifier.fit(digits[0][:400], digits[1][:400], 10, seed=3, steps=25)
    other = CleanClassifier.fit(digits[0][:400], digits[1][:400], 10, seed=4, steps=25)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert all(torch.equal(a, b) for a, b in zip(again.state().values(), brief.state().values(), strict=True))
    assert not torch.equal(other.state()["head.weight"], brief.state()["head.weight"])


def test_its_state_is_the_whole_classifier(digits, brief):
    copy = CleanClassifier.from_state(brief.state())
    assert torch.equal(copy.features(digits[0]).values, brief.features(digits[0]).values)
    with pytest.raises(DamagedError, match="not a clean classifier"):
        CleanClassifier.from_state({"trunk.0.weight": torch.zeros(3)})
    state = brief.state()
    del state["head.bias"]
    with pytest.raises(DamagedError, match="not a clean classifier"):
        CleanClassifier.from_state(state)


def test_features_are_the_input_of_the_last_layer(digits, brief):
    features = brief.features(digits[0][:50], digits[1][:50])
    state = brief.state()
    logits = features.values @ state["head.weight"].T + state["head.bias"]
    assert torch.equal(logits.argmax(1), features.predicted) and torch.equal(
        features.predicted, brief.predict(digits[0][:50])
    )
    assert features.extractor == "clean_classifier" and not features.values.requires_grad


def test_the_answer_for_an_image_does_not_depend_on_its_batch(digits, brief):
    images = digits[0][:600]
    one_by_one = torch.cat([brief.features(images[i : i + 1]).values for i in range(580, 600)])
    torch.testing.assert_close(brief.features(images).values[580:], one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 30, 1), (32, 16, 4)])
def test_any_size_from_eight_pixels_and_any_channels(shape):
    images = np.random.RandomState(0).randint(0, 256, (12, *shape), dtype=np.uint8)
    classifier = CleanClassifier.fit(images, np.arange(12) % 3, 3, steps=2)
    assert classifier.predict(images).shape == (12,)


def test_one_constant_image_a_class_is_learned_despite_shifts_and_noise():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[1, 2:5] = 255
    classifier = CleanClassifier.fit(images, np.array([0, 1]), 2, steps=60, batch_size=8)
    assert classifier.predict(images).tolist() == [0, 1]


@pytest.mark.parametrize(
    "shape, labels, match",
    [
        ((3, 7, 8, 1), [0, 1, 2], "H and W of 8"),
        ((3, 8, 8, 1), [0, 1], "a label each"),
        ((3, 8, 8, 1), [0, 1, 10], "outside 0..9"),
        ((0, 8, 8, 1), [], "at least one image"),
    ],
)
def test_data_that_cannot_train_it_is_refused(shape, labels, match):
    with pytest.raises(UsageError, match=match):
        CleanClassifier.fit(np.zeros(shape, np.uint8), np.array(labels, dtype=np.int64), 10, steps=1)
