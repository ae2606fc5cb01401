"""The overview of a sample set: every image, and its class below it."""

import numpy as np
import pytest
import torch
from PIL import Image

from adm.data import SampleSet, overview
from adm.data._overview import STRIP
from adm.runtime.errors import UsageError


def cells(picture, num, height, width, pad=2):
    """The images of a grid with as many columns as the square root of their number."""
    columns = int(np.ceil(num**0.5))
    for k in range(num):
        row, column = divmod(k, columns)
        top, left = pad + row * (height + pad), pad + column * (width + pad)
        yield picture[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "scale"), [((8, 8), 8), ((64, 64), 1), ((48, 40), 2), ((100, 200), 1)])
def test_images_keep_their_pixels_and_captions_stand_below(channels, size, scale):
    images = np.random.RandomState(0).randint(0, 256, (3, *size, channels), np.uint8)
    height, width = size[0] * scale, size[1] * scale
    picture = overview(images, ["cat", "", "golden retriever, a dog of very many words and more of them than fit"])
    shown = list(cells(picture, 3, height + STRIP, width))
    for cell, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(cell[:height][::scale, ::scale], image)
    ink = [(cell[height:] < 128).sum() for cell in shown]
    assert ink[1] == 0 < ink[0] < ink[2]


def test_without_classes_no_room_is_left():
    images = np.zeros((4, 64, 64, 3), np.uint8)
    assert overview(images, ["", "", "", ""]).shape == overview(images).shape == (134, 134, 3)


def test_a_number_of_columns_can_be_asked_for_and_tensors_are_taken():
    images = np.random.RandomState(0).randint(0, 256, (5, 64, 64, 3), np.uint8)
    for columns, rows in ((5, 1), (2, 3)):
        picture = overview(torch.from_numpy(images), list("abcde"), columns)
        assert picture.shape == (2 + rows * (64 + STRIP + 2), 2 + columns * 66, 3)
        for k, image in enumerate(images):
            top, left = 2 + k // columns * (64 + STRIP + 2), 2 + k % columns * 66
            np.testing.assert_array_equal(picture[top : top + 64, left : left + 64], image)


def test_what_cannot_be_drawn_is_refused():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    for wrong in (images[0], images[:0], images / 2):
        with pytest.raises(UsageError, match="uint8 images"):
            overview(wrong)
    with pytest.raises(UsageError, match="1 captions for 2 images: give one for each"):
        overview(images, ["a"])


def test_names_that_no_font_has_and_control_characters_do_no_harm():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    assert overview(images, ["tab\tand\nline", "猫", "ü" * 300]).shape == overview(images, ["a", "b", "c"]).shape


def test_a_letter_beyond_ascii_is_drawn_and_not_a_box():
    images = np.zeros((1, 8, 8, 1), np.uint8)
    u, box = (overview(images, [text])[66 : 66 + STRIP] for text in ("ü", "\ue000"))  # nothing has the second
    assert (u != box).any() and (u < 128).sum() < 40


def test_a_sets_overview_has_its_classes(tmp_path):
    images = np.full((2, 8, 8, 1), 90, np.uint8)
    shapes = {}
    for names in ((), ("cat", "dog")):
        with SampleSet.open(tmp_path / f"set{len(names)}", {"a": 1}) as samples:
            for k, image in enumerate(images):
                samples.add(k, image)
            with Image.open(samples.finish([0, 1], names, 5)) as picture:
                shapes[len(names)] = picture.size
    assert shapes == {0: (2 * 66 + 2, 68), 2: (2 * 66 + 2, 68 + STRIP)}
