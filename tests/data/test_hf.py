"""Hugging Face data sets: which columns are taken, by a stand-in for the library that has what is used of it."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from adm.data import open_dataset
from adm.runtime.errors import AdmError, DataError, UsageError


def png(level, mode="RGB"):
    stream = io.BytesIO()
    Image.new("L", (3, 2), level).convert(mode).save(stream, format="PNG")
    return stream.getvalue()


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


class FakeLabel:
    def __init__(self, names):
        self.names = names


class FakeValue:
    pass


class Table:
    """Columns of one length. An image column gives arrays unless it is cast to decode=False."""

    def __init__(self, columns, features):
        self.columns, self.features, self._fingerprint = columns, features, "not hexadecimal"

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def select_columns(self, names):
        return Table({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def cast_column(self, name, feature):
        return Table(self.columns, {**self.features, name: feature})

    def __getitem__(self, key):
        if isinstance(key, slice):
            return {name: values[key] for name, values in self.columns.items()}
        assert all(not f.decode for f in self.features.values() if isinstance(f, FakeImage)), "decoded by the library"
        return {name: values[key] for name, values in self.columns.items()}


def in_bytes(*levels):
    return [{"bytes": png(level), "path": None} for level in levels]


@pytest.fixture
def library(monkeypatch):
    module = types.ModuleType("datasets")
    module.Image, module.ClassLabel, module.Value = FakeImage, FakeLabel, FakeValue
    module.asked = []
    module.tables = {}

    def load_dataset(name, config=None, split=None):
        module.asked.append((name, config, split))
        if split not in module.tables:
            raise ValueError(f"Unknown split {split!r}.\nShould be one of {list(module.tables)}.")
        return module.tables[split]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


PETS = {"img": in_bytes(10, 20, 30), "kind": [0, 1, 0], "name": ["rex", "tom", "ace"], "score": [0.5, 1.5, 2.0]}
FEATURES = {"img": FakeImage(), "kind": FakeLabel(["zebra", "ant"]), "name": FakeValue(), "score": FakeValue()}


@pytest.fixture
def pets(library):
    library.tables = {"train": Table(PETS, FEATURES), "test": Table(PETS, FEATURES)}
    return library


def levels(data):
    return [int(data.image(i)[0, 0, 0]) for i in range(len(data))]


def test_columns_are_found_by_their_type_and_classes_keep_their_order(pets):
    data = open_dataset("hf:some/pets")
    assert data.class_names == ("zebra", "ant")
    assert [data.label(i) for i in range(3)] == [0, 0, 1] and levels(data) == [10, 30, 20]
    assert (data.name, data.channels, data.image(0).shape) == ("hf:some/pets:train", 3, (2, 3, 3))
    assert data.image(0).dtype == np.uint8 and pets.asked == [("some/pets", None, "train")]


@pytest.mark.parametrize(
    ("spec", "split", "asked"),
    [
        ("hf:pets:test", None, ("pets", None, "test")),
        ("hf:pets", "test", ("pets", None, "test")),
        ("hf:pets:test", "test", ("pets", None, "test")),
        ("hf:org/pets@small", None, ("org/pets", "small", "train")),
        ("hf:org/pets@small:test", None, ("org/pets", "small", "test")),
    ],
)
def test_name_configuration_and_split(spec, split, asked, pets):
    open_dataset(spec, split)
    assert pets.asked == [asked]


def test_labels_are_those_of_another_column_or_none(pets):
    named = open_dataset("hf:pets", labels_from="name")
    assert named.class_names == ("ace", "rex", "tom") and levels(named) == [30, 10, 20]
    none = open_dataset("hf:pets", labels_from="none")
    assert none.class_names == () and none.label(0) == -1 and levels(none) == [10, 20, 30]
    assert len({named.fingerprint, none.fingerprint, open_dataset("hf:pets").fingerprint}) == 3


def test_grey_rows_give_one_channel_and_a_path_is_read(pets, tmp_path):
    (tmp_path / "x.png").write_bytes(png(7, "L"))
    cells = [{"bytes": png(5, "L"), "path": "x"}, {"bytes": None, "path": str(tmp_path / "x.png")}]
    pets.tables["train"] = Table({"img": cells}, {"img": FakeImage()})
    data = open_dataset("hf:pets")
    assert data.channels == 1 and levels(data) == [5, 7] and data.class_names == ()


def test_bad_rows_are_listed_or_left_out(pets):
    cells = [*in_bytes(1), None, {"bytes": b"<html>", "path": None}, {"bytes": b"\x89PNG\r\n\x1a\n", "path": None}]
    pets.tables["train"] = Table({"img": cells, "kind": [0, 1, 0, 1]}, {"img": FakeImage(), "kind": FakeLabel("ab")})
    with pytest.raises(DataError) as error:
        open_dataset("hf:pets")
    assert str(error.value).startswith(
        "3 unreadable images of 4 in 'hf:pets:train': 'row 1' (no image in this row); 'row 2' "
        "(not a PNG, JPEG, WEBP or BMP)"
    )
    data = open_dataset("hf:pets", skip_bad=True)
    assert (levels(data), data.labels.tolist(), data.class_names) == ([1], [0], ("a", "b"))
    assert any("3 unreadable images are left out (75 %): 'row 1'" in note for note in data.notes)


def test_a_label_that_is_missing_or_out_of_range_is_refused(pets):
    pets.tables["train"] = Table(
        {"img": in_bytes(1, 2), "kind": [0, -1]}, {"img": FakeImage(), "kind": FakeLabel("ab")}
    )
    with pytest.raises(DataError, match="gives 1 of 2 images no label, such as 'row 1': label all"):
        open_dataset("hf:pets")
    pets.tables["train"] = Table({"img": in_bytes(1, 2), "kind": [0, 2]}, {"img": FakeImage(), "kind": FakeLabel("ab")})
    with pytest.raises(DataError, match="holds 2, but has 2 classes: correct"):
        open_dataset("hf:pets")


@pytest.mark.parametrize(
    ("spec", "labels_from", "match"),
    [
        ("hf", None, "say which, as in hf:SOURCE"),
        ("hf:", None, "say which, as in hf:SOURCE"),
        ("hf:pets:dev", None, r"cannot be opened \(Unknown split 'dev'.*: check name, config and split"),
        ("hf:pets", "nam", "is no column of 'hf:pets:train'; did you mean 'name'"),
        ("hf:pets", "score", "holds 0.5: use a column of class labels"),
    ],
)
def test_what_does_not_work_is_one_line(spec, labels_from, match, pets):
    with pytest.raises(DataError, match=match) as error:
        open_dataset(spec, labels_from=labels_from)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_one_image_column_and_one_label_column_are_needed(pets):
    two = {**FEATURES, "name": FakeLabel(["a"])}
    pets.tables["train"] = Table(PETS, two)
    with pytest.raises(DataError, match="several label columns: give --labels-from one of kind, name"):
        open_dataset("hf:pets")
    pets.tables["train"] = Table(PETS, {**FEATURES, "name": FakeImage()})
    with pytest.raises(DataError, match="has 2 columns of images"):
        open_dataset("hf:pets")
    pets.tables["train"] = Table({"kind": [0]}, {"kind": FakeLabel(["a"])})
    with pytest.raises(DataError, match="has no column of images"):
        open_dataset("hf:pets")


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r'pip install "adm-diffusion\[hub\]"') as error:
        open_dataset("hf:pets")
    assert isinstance(error.value, AdmError) and "\n" not in str(error.value)
