"""Zip archives to train on: the folder that they were made of, whatever wrote them, and what is refused."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from adm.data import open_dataset
from adm.runtime.errors import AdmError, DamagedError


def png(level, size=(3, 2)):
    stream = io.BytesIO()
    Image.new("L", size, level).save(stream, format="PNG")
    return stream.getvalue()


def make(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


FILES = {"b/1.png": png(1), "a/2.png": png(2), "a/3.png": png(3), "notes.txt": b"-"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_an_archive_is_the_same_data_as_its_folder(method, prefix, tmp_path):
    for name, data in FILES.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(data)
    folder = open_dataset(str(tmp_path / "pets"))
    archive = open_dataset(str(make(tmp_path / "x.zip", {prefix + name: data for name, data in FILES.items()}, method)))
    assert archive.fingerprint == folder.fingerprint and archive.class_names == ("a", "b")
    assert archive.paths == folder.paths and archive.labels.tolist() == [0, 0, 1] and archive.notes == folder.notes
    assert all(np.array_equal(archive.image(i), folder.image(i)) for i in range(3))


def test_names_in_utf8_are_read_though_the_archive_does_not_say_so(tmp_path):
    path = make(tmp_path / "x.zip", {"cafZZ/x.png": png(1), "d/x.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"cafZZ", "caf\u00e9".encode()))
    assert open_dataset(str(path)).class_names == ("caf\u00e9", "d")
    path.write_bytes(path.read_bytes().replace("caf\u00e9".encode(), b"cafe\x82"))
    assert open_dataset(str(path)).class_names == ("cafe\u00e9", "d"), "code page 437"


def test_a_member_that_is_damaged_is_refused_or_left_out(tmp_path):
    path = make(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.index(png(2)) + 20
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DamagedError, match=r"member 'a/2\.png' does not match its checksum"):
        open_dataset(str(path))
    rest = open_dataset(str(path), skip_bad=True)
    assert rest.paths == ("a/3.png", "b/1.png") and rest.bad == {
        "a/2.png": "member 'a/2.png' does not match its checksum"
    }


def encrypted(data):
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data = data[:at] + struct.pack("<H", 1) + data[at + 2 :]
    return data


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-30], "no directory at its end"),
        (lambda data: b"#!/bin/sh\n" + data, "refused"),
        (encrypted, "is encrypted"),
        (lambda data: data.replace(b"a/2.png", b"a/3.png"), "holds member 'a/3.png' twice"),
        (lambda data: data.replace(b"a/2.png", b"../.png"), "leads out of it"),
        (lambda data: data.replace(b"a/2.png", b"/etc/ab"), "leads out of it"),
        (lambda data: data.replace(b"a/2.png", b"a\\2.png"), "leads out of it"),
    ],
)
def test_archives_that_are_not_what_they_say_are_refused(change, match, tmp_path):
    path = make(tmp_path / "x.zip", FILES)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AdmError, match=match) as error:
        open_dataset(str(path))
    assert "\n" not in str(error.value) and error.value.exit_code in (3, 4)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path):
    path = make(tmp_path / "x.zip", {"a/x.png": png(1), "a/y.png": bytes(2**25)})
    with pytest.raises(DamagedError, match=r"'a/y\.png' grows from"):
        open_dataset(str(path))


def test_an_archive_within_an_archive_is_skipped(tmp_path):
    inner = make(tmp_path / "inner.zip", FILES).read_bytes()
    data = open_dataset(str(make(tmp_path / "x.zip", {"a/x.png": png(1), "b/x.png": png(2), "b/inner.zip": inner})))
    assert len(data) == 2 and data.skipped == 1


def test_an_archive_that_changes_during_training_is_named(tmp_path):
    path = make(tmp_path / "x.zip", FILES)
    data = open_dataset(str(path))
    make(path, {**FILES, "a/4.png": png(9)})
    with pytest.raises(AdmError, match="changed since it was opened: start again"):
        data.image(0)
