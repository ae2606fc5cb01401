"""`adm reference`: a file that numpy and the original evaluator read, the same every time, or one line and nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from adm.data import center_crop

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (30, 6, 6, 3), np.uint8)
LABELS = RNG.randint(0, 5, 30)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADM_INCEPTION_WEIGHTS", raising=False)
    np.savez("x.npz", IMAGES, LABELS)
    return tmp_path


def loaded(path):
    with np.load(path) as arrays:
        return dict(arrays)


def test_all_images_are_kept_when_there_are_not_more_than_asked(here, adm_command):
    result = adm_command("reference", "x.npz", "r.npz", "--no-statistics")
    assert (result.code, result.out) == (0, "r.npz  (30 of 30 images)\n")
    arrays = loaded("r.npz")
    assert list(arrays) == ["arr_0", "arr_1"]
    assert np.array_equal(arrays["arr_0"], IMAGES) and np.array_equal(arrays["arr_1"], LABELS)


def test_a_subset_is_seeded_and_its_labels_go_with_it(here, adm_command):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ["x.npz", f"{out}.npz", "--num", 8, "--seed", seed, "--no-statistics"]
        assert adm_command("reference", *words).code == 0
    assert (here / "a.npz").read_bytes() == (here / "b.npz").read_bytes() != (here / "c.npz").read_bytes()
    arrays = loaded("a.npz")
    pairs = {(image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)}
    kept = [(image.tobytes(), label) for image, label in zip(arrays["arr_0"], arrays["arr_1"], strict=True)]
    assert len(set(kept)) == 8 and set(kept) <= pairs


def test_size_crops_as_adm_does_and_the_json_says_so(here, adm_command):
    picture = RNG.randint(0, 256, (40, 30, 3), np.uint8)
    (here / "photos").mkdir()
    Image.fromarray(picture).save("photos/0.png")
    Image.fromarray(picture[:20]).save("photos/1.png")
    assert adm_command("reference", "photos", "r.npz", "--size", 16, "--no-statistics").code == 0
    expected = np.stack([center_crop(picture, 16), center_crop(picture[:20], 16)])
    assert np.array_equal(loaded("r.npz")["arr_0"], expected)
    made = json.loads((here / "r.json").read_text())
    assert made["image_shape"] == [16, 16, 3] and "16x16" in made["preprocessing"] and made["statistics"] is None
    assert made["data_conditions"]["formats"] == {"PNG": 2}


def test_statistics_are_those_of_all_images_and_what_is_kept_is_a_part(here, adm_command, monkeypatch):
    """With the network's place taken by the mean colour, whose statistics numpy knows."""
    from adm.metrics.extractors import inception
    from adm.studies import evaluation

    def colours(source, **_):
        values = np.concatenate(list(source.batches(7))).astype(np.float64).mean((1, 2))
        return {"mu": values.mean(0), "sigma": np.cov(values, rowvar=False)}

    monkeypatch.setattr(evaluation, "reference_statistics", colours)
    monkeypatch.setattr(inception, "located_weights", lambda *_: (here, "0" * 64))
    result = adm_command("reference", "x.npz", "r.npz", "--num", 4)
    assert (result.code, result.out) == (0, "r.npz  (4 of 30 images, statistics of all)\n")
    arrays = loaded("r.npz")
    values = IMAGES.astype(np.float64).mean((1, 2))
    assert len(arrays["arr_0"]) == 4
    assert np.allclose(arrays["mu"], values.mean(0), rtol=1e-14)
    assert np.allclose(arrays["sigma"], np.cov(values.T), rtol=1e-12)
    made = json.loads((here / "r.json").read_text())["statistics"]
    assert made == {"num": 30, "weights_sha256": "0" * 64}


ERRORS = {
    "x.npz r.zip": (2, "no name of an .npz"),
    "x.npz x.npz": (2, "x.npz exists"),
    "x.npz r.npz --num 0": (2, "--num 0"),
    "x.npz r.npz --size 0": (2, "--size 0"),
    "x.npz r.npz --seed -1": (2, "--seed -1"),
    "x.npz r.npz --no-statistics --weights w.pth": (2, "--weights are for the statistics"),
    "x.npz r.npz": (2, "adm models get inception"),
    "nowhere r.npz --no-statistics": (3, "no such file or folder"),
    "floats.npz r.npz --no-statistics": (3, "expected uint8"),
    "damaged.npz r.npz --no-statistics": (4, "checksum"),
    "text.npz r.npz --no-statistics": (4, "truncated"),
}


@pytest.mark.parametrize("words", ERRORS)
def test_errors_are_one_line_and_leave_nothing(here, adm_command, words):
    np.savez("floats.npz", IMAGES / 255)
    (here / "text.npz").write_text("hello, world: this is no archive")
    data = bytearray((here / "x.npz").read_bytes())
    data[3000] ^= 1
    (here / "damaged.npz").write_bytes(data)
    before = sorted(path.name for path in here.iterdir())
    code, reason = ERRORS[words]
    result = adm_command("reference", *words.split())
    assert result.code == code and reason in result.problem, result.err
    assert sorted(path.name for path in here.iterdir()) == before
