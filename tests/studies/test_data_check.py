"""The report on data says what is in them: counts, sizes and conversions that are known beforehand."""

import io
import json
import tarfile
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from adm.data import open_dataset
from adm.data._pack_writer import pack_images
from adm.data.folder import Folder
from adm.runtime.errors import DamagedError, DataError
from adm.studies._data_text import report_lines
from adm.studies.data_check import check_data, refused

RNG = np.random.RandomState(0)


def noise(height, width, channels=3):
    pixels = RNG.randint(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def encoded(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """Two classes, every kind of image, copies within and across classes, and one bad one of each of two kinds."""
    root = tmp_path / "data"
    for name in ("cat", "dog", "none here"):
        (root / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    first = noise(10, 20)
    hidden = np.array(noise(8, 8, 4))
    hidden[:, :, 3] = 255
    opaque = Image.fromarray(hidden)
    files = {
        "cat/first.png": encoded(first, "PNG"),
        "cat/again.bmp": encoded(first, "BMP"),
        "dog/first.png": encoded(first, "PNG", compress_level=1),
        "cat/grey.png": encoded(noise(30, 10, 1), "PNG"),
        "cat/wide.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"),
        "cat/alpha.png": encoded(noise(8, 8, 4), "PNG"),
        "cat/opaque.png": encoded(opaque, "PNG"),
        "cat/palette.png": encoded(noise(8, 8).quantize(8), "PNG"),
        "cat/inks.jpg": encoded(Image.new("CMYK", (8, 8), (9, 9, 9, 9)), "JPEG"),
        "cat/turned.jpg": encoded(noise(6, 12), "JPEG", exif=exif),
        "cat/bits.png": encoded(noise(8, 8, 1).convert("1"), "PNG"),
        "dog/torn.png": encoded(first, "PNG")[:-20],
        "dog/page.jpg": b"<!doctype html>",
        "dog/still.gif": encoded(first, "GIF"),
        "dog/notes.txt": b"a note",
        ".DS_Store": b"x",
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def test_the_report_says_what_is_there(mixed):
    report = check_data(str(mixed), image_size=8)
    assert report.data["num"] == 11 and report.data["kind"] == "folder" and report.data["left_out"] == 0
    assert report.classes["counts"] == {"cat": 10, "dog": 1, "none here": 0}
    assert report.classes["empty"] == ["none here"] and report.classes["skew"] == 10
    assert report.sizes["distinct"] == 4  # 10x20 thrice, 30x10, 12x6 upright, 8x8 six times
    assert report.sizes["smallest"] == [8, 8] and report.sizes["largest"] == [30, 10]
    assert report.sizes["commonest"] == [8, 8] and report.sizes["median"] == [8, 8]
    assert report.sizes["aspect"] == [0.333, 1, 2]
    modes = {"colour": 6, "grey": 1, "16-bit grey": 1, "palette": 1, "CMYK": 1, "1 bit": 1}
    assert report.stored["modes"] == modes and report.stored["formats"] == {"PNG": 8, "JPEG": 2, "BMP": 1}
    assert report.stored["with_alpha"] == 2 and report.stored["laid_on_white"] == 1
    assert report.stored["turned_by_exif"] == 1
    assert report.copies["groups"] == 1 and report.copies["images"] == 2 and report.copies["groups_across_classes"] == 1
    assert sorted(report.copies["names"][0]) == ["cat/again.bmp", "cat/first.png", "dog/first.png"]
    assert list(report.unreadable) == ["dog/page.jpg", "dog/torn.png"]
    assert report.skipped == {"files": 3, "hidden": 1, "suffixes": {".gif": 1, ".txt": 1}}
    training = report.training
    assert training["channels"] == 3 and training["bytes"] == 11 * 8 * 8 * 3
    assert training["unchanged"] == 6 and training["cropped"] == 5
    assert training["upscaled"] == 1  # 12x6, to 16x8
    # Of 10x20, 30x10 and 12x6 the central square is 1/2, 1/3 and 1/2: (3/2 + 2/3 + 1/2) / 11 is cut off.
    assert training["mean_share_cut_off"] == round((3 / 2 + 2 / 3 + 1 / 2) / 11, 4)
    json.dumps(asdict(report))


def test_all_that_is_wrong_is_said_at_once(mixed):
    (mixed / "loose.png").write_bytes((mixed / "cat/first.png").read_bytes())
    report = check_data(str(mixed))
    assert len(report.problems) == 1 and "at its top" in report.problems[0]
    assert list(report.unreadable) == ["dog/page.jpg", "dog/torn.png"]
    assert report.data["num"] == 12 and report.training["channels"] == 3
    why = refused(report)
    assert "--set data.skip_bad=true" in why and "adm data pack: --skip-bad" in why
    assert "loose.png" in why and "'dog/page.jpg' (a web page" in why and "2 of 14 images" in why and "\n" not in why


def test_unreadable_images_are_not_said_to_be_left_out_which_would_be_up_to_the_user(mixed):
    """Nor does any line count only the others, as if they were."""
    report = check_data(str(mixed))
    assert any("left out" in note for note in Folder(mixed, skip_bad=True).notes)
    assert not any("left out" in line for line in report_lines(report)) and "or leave them out (" in refused(report)
    assert report.notes and set(report.notes) < set(Folder(mixed, skip_bad=True).notes)


def test_what_training_takes_is_not_refused(mixed):
    (mixed / "dog/page.jpg").unlink()
    (mixed / "dog/torn.png").unlink()
    assert refused(check_data(str(mixed))) is None
    Folder(mixed)


def test_a_report_fits_a_screen_and_names_what_matters(mixed):
    text = "\n".join(report_lines(check_data(str(mixed), image_size=8)))
    for words in (
        "13 images (folder), 2 of them unreadable",
        "unreadable  2 of 13 images (15 %); what stands above is of the other 11",
        "cat 10, dog 1, none here 0",
        "CMYK 1",
        "1 transparent, laid on white",
        "1 turned upright",
        "2 images repeat the pixels of others, 1 of the pictures under several labels",
        "unreadable  dog/torn.png: truncated",
        "9.1% of the images enlarged, 54.5% of the images as they are",
        "3 files: 1 hidden, 1 .gif, 1 .txt",
        "images/s by",
    ):
        assert words in text, words
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize(
    ("side", "channels", "presets"),
    [
        (8, 1, "digits8"), (8, 3, None), (28, 1, "grey28"), (28, 3, None), (16, 3, "small16"),
        (32, 3, "cifar32, cifar16-to-32"), (32, 1, None), (64, 3, "imagenet64"),
    ],
)  # fmt: skip
def test_presets_are_suggested_that_were_made_for_such_images(side, channels, presets, tmp_path):
    """Of this size, and for grey or for colour: the built-in digits' are not for photographs."""
    np.savez(tmp_path / "a.npz", RNG.randint(0, 256, (2, side, side, channels), np.uint8))
    lines = [line for line in check_data(str(tmp_path / "a.npz")).suggestions if line.startswith("presets")]
    assert lines == ([] if presets is None else [f"presets for such images: {presets}"])


def test_an_archive_is_as_its_folder(mixed, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(mixed.rglob("*")):
            archive.write(path, path.relative_to(mixed.parent))
    folder, archive = check_data(str(mixed), image_size=8), check_data(str(tmp_path / "data.zip"), image_size=8)
    for subject in ("classes", "sizes", "stored", "copies", "training", "skipped", "unreadable"):
        assert getattr(folder, subject) == getattr(archive, subject), subject
    assert archive.data["kind"] == "zip" and archive.data["fingerprint"] == folder.data["fingerprint"]


def test_labels_may_come_from_elsewhere(tmp_path):
    root = tmp_path / "flat"
    root.mkdir()
    for name in ("cat_1", "cat_2", "dog_1"):
        noise(8, 8).save(root / f"{name}.png")
    assert check_data(str(root)).classes["num"] == 0
    assert check_data(str(root), "prefix").classes["counts"] == {"cat": 2, "dog": 1}
    (tmp_path / "labels.csv").write_text("file,label\ncat_1.png,a\ndog_1.png,b\n")
    report = check_data(str(root), str(tmp_path / "labels.csv"))
    assert report.data["num"] == 2 and report.data["left_out"] == 1 and report.classes["counts"] == {"a": 1, "b": 1}


def test_other_data_are_reported_too(tmp_path):
    report = check_data("digits:test")
    assert report.data["num"] == 599 and report.sizes["distinct"] == 1 and report.sizes["largest"] == [8, 8]
    assert report.training["channels"] == 1 and report.training["image_size"] == (8, 8)
    assert sum(report.classes["counts"].values()) == 599 and len(report.classes["counts"]) == 10
    assert refused(report) is None and report_lines(report)
    np.savez(tmp_path / "a.npz", RNG.randint(0, 256, (5, 6, 7, 3), np.uint8), np.array([0, 1, 1, 2, 2]))
    report = check_data(str(tmp_path / "a.npz"))
    assert report.data["num"] == 5 and report.sizes["largest"] == [6, 7]
    assert sorted(report.classes["counts"].values()) == [1, 2, 2]


def test_a_pack_is_read_to_its_last_byte(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for k in range(3):
        noise(9, 9).save(root / f"{k}.png")
    out = pack_images(Folder(root), tmp_path / "pack", 8)
    report = check_data(str(out))
    assert report.data["kind"] == "pack" and report.data["num"] == 3 and report.sizes["largest"] == [8, 8]
    path = out / "images-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedError, match=r"images-00000\.npy: contents do not match"):
        check_data(str(out))
    with pytest.raises(DamagedError, match=r"images-00000\.npy: contents do not match"):
        check_data(f"pack:{out}")


def test_what_training_refuses_is_refused_whatever_the_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = encoded(noise(9, 9), "PNG")
    with tarfile.open("w.tar", "w") as archive:
        for name, data in (("a.png", whole), ("b.png", whole[:-20])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match="truncated"):
        open_dataset("webdataset:w.tar")
    report = check_data("webdataset:w.tar")
    assert report.unreadable == {"w.tar/b.png": "truncated"} and "1 of 2 images cannot be read" in refused(report)


def test_a_folder_may_be_called_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    noise(9, 9).save("folder/a.png")
    report = check_data("folder")
    assert report.data["kind"] == "folder" and report.stored["formats"] == {"PNG": 1}


def test_data_that_are_not_there_are_an_error():
    with pytest.raises(DataError, match="no such"):
        check_data("/nowhere/at/all")


def test_each_image_is_decoded_once_and_training_then_decodes_none(tmp_path, monkeypatch):
    """What was found is remembered: a scan of the same files, unchanged, believes it."""
    from adm.data import _decoding_scan, _image_look

    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_decoding_scan, "MIN_RECORDED", 1)
    monkeypatch.setattr(_decoding_scan, "SETTLED", 0)
    root = tmp_path / "images"
    root.mkdir()
    for k in range(5):
        noise(9, 9).save(root / f"{k}.png")
    looked, scanned = [], []
    look, decoded = _image_look.look, _decoding_scan._decoded
    monkeypatch.setattr(_image_look, "look", lambda data: looked.append(data) or look(data))
    monkeypatch.setattr(_decoding_scan, "_decoded", lambda data: scanned.append(data) or decoded(data))
    report = check_data(str(root))
    assert len(looked) == 5 and not scanned
    assert Folder(root).fingerprint == report.data["fingerprint"] and not scanned
