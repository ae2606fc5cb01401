"""Arrays to train on: the pixels and labels that numpy stored, from every kind of file."""

import numpy as np
import pytest
from PIL import Image

from adm.data import Loader, open_dataset
from adm.runtime.errors import AdmError, DataError, UsageError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (7, 5, 4, 3), np.uint8)
LABELS = np.array([2, 0, 1, 2, 0, 0, 2])


def save(path, images=IMAGES, labels=LABELS, compressed=False, **more):
    arrays = [images] if labels is None else [images, labels]
    (np.savez_compressed if compressed else np.savez)(path, *arrays, **more)
    return str(path)


def no_code_point():
    names = np.array(["a", "b", "c"])
    names.view(np.uint32)[1] = 0x110000
    return names


KINDS = {
    "stored": lambda p: save(p / "x.npz"),
    "compressed": lambda p: save(p / "x.npz", compressed=True),
    "fortran": lambda p: save(p / "x.npz", np.asfortranarray(IMAGES)),
    "int64": lambda p: save(p / "x.npz", IMAGES.astype(np.int64)),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_are_those_that_were_saved(kind, in_memory, tmp_path, monkeypatch):
    if not in_memory:
        monkeypatch.setattr("adm.data._npz_dataset.IN_MEMORY_BYTES", 0)
    calls = []
    data = open_dataset(KINDS[kind](tmp_path), progress=lambda *call: calls.append(call))
    assert [data.label(i) for i in range(len(data))] == LABELS.tolist() and calls[-1] == (7, 7)
    for i in reversed(range(7)):
        assert data.image(i).dtype == np.uint8 and np.array_equal(data.image(i), IMAGES[i])
    assert (data.class_names, data.channels, data.name) == (("0", "1", "2"), 3, "x.npz")


def test_the_fingerprint_is_over_pixels_labels_and_names_not_over_the_file(tmp_path):
    same = {open_dataset(make(tmp_path)).fingerprint for make in KINDS.values()}
    changed = IMAGES.copy()
    changed[3, 1, 2, 0] ^= 1
    others = {
        open_dataset(save(tmp_path / "a.npz", changed)).fingerprint,
        open_dataset(save(tmp_path / "b.npz", labels=LABELS[::-1])).fingerprint,
        open_dataset(save(tmp_path / "c.npz", labels=None)).fingerprint,
        open_dataset(save(tmp_path / "d.npz", class_names=np.array(["x", "y", "z"]))).fingerprint,
    }
    assert len(same) == 1 and len(same | others) == 5


def test_a_bare_array_has_no_classes(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    data = open_dataset(str(tmp_path / "x.npy"))
    assert data.class_names == () and data.label(3) == -1 and np.array_equal(data.image(3), IMAGES[3])


@pytest.mark.parametrize("names", [np.array(["b", "a", "caf\u00e9"]), np.array([b"b", b"a", "caf\u00e9".encode()])])
def test_names_of_classes_are_in_the_order_of_labels(names, tmp_path):
    assert open_dataset(save(tmp_path / "x.npz", class_names=names)).class_names == ("b", "a", "caf\u00e9")


def test_labels_may_be_left_out(tmp_path):
    data = open_dataset(save(tmp_path / "x.npz"), labels_from="none")
    assert data.class_names == () and data.label(0) == -1


def test_channels_are_converted_as_pillow_does(tmp_path):
    grey = open_dataset(save(tmp_path / "x.npz"), channels=1)
    assert np.array_equal(grey.image(0)[:, :, 0], np.asarray(Image.fromarray(IMAGES[0]).convert("L")))
    colour = open_dataset(save(tmp_path / "y.npz", IMAGES[..., :1]), channels=3)
    assert np.array_equal(colour.image(1), IMAGES[1, :, :, :1].repeat(3, axis=2))


def test_a_loader_takes_them(tmp_path):
    batch = Loader(open_dataset(save(tmp_path / "x.npz")), (5, 4), 7, flip=False).batch(0)
    expected = IMAGES[batch.index].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    assert np.array_equal(batch.images.numpy(), expected)
    assert batch.label.tolist() == LABELS[batch.index].tolist()


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (lambda p: save(p, labels=LABELS - 1), {}, "gives 3 of 7 images no label, such as 'image 1': label all"),
        (lambda p: save(p, labels=LABELS + 10**6), {}, "labels .* expected 0..999999"),
        (lambda p: save(p, labels=LABELS * 99_999), {}, "the label 199998, not 0..99999: correct"),
        (lambda p: save(p, class_names=np.array(["a", "b"])), {}, "the label 2, not 0..1 as .*class_names.* names 2"),
        (lambda p: save(p, class_names=np.array(["a", "b", "A"])), {}, "'a' and 'A' .* differ only in case.*: rename"),
        (lambda p: save(p, class_names=np.array(["a", "", "b"])), {}, "empty or there twice: give"),
        (
            lambda p: save(p, class_names=np.array(["\ud800", "b", "c"])),
            {},
            r"'\\ud800' of .*x.npz: class_names is not named in UTF-8: r",
        ),
        (lambda p: save(p, class_names=np.array([b"\xff", b"b", b"c"])), {}, r"class_names are not Unicode .*: save"),
        (lambda p: save(p, class_names=no_code_point()), {}, r"class_names are not Unicode .*: save"),
        (lambda p: save(p, class_names=np.array([1, 2, 3])), {}, r"expected text \(K,\): save"),
        (lambda p: save(p, IMAGES / 255), {}, "expected uint8"),
        (save, {"labels_from": "folders"}, "has its labels in arr_1. Leave"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(make, options, match, tmp_path):
    with pytest.raises(DataError, match=match) as error:
        open_dataset(make(tmp_path / "x.npz") or "", **options)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_channels_are_one_or_three(tmp_path):
    with pytest.raises(UsageError, match="channels 2"):
        open_dataset(save(tmp_path / "x.npz"), channels=2)


@pytest.mark.parametrize("kind", ["stored", "compressed"])
def test_damage_is_found_before_training(kind, tmp_path):
    path = tmp_path / "x.npz"
    KINDS[kind](tmp_path)
    whole = path.read_bytes()
    at = len(whole) // 3
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
    with pytest.raises(AdmError):
        open_dataset(str(path))


def test_a_file_that_changes_during_training_is_named(tmp_path):
    path = save(tmp_path / "x.npz")
    data = open_dataset(path)
    save(path, IMAGES[:6], LABELS[:6])
    with pytest.raises(DataError, match="changed since it was opened: start again"):
        data.image(0)
