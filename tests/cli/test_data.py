"""adm data check and adm data pack, as typed."""

import json
import tarfile
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from adm.data import open_dataset
from adm.data.pack import Pack
from adm.runtime.errors import DataError
from conftest import TINY


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.randint(0, 256, (12, 18, 3), np.uint8)).save(f"photos/{name}/{k}.png")
    return tmp_path


def test_good_data_are_reported_on_stdout(photos, adm_command):
    result = adm_command("data", "check", "photos", "--image-size", "8x12", "--out", "report.json")
    assert result.code == 0 and result.err == ""
    assert "6 images (folder)" in result.out and "at 8x12 in 3 channel(s)" in result.out
    report = json.loads((photos / "report.json").read_text())
    assert report["classes"]["counts"] == {"cat": 3, "dog": 3} and report["training"]["image_size"] == [8, 12]
    again = adm_command("data", "check", "photos", "--out", "report.json")
    assert again.code == 2 and "report.json exists" in again.problem


def test_bad_images_are_all_listed_and_the_code_is_3(photos, adm_command):
    for k in range(3):
        (photos / f"photos/dog/{k}.png").write_bytes(b"")
    result = adm_command("data", "check", "photos")
    assert result.code == 3 and "3 of 6 images cannot be read, such as 'dog/0.png' (empty file)" in result.problem
    assert all(f"dog/{k}.png: empty file" in result.out for k in range(3))
    assert "6 images (folder), 3 of them unreadable" in result.out and "are left out" not in result.out


def test_bad_images_in_shards_are_refused_too(photos, adm_command):
    (photos / "photos/dog/1.png").write_bytes((photos / "photos/dog/1.png").read_bytes()[:-20])
    with tarfile.open("w.tar", "w") as archive:
        archive.add("photos", "")
    result = adm_command("data", "check", "webdataset:w.tar")
    assert result.code == 3 and "1 of 6 images cannot be read" in result.problem and "skip_bad=true" in result.problem


def test_a_pack_trains_in_place_of_its_images(photos, adm_command):
    result = adm_command("data", "pack", "photos", "packed", "--image-size", "8")
    assert result.code == 0 and result.out.startswith("packed  (6 images, ")
    assert len(Pack("packed")) == 6
    assert adm_command("data", "pack", "photos", "packed", "--image-size", "8").code == 0
    other = adm_command("data", "pack", "photos", "packed", "--image-size", "16")
    assert other.code == 2 and "a pack of other images or another size" in other.last
    assert adm_command("data", "check", "packed").code == 0
    shard = photos / "packed/images-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert adm_command("data", "check", "packed").code == adm_command("data", "check", "pack:packed").code == 4


def test_a_pack_is_stopped_while_the_images_are_opened(photos, adm_command, monkeypatch):
    """Decoding all of them may take an hour, and nothing of it is lost: the scan comes first."""
    opened = []

    @contextmanager
    def stopped_at_once(told=True):
        yield lambda: opened.append(1) is None

    monkeypatch.setattr("adm.runtime.signals.stop_requests", stopped_at_once)
    monkeypatch.setattr("adm.data._labelled_files.LabelledFiles.image", None)  # nothing is packed
    result = adm_command("data", "pack", "photos", "packed", "--image-size", "8")
    assert result.code == 75 and "stopped while the images were opened" in result.last and len(opened) == 1
    assert sorted(path.name for path in photos.iterdir()) == ["photos"]


def test_bad_images_are_left_out_of_a_pack_on_request_only(photos, adm_command):
    (photos / "photos/dog/1.png").write_bytes(b"")
    refused = adm_command("data", "pack", "photos", "packed", "--image-size", "8")
    assert refused.code == 3 and "dog/1.png" in refused.last and not (photos / "packed").exists()
    assert refused.last.endswith("repair or remove, or leave out with --skip-bad.")
    taken = adm_command("data", "pack", "photos", "packed", "--image-size", "8", "--skip-bad")
    assert taken.code == 0 and "(5 images, " in taken.out and "left out" in taken.err
    assert any("left out" in note for note in Pack("packed").notes)


def test_who_meets_unreadable_images_is_told_the_way_that_is_open_where_he_is(photos, adm_command):
    """Flags of one command are no flags of another; a way that is named works."""
    (photos / "photos/dog/1.png").write_bytes(b"")
    train = ["train", "diffusion", "--data", "photos", "--out", "run", "--steps", 1, "--batch", 2, "--device", "cpu"]
    train += ["--set", "loop.sample_every=none"]
    refused = adm_command(*train, "--image-size", "8x12", *TINY)
    assert refused.code == 3 and refused.last.endswith("or remove, or leave out with --set data.skip_bad=true.")
    taken = adm_command(*train, "--image-size", "8x12", *TINY, "--set", "data.skip_bad=true")
    assert taken.code == 0 and "1 unreadable image is left out (17 %): 'dog/1.png' (empty file)" in taken.err
    on_digits = ["train", "diffusion", "--data", "digits", "--out", "other", "--steps", 1, "--device", "cpu"]
    refused = adm_command(*on_digits, *TINY, "--set", "data.validation=photos")
    assert refused.code == 3 and refused.last.endswith("or remove, or leave out with --set data.skip_bad=true.")
    refused = adm_command("likelihood", "run", "photos", "--device", "cpu")
    assert refused.code == 3 and refused.last.endswith("'dog/1.png' (empty file): repair or remove.")
    with pytest.raises(DataError, match=r"repair or remove, or leave out with skip_bad=True$"):
        open_dataset("photos")
    assert len(open_dataset("photos", skip_bad=True)) == 5


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["check", "nowhere"], 3, "no such"),
        (["check", "photos", "--image-size", "8x"], 2, "--image-size"),
        (["pack", "photos", "packed"], 2, "needs --image-size"),
        (["pack", "photos", "photos", "--image-size", "8"], 2, "exists and is no pack"),
        (["pack", "photos", "photos/packed", "--image-size", "8"], 2, "lies within the data 'photos'"),
        (["pack", "photos", "packed", "--image-size", "8", "--channels", "2"], 2, "--channels 2"),
    ],
)
def test_what_cannot_work_is_one_line(words, code, problem, photos, adm_command):
    result = adm_command("data", *words)
    assert result.code == code and problem in result.problem
