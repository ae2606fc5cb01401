"""The words of a command line and the data that they mean."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adm.data import open_dataset, open_images, refuse_within
from adm.data.digits import Digits
from adm.data.folder import Folder
from adm.runtime.errors import DataError, UsageError
from adm.studies.data_check import check_data


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pets", "digits", "my.pets"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / folder / "x.png")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "split", "name"),
    [
        ("digits", None, "digits:train"),
        ("digits", "test", "digits:test"),
        ("digits:test", None, "digits:test"),
        ("digits:all", "all", "digits:all"),
        ("pets", None, "pets"),
        ("./digits", None, "digits"),
        ("my.pets", None, "my.pets"),
    ],
)
def test_a_built_in_name_or_a_folder(spec, split, name, images):
    data = open_dataset(spec, split)
    assert data.name == name and isinstance(data, Digits if ":" in name else Folder)


@pytest.mark.parametrize(
    ("out", "labels_from", "within"),
    [
        ("pets/run", None, True),
        ("pets/a/../b/run", "folders", True),
        ("link/run", "prefix", True),
        ("pets", None, True),
        ("pets/.runs/1", None, False),
        ("pets/run", "table.csv", False),
        ("pets-run", None, False),
        ("run", None, False),
    ],
)
def test_what_is_written_never_becomes_part_of_the_data(out, labels_from, within, images):
    (images / "link").symlink_to("pets")
    if not within:
        return refuse_within(Path(out), "pets", labels_from, "--out")
    with pytest.raises(UsageError, match=r"lies within the data 'pets', .* Choose another --out\.$"):
        refuse_within(Path(out), "pets", labels_from, "--out")


def test_data_by_name_hold_nothing_that_is_written(images):
    for data in ("digits", "hf:pets", "pets.zip", ""):
        refuse_within(Path("digits/run"), data, None, "--out")
    with pytest.raises(UsageError, match="lies within the data 'digits'"):  # the folder of that name is no built-in
        refuse_within(Path("digits/run"), "./digits", None, "--out")


def test_nothing_is_not_the_working_directory(images):
    """As when a variable of a script is not set."""
    for look in (open_dataset, open_images, check_data):
        with pytest.raises(DataError, match=r"^(data )?'': no such"):
            look("")


def test_a_path_that_no_file_can_have_is_said_not_to_be_there(images):
    with pytest.raises(DataError, match="no such folder"):
        check_data("x" * 5000)


def test_channels_and_progress_reach_the_folder(images):
    calls = []
    assert open_dataset("pets", None, 1, lambda *call: calls.append(call)).channels == 1
    assert calls == [(1, 1)]


def test_a_data_set_of_ones_own_by_its_dotted_name(images, monkeypatch):
    (images / "my_lab.py").write_text(
        "__all__ = ['Mine']\n"
        "class Mine:\n"
        "    def __init__(self, text='none', channels=None):\n"
        "        self.name = f'mine {text} {channels}'\n"
    )
    (images / "lab").mkdir()
    (images / "my_lab.py").rename(images / "lab/mine.py")
    monkeypatch.syspath_prepend(images)
    assert open_dataset("lab.mine").name == "mine none None"
    assert open_dataset("lab.mine:part", channels=3).name == "mine part 3"


@pytest.mark.parametrize(
    ("spec", "split", "match"),
    [
        ("digit", None, "no such folder.*did you mean 'digits'.*one of: digits"),
        ("/nowhere/at/all", None, "no such folder.*Give a folder of images, a .zip, an .npz, or one of: digits"),
        ("no.such.module", None, "no such folder"),
        ("", None, "no such folder"),
        ("digits:dev", None, "no split 'dev'.*train, test, all"),
        ("digits:test", "train", "disagree"),
        ("pets", "test", "is a path, without split 'test'"),
        ("pets/x.png", None, "is a file, not a folder"),
        ("pack", None, "say which, as in pack:PATH"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_is(spec, split, match, images):
    with pytest.raises(DataError, match=match) as error:
        open_dataset(spec, split)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_options_reach_a_data_set_of_ones_own_that_takes_them(images, monkeypatch):
    (images / "plain.py").write_text("__all__ = ['Plain']\nclass Plain:\n    def __init__(self, channels=None): pass\n")
    (images / "rich.py").write_text(
        "__all__ = ['Rich']\n"
        "class Rich:\n"
        "    def __init__(self, text='', channels=None, labels_from=None, skip_bad=False, *, split=None):\n"
        "        self.name = f'{text} {labels_from} {skip_bad} {split}'\n"
    )
    (images / "lab").mkdir()
    for name in ("plain", "rich"):
        (images / f"{name}.py").rename(images / f"lab/{name}.py")
    monkeypatch.syspath_prepend(images)
    rich = open_dataset("lab.rich:part", "test", labels_from="prefix", skip_bad=True)
    assert rich.name == "part prefix True test"
    assert open_dataset("lab.plain", skip_bad=True)
    for spec in ("lab.plain", "digits"):
        with pytest.raises(DataError, match="bring their own labels: leave --labels-from out"):
            open_dataset(spec, labels_from="prefix")


def test_every_component_keeps_the_contract(images):
    np.savez("arrays.npz", np.zeros((3, 4, 5, 3), np.uint8), np.arange(3))
    with zipfile.ZipFile("x.zip", "w") as archive, tarfile.open("x.tar", "w") as shard:
        archive.write("pets/x.png", "cat/x.png")
        archive.write("pets/x.png", "dog/x.png")
        shard.add("pets/x.png")
    for spec in ("digits", "pets", "x.zip", "arrays.npz", "webdataset:x.tar"):
        data = open_dataset(spec)
        image = data.image(len(data) - 1)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == data.channels
        assert -1 <= data.label(0) < max(len(data.class_names), 1)
        assert len(data.fingerprint) == 64 and isinstance(data.default_flip, bool) and data.name
