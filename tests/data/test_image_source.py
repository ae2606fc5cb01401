"""Folders, archives and sample sets as images in a fixed order: the pixels of Pillow, labels, and what is refused."""

import csv
import hashlib
import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from adm.data import SampleSet, center_crop, open_images, png_bytes, stored_statistics, subset
from adm.runtime.errors import DamagedError, DataError

RNG = np.random.RandomState(0)
PICTURES = RNG.randint(0, 256, (12, 6, 5, 3), np.uint8)


def all_of(source, size=4, **part):
    return np.concatenate(list(source.batches(size, **part)))


def write(root, names, pictures=PICTURES, **options):
    for name, picture in zip(names, pictures, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.squeeze()).save(root / name, **options)
    return root


def zipped(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def zip_of(folder, path, prefix="", method=zipfile.ZIP_DEFLATED):
    files = [p for p in sorted(folder.rglob("*"), reverse=True) if p.is_file()]
    return zipped(path, [(prefix + p.relative_to(folder).as_posix(), p.read_bytes()) for p in files], method)


CLASSES = ["b/1.png", "b/0.png", "a/10.png", "a/2.png", "a/x/0.png", "10/0.png", "2/0.png"]
IN_ORDER = ["10/0.png", "2/0.png", "a/10.png", "a/2.png", "a/x/0.png", "b/0.png", "b/1.png"]


@pytest.fixture
def classes(tmp_path):
    return write(tmp_path / "classes", CLASSES)


# --- order, labels, pixels --------------------


def test_class_folders_are_labels_and_names_give_the_order(classes):
    source = open_images(classes)
    assert np.array_equal(all_of(source), PICTURES[[CLASSES.index(name) for name in IN_ORDER]])
    assert source.labels.tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert (source.name, source.num, source.shape) == ("classes", 7, (6, 5, 3))
    assert source.conditions["labels"] == "class folders" and source.conditions["kind"] == "folder"


def test_loose_images_have_no_labels(tmp_path):
    source = open_images(write(tmp_path / "flat", ["b.png", "a.png"]))
    assert source.labels is None and np.array_equal(all_of(source), PICTURES[[1, 0]])


@pytest.mark.parametrize("prefix", ["", "enclosing/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_the_folder_it_was_made_from(classes, tmp_path, prefix, method):
    folder, archive = open_images(classes), open_images(zip_of(classes, tmp_path / "x.zip", prefix, method))
    assert archive.sha256 == folder.sha256 and archive.conditions["kind"] == "zip"
    assert np.array_equal(all_of(archive), all_of(folder)) and np.array_equal(archive.labels, folder.labels)


@pytest.mark.parametrize("size", [1, 5, 7, 50])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (2, 5), (6, 99), (3, 3), (7, None)])
def test_any_part_in_batches_of_any_size_is_that_part(classes, size, start, stop):
    source = open_images(classes)
    batches = list(source.batches(size, start, stop))
    assert all(len(batch) == size for batch in batches[:-1])
    assert np.array_equal(np.concatenate([np.empty((0, 6, 5, 3), np.uint8), *batches]), all_of(source)[start:stop])


def test_the_hash_is_of_names_and_contents(classes, tmp_path):
    before = open_images(classes).sha256
    os.utime(classes / "b/0.png", (0, 0))
    assert open_images(classes).sha256 == before
    assert open_images(classes, size=4).sha256 != before, "other pixels"
    (classes / "b/0.png").rename(classes / "b/3.png")
    renamed = open_images(classes).sha256
    shutil.copy(classes / "a/2.png", classes / "b/3.png")
    assert len({before, renamed, open_images(classes).sha256}) == 3


def test_formats_are_counted(tmp_path):
    write(tmp_path / "x", ["0.png", "1.png", "2.webp"], lossless=True)
    write(tmp_path / "x", ["3.jpg", "4.jpeg"], PICTURES[3:])
    assert open_images(tmp_path / "x").conditions["formats"] == {"JPEG": 2, "PNG": 2, "WEBP": 1}


def test_all_grey_is_one_channel_and_some_grey_is_repeated(tmp_path):
    grey = PICTURES[:2, :, :, :1]
    assert np.array_equal(all_of(open_images(write(tmp_path / "x", ["0.png", "1.png"], grey))), grey)
    mixed = all_of(open_images(write(tmp_path / "x", ["2.png"], PICTURES[2:])))
    assert np.array_equal(mixed, np.concatenate([grey.repeat(3, axis=3), PICTURES[2:3]]))


def test_an_upright_photo_has_the_size_it_is_seen_in(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = write(tmp_path / "x", ["0.png"], PICTURES.transpose(0, 2, 1, 3)[:, ::-1], exif=exif)
    source = open_images(write(turned, ["1.png"]))
    assert source.shape == (6, 5, 3) and len(all_of(source)) == 2


def test_other_files_are_skipped_and_counted(classes):
    (classes / "a/notes.txt").write_text("hello")
    (classes / ".DS_Store").write_text("x")
    assert open_images(classes).conditions["skipped"] == 2


def test_progress_ends_at_the_number_of_files(classes):
    seen = []
    open_images(classes, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7)


def test_a_pass_that_is_given_up_leaves_no_thread(classes):
    import threading

    before = threading.active_count()
    batches = open_images(classes).batches(1)
    next(batches)
    batches.close()
    assert threading.active_count() == before


# --- sample sets ----------------------


REQUEST = {"model": "step-00001000", "steps": 250, "weights": "ema"}


@pytest.fixture
def sample_set(tmp_path):
    with SampleSet.open(tmp_path / "set", REQUEST) as samples:
        for k in range(12):
            samples.add(k, PICTURES[k])
        samples.finish([k % 5 - 1 for k in range(12)], [], 0)
    return tmp_path / "set"


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_sample_set_keeps_its_order_labels_and_request(sample_set, tmp_path, as_zip):
    source = open_images(zip_of(sample_set, tmp_path / "set.zip") if as_zip else sample_set)
    assert np.array_equal(all_of(source), PICTURES)
    assert source.labels.tolist() == [k % 5 - 1 for k in range(12)]
    assert source.conditions["request"] == REQUEST and str(source.conditions["kind"]).startswith("sample set")
    assert json.loads(json.dumps(source.conditions)) == source.conditions


def test_the_list_and_not_the_name_orders_a_set_of_more_than_a_million(tmp_path):
    """1000000.png comes before 999999.png by name."""
    write(tmp_path / "set", ["1000000.png", "999999.png"])
    (tmp_path / "set/request.json").write_text("{}")
    (tmp_path / "set/labels.csv").write_text("file,label\n999999.png,0\n1000000.png,0\n")
    assert np.array_equal(all_of(open_images(tmp_path / "set")), PICTURES[[1, 0]])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: (d / "labels.csv").unlink(), "without labels.csv, so fewer images than were asked for: .*finish it"),
        (lambda d: (d / "000003.png").unlink(), "lists 1 images that are not there, such as '000003.png'"),
        (lambda d: shutil.copy(d / "000003.png", d / "000012.png"), "does not list 1 of .* '000012.png'.*finish"),
        (lambda d: (d / "labels.csv").write_text("file,label\n000000.png,cat\n"), "cannot be read .*'cat'"),
        (lambda d: (d / "labels.csv").write_text("file,label\na.png,1\na.png,2\n"), "lists 'a.png' twice"),
        (lambda d: (d / "labels.csv").write_text("file,label\n000000.png,1000000\n"), "the label 1000000, not 0"),
        (lambda d: (d / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n"), "cannot be read .*utf-8"),
        (lambda d: (d / "request.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(sample_set, spoil, problem):
    spoil(sample_set)
    with pytest.raises((DataError, DamagedError), match=problem):
        open_images(sample_set)


def test_a_labels_csv_of_somebody_else_is_left_alone(classes):
    with (classes / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "name"], ["n01440764", "tench"]])
    assert open_images(classes).conditions["labels"] == "class folders"


# --- what is refused -------------------------------


def damaged(change):
    def spoil(folder):
        path = folder / "a/2.png"
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (damaged(lambda data: data[:-20]), "1 unreadable image of 7 .*'a/2.png' .truncated"),
        (damaged(lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:]), "'a/2.png' .a checksum in it"),
        (damaged(lambda data: b""), "'a/2.png' .empty file"),
        (damaged(lambda data: b"no picture"), "'a/2.png' .not a PNG"),
        (lambda d: write(d, ["a/3.png"], [PICTURES[0, :5]]), "different sizes .*'10/0.png' is 6x5, 'a/3.png' is 5x5"),
        (lambda d: write(d, ["loose.png"]), "at its top .*beside class folders"),
        (lambda d: (shutil.rmtree(d), d.mkdir()), "no images in"),
        (lambda d: os.mkfifo(d / "a/pipe.png"), "'a/pipe.png' .not a regular file"),
        (lambda d: (d / "a/9.png").symlink_to("/etc/hostname"), "'a/9.png' .a link that leads outside"),
        (lambda d: write(d, ["a/3.png"], [np.zeros((2, 400, 3), np.uint8)]), "longer than 64:1"),
    ],
)
def test_a_folder_with_anything_wrong_is_refused_before_the_first_batch(classes, spoil, problem):
    spoil(classes)
    with pytest.raises(DataError, match=problem) as raised:
        open_images(classes)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_picture_changed_after_it_was_opened_is_noticed(classes):
    source = open_images(classes)
    write(classes, ["a/2.png"], PICTURES[9:])
    with pytest.raises(DataError, match=r"'a/2.png' .*changed since it was opened"):
        all_of(source)


def test_a_png_whose_damage_its_checksums_hide_is_noticed_when_decoded(tmp_path):
    """The compressed pixels end early, in a chunk whose checksum is right."""
    import struct
    import zlib

    data = png_bytes(RNG.randint(0, 256, (40, 40, 3), np.uint8))
    at = data.index(b"IDAT")
    content = data[at + 4 : at + 400]
    chunk = struct.pack(">I", len(content)) + b"IDAT" + content + struct.pack(">I", zlib.crc32(b"IDAT" + content))
    (tmp_path / "x").mkdir()
    (tmp_path / "x/0.png").write_bytes(data[: at - 4] + chunk + data[-12:])
    with pytest.raises(DataError, match=r"'0.png' .*truncated"):
        all_of(open_images(tmp_path / "x"))


PNG = png_bytes(PICTURES[0])


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("../0.png", PNG)], "leads out"),
        ([("a/../../0.png", PNG)], "leads out"),
        ([("/etc/0.png", PNG)], "leads out"),
        ([("a\\0.png", PNG)], "leads out"),
        ([("0.png", PNG), ("0.png", PNG)], "twice"),
        ([("0.bmp", b"BM" + bytes(20 << 20))], "grows from"),
        ([], "no images"),
        ([("0.txt", b"hello")], "no images .*only 1 other file"),
        ([("0.png", PNG[:-9])], "truncated"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_anything_wrong_is_refused(tmp_path, entries, problem):
    with pytest.raises((DataError, DamagedError), match=problem):
        all_of(open_images(zipped(tmp_path / "x.zip", entries, zipfile.ZIP_DEFLATED)))


@pytest.mark.parametrize("cut", [1, 22, 60, 0.5])
def test_a_truncated_archive_is_damaged(classes, tmp_path, cut):
    data = zip_of(classes, tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data[: -cut if cut >= 1 else len(data) // 2])
    with pytest.raises(DamagedError, match="truncated"):
        open_images(tmp_path / "x.zip")


def test_a_flipped_bit_in_an_archive_is_noticed(classes, tmp_path):
    data = bytearray(zip_of(classes, tmp_path / "x.zip", method=zipfile.ZIP_STORED).read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DamagedError, match="does not match its checksum"):
        open_images(tmp_path / "x.zip")


def test_what_is_neither_is_said(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(DamagedError, match=r"no .npz, .npy or zip"):
        open_images(tmp_path / "x.pt")
    (tmp_path / "x.png").write_bytes(PNG)
    with pytest.raises(DataError, match="single image: give the folder"):
        open_images(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_images(tmp_path / "pipe")


# --- scaled, chosen, built in ------------------------------


def test_a_size_scales_and_crops_each_image_as_for_training(tmp_path):
    shapes = [(40, 30), (16, 16), (20, 70)]
    pictures = [RNG.randint(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    source = open_images(write(tmp_path / "x", ["0.png", "1.png", "2.png"], pictures), size=16)
    assert np.array_equal(all_of(source), np.stack([center_crop(picture, 16) for picture in pictures]))
    assert "16x16" in source.conditions["preprocessing"]
    np.savez(tmp_path / "x.npz", np.stack([pictures[0]] * 5))
    source = open_images(tmp_path / "x.npz", size=16)
    assert source.shape == (16, 16, 3) and np.array_equal(all_of(source)[4], center_crop(pictures[0], 16))
    assert source.sha256 != open_images(tmp_path / "x.npz").sha256


def test_a_subset_is_a_function_of_the_seed_in_the_order_of_the_whole(sample_set, tmp_path):
    np.savez(tmp_path / "x.npz", PICTURES, np.arange(12))
    pictures, arrays = open_images(sample_set), open_images(tmp_path / "x.npz")
    chosen = subset(arrays, 5, seed=3)
    assert sorted(set(chosen.labels.tolist())) == chosen.labels.tolist() and chosen.num == 5
    for size in (1, 2, 5, 9):
        assert np.array_equal(all_of(chosen, size), PICTURES[chosen.labels])
        assert np.array_equal(all_of(subset(pictures, 5, seed=3), size), PICTURES[chosen.labels])
    assert np.array_equal(all_of(chosen, 2, start=1, stop=4), PICTURES[chosen.labels[1:4]])
    assert subset(arrays, 5, seed=4).labels.tolist() != chosen.labels.tolist()
    assert len({subset(arrays, 5, seed=s).sha256 for s in (3, 4)} | {arrays.sha256}) == 3
    assert subset(arrays, 12) is arrays


def test_every_image_is_as_likely_to_be_chosen(tmp_path):
    """300 draws of 3 of 12: each is chosen 75 times on average; 5 standard deviations are 38."""
    np.savez(tmp_path / "x.npz", PICTURES, np.arange(12))
    source = open_images(tmp_path / "x.npz")
    counts = np.bincount(np.concatenate([subset(source, 3, seed=s).labels for s in range(300)]), minlength=12)
    assert np.abs(counts - 75).max() < 38


def test_built_in_data_are_a_source(tmp_path, monkeypatch):
    from adm.data.digits import Digits

    monkeypatch.chdir(tmp_path)
    source, digits = open_images("digits:test"), Digits("test")
    assert np.array_equal(all_of(source, 100), digits.images) and np.array_equal(source.labels, digits.labels)
    assert stored_statistics(write(tmp_path / "x", ["0.png"])) is None


def test_arrays_are_known_by_their_contents_when_the_name_says_zip(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, PICTURES)
    (tmp_path / "x.zip").write_bytes(stream.getvalue())
    source = open_images(tmp_path / "x.zip")
    assert source.conditions["kind"] == "npz" and source.sha256 == hashlib.sha256(stream.getvalue()).hexdigest()


def test_data_by_name_are_read_too_and_cropped_where_their_sizes_differ(tmp_path, monkeypatch):
    import tarfile

    monkeypatch.chdir(write(tmp_path, ["0.png", "1.png"]))
    Image.fromarray(PICTURES[2][:, :4]).save("2.png")
    with tarfile.open("s.tar", "w") as archive:
        for k in range(3):
            archive.add(f"{k}.png")
    with pytest.raises(DataError, match=r"image 2 is 6x4, the first 6x5\): make them equal first"):
        open_images("webdataset:s.tar")
    source = open_images("webdataset:s.tar", size=4)
    expected = [center_crop(picture, 4) for picture in (PICTURES[0], PICTURES[1], PICTURES[2][:, :4])]
    assert np.array_equal(all_of(source), expected) and source.shape == (4, 4, 3)
    with pytest.raises(DataError, match=r"gone\.tar does not exist: give shards"):
        open_images("webdataset:gone.tar")
