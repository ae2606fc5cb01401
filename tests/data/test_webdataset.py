"""WebDataset shards, as Python's tarfile writes them: samples, labels, names of any length, and what is refused."""

import io
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from adm.data import open_dataset
from adm.data._open_file import OpenFile
from adm.data._tar import tar_members
from adm.runtime.errors import AdmError, DamagedError, DataError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def png(level):
    stream = io.BytesIO()
    Image.new("L", (3, 2), level).save(stream, format="PNG")
    return stream.getvalue()


def shard(path, files, format="pax"):
    with tarfile.open(path, "w", format=FORMATS[format]) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shards(here):
    for k in range(3):
        shard(f"pets-{k:03}.tar", {"0.png": png(10 * k), "0.cls": f"{k}\n", "1.png": png(10 * k + 1), "1.cls": "0"})
    return "webdataset:pets-{000..002}.tar"


def content(data):
    return {path: (data.label(i), int(data.image(i)[0, 0, 0])) for i, path in enumerate(data.paths)}


def test_a_sample_is_an_image_and_the_label_beside_it(shards):
    data = open_dataset(shards)
    assert data.class_names == ("0", "1", "2") and data.channels == 1
    assert content(data) == {
        "pets-000.tar/0.png": (0, 0), "pets-000.tar/1.png": (0, 1), "pets-001.tar/1.png": (0, 11),
        "pets-002.tar/1.png": (0, 21), "pets-001.tar/0.png": (1, 10), "pets-002.tar/0.png": (2, 20),
    }  # fmt: skip
    assert open_dataset("webdataset:pets-*.tar").fingerprint == data.fingerprint
    assert open_dataset("webdataset:pets-00{0,1,2}.tar").fingerprint == data.fingerprint
    assert len(open_dataset("webdataset:pets-001.tar")) == 2


def test_names_and_their_order_may_be_given(shards):
    Path("classes.txt").write_text("cat\ndog\nemu\n")
    assert open_dataset(shards).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ({"a.cls": "dog", "b.cls": "cat\n"}, ("cat", "dog"), [1, 0]),
        ({"a.json": '{"label": 1}', "b.json": '{"label": 0, "width": 3}'}, ("0", "1"), [1, 0]),
        ({"a.json": '{"class": "x"}', "b.json": '{"cls": "y"}'}, ("x", "y"), [0, 1]),
        ({"a.json": '{"label": 1}', "b.json": '{"label": 0}', "a.cls": "0", "b.cls": "1"}, ("0", "1"), [0, 1]),
        ({"a.json": '{"label": " x"}', "b.json": '"y "'}, ("x", "y"), [0, 1]),
        ({"a.json": '{"label": ""}', "b.json": '{"label": " "}'}, (), [-1, -1]),
        ({"a.json": '{"caption": "a"}', "b.json": "{}", "a.txt": "a dog"}, (), [-1, -1]),
        ({}, (), [-1, -1]),
    ],
)
def test_where_labels_are_found(labels, names, expected, here):
    shard("s.tar", {"a.png": png(1), "b.png": png(2), **labels})
    data = open_dataset("webdataset:s.tar")
    assert data.class_names == names
    assert [content(data)[f"s.tar/{key}.png"][0] for key in "ab"] == expected


def test_labels_may_come_from_elsewhere(shards, here):
    assert open_dataset(shards, labels_from="none").class_names == ()
    (here / "t.csv").write_text("file,label\npets-001.tar/0.png,cat\n")
    assert content(open_dataset(shards, labels_from="t.csv")) == {"pets-001.tar/0.png": (0, 10)}
    shard("p.tar", {"x/cat_1.png": png(1), "dog_2.png": png(2)})
    assert open_dataset("webdataset:p.tar", labels_from="prefix").class_names == ("cat", "dog")


@pytest.mark.parametrize("format", FORMATS)
def test_every_member_lies_where_tarfile_finds_it(format, here):
    names = [f"{k}.png" for k in range(5)] + ["d/" * 40 + "x.png", "\u00e9.png"]
    names += [] if format == "ustar" else ["n" * 180 + ".png", "d/" * 200 + "\u4e2d.png"]
    files = {name: random.Random(name).randbytes(37 * k) for k, name in enumerate(names)}
    path = shard(here / "x.tar", files, format)
    with tarfile.open(path, "a", format=FORMATS[format]) as archive:
        for kind, name in ((tarfile.DIRTYPE, "dir"), (tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "0.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            archive.addfile(info)
    with OpenFile(path) as file:
        found = {m.name: file.read_at(m.offset, m.size) if m.size else b"" for m in tar_members(file)}
    assert found == files


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {"a.png": png(1), "a.jpg": png(2), "a.cls": "0"},
            "has two images, 's.tar/a.png' and 's.tar/a.jpg': leave one",
        ),
        (
            {"a.png": png(1), "a.cls": "0", "b.png": png(2)},
            "gives 1 of 2 images no label, such as 's.tar/b.png': label",
        ),
        ({"a.png": png(1), "a.cls": "-3"}, "the label -3, not 0..99999: correct"),
        ({"a.png": png(1), "a.cls": b"\xff"}, "'s.tar/a.cls' in s.tar is not UTF-8: write"),
        ({"a.png": png(1), "a.json": "{"}, "is not valid JSON: make it again"),
        (
            {"a.png": png(1), "a.json": '{"label": "\\ud800"}', "b.png": png(2), "b.json": '{"label": "x"}'},
            r"class '\\ud800' of the labels in s.tar is not named in UTF-8: rename",
        ),
        ({"a.png": png(1), "a.json": '{"label": [1]}'}, "has the label .1.: write a number"),
        ({"a.png": b"<html>", "a.cls": "0"}, r"1 unreadable image of 1 in 's.tar': 's.tar/a.png' \(not a PNG"),
        ({"a.txt": "x"}, "no images in 's.tar'"),
    ],
)
def test_what_is_wrong_with_a_sample_is_one_line(files, match, here):
    shard("s.tar", files)
    with pytest.raises(DataError, match=match) as error:
        open_dataset("webdataset:s.tar")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("webdataset", "say which, as in webdataset:PATTERN"),
        ("webdataset:gone-*.tar", "no such file: give shards"),
        ("webdataset:pets-{000..003}.tar", "pets-003.tar does not exist: give shards"),
        ("webdataset:{0..999999}{0..999999}.tar", "more than 100000 shards"),
        ("pets-000.tar", "is a tar archive: write webdataset:pets-000.tar"),
    ],
)
def test_a_pattern_means_shards_that_are_there(spec, match, shards):
    with pytest.raises(DataError, match=match):
        open_dataset(spec)


def test_compressed_shards_are_refused(here):
    with tarfile.open("s.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(DataError, match=r"is compressed.*gunzip"):
        open_dataset("webdataset:s.tar")


def test_a_shard_with_a_name_twice_is_refused(here):
    with tarfile.open("s.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DamagedError, match=r"holds 'a.png' twice\. Make"):
        open_dataset("webdataset:s.tar")


def test_every_truncation_is_refused(here):
    data = shard(here / "s.tar", {"a.png": png(1), "a.cls": "0", "b.png": png(2), "b.cls": "1"}).read_bytes()
    end = data.rstrip(b"\0")
    for length in range(0, len(end) + 1, 97):
        (here / "s.tar").write_bytes(data[:length])
        with pytest.raises(AdmError) as error:
            open_dataset("webdataset:s.tar")
        assert error.value.exit_code in (3, 4)


def test_a_damaged_header_gives_an_error_or_the_same_table(here):
    data = shard(here / "s.tar", {"a.png": png(1), "a.cls": "0", "n" * 150 + ".png": png(2), "n" * 150 + ".cls": "1"})
    whole, reference = data.read_bytes(), content(open_dataset("webdataset:s.tar"))
    draw = random.Random(0)
    num_refused = 0
    for _ in range(150):
        at, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
        data.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        try:
            found = content(open_dataset("webdataset:s.tar"))
        except AdmError as error:
            num_refused += 1
            assert "\n" not in str(error) and error.exit_code in (3, 4)
        else:
            assert found.keys() == reference.keys() or at > 512, at
    assert num_refused > 30


def test_a_shard_that_changes_is_noticed(shards, here):
    data = open_dataset(shards)
    shard("pets-000.tar", {"0.png": png(99), "0.cls": "0", "1.png": png(98), "1.cls": "0"})
    with pytest.raises(DataError, match="start again"):
        data.image(0)


@pytest.mark.parametrize("field", [b"-0000001000", b"+0000000003", b"00000_00003", b"0000000008 ", b"\t0000000003"])
def test_a_size_is_nothing_but_octal_digits(field, here):
    """Python reads signs, too, and an archive whose next file lies before this one would be read for ever."""
    header = bytearray(shard(here / "s.tar", {"a.png": b"x" * 3}, "ustar").read_bytes())
    header[124:136] = field.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    (here / "s.tar").write_bytes(header)
    with OpenFile(here / "s.tar") as file, pytest.raises(DamagedError, match="holds no number where one is expected"):
        next(tar_members(file))
