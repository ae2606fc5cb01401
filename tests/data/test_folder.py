"""Folders: which file gets which label, and what is refused, in one line, before training."""

import os
import random
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adm.data.folder import Folder
from adm.runtime.errors import AdmError, DataError, UsageError


def put(root, *paths, mode="RGB", size=(3, 2)):
    """Images whose grey value is their number in the list."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, number).convert(mode).save(root / path, format="PNG")
    return root


def refused(*arguments, **options):
    with pytest.raises(AdmError) as error:
        Folder(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) <= 300
    return message


def labelled(folder):
    return [(path, folder.label(i)) for i, path in enumerate(folder.paths)]


def test_sub_folders_are_classes(tmp_path):
    folder = Folder(put(tmp_path / "pets", "dog/b.png", "cat/z.png", "dog/a.png"))
    assert folder.class_names == ("cat", "dog")
    assert labelled(folder) == [("cat/z.png", 0), ("dog/a.png", 1), ("dog/b.png", 1)]
    assert [folder.image(i)[0, 0].tolist() for i in range(3)] == [[1] * 3, [2] * 3, [0] * 3]
    assert folder.image(0).shape == (2, 3, 3) and folder.image(0).dtype == np.uint8
    assert (folder.name, folder.skipped, folder.notes, folder.default_flip) == ("pets", 0, (), True)


def test_without_sub_folders_images_are_unconditional(tmp_path):
    folder = Folder(put(tmp_path, "cat_1.png", "dog_2.png"))
    assert folder.class_names == ()
    assert labelled(folder) == [("cat_1.png", -1), ("dog_2.png", -1)]


def test_classes_are_ordered_by_code_points_and_names_may_be_anything(tmp_path):
    names = ["10", "2", "Zebra", "a b ", "a_b", "b", "\u00e9clair", "\u4e2d", "\U0001f431"]
    folder = Folder(put(tmp_path, *(f"{name}/x.png" for name in reversed(names))))
    assert folder.class_names == tuple(names)
    assert [label for _, label in labelled(folder)] == list(range(len(names)))


def test_decomposed_names_sort_and_count_as_composed_ones(tmp_path):
    composed = Folder(put(tmp_path / "1", "\u00e9/\u00e9.png", "f/x.png"))
    decomposed = Folder(put(tmp_path / "2", "e\u0301/e\u0301.png", "f/x.png"))
    assert composed.class_names == decomposed.class_names == ("f", "\u00e9")
    assert composed.labels.tolist() == decomposed.labels.tolist()
    assert composed.fingerprint == decomposed.fingerprint


def test_two_folders_of_one_name_in_unicode_are_refused(tmp_path):
    put(tmp_path, "caf\u00e9/x.png", "cafe\u0301/x.png")
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system normalises names")
    message = refused(tmp_path)
    assert r"'cafe\u0301'" in message and r"'caf\xe9'" in message and "rename" in message


def test_images_anywhere_below_a_class_belong_to_it(tmp_path):
    folder = Folder(put(tmp_path, "a/x.png", "a/deep/er/y.png", "b/a/z.png"))
    assert labelled(folder) == [("a/deep/er/y.png", 0), ("a/x.png", 0), ("b/a/z.png", 1)]


def test_an_empty_class_keeps_its_label_and_is_noted(tmp_path):
    (put(tmp_path, "a/x.png", "c/x.png") / "b").mkdir()
    folder = Folder(tmp_path)
    assert folder.class_names == ("a", "b", "c") and folder.labels.tolist() == [0, 2]
    assert folder.notes == ("class 'b' has no images; it keeps its label 1",)


def test_numbers_that_do_not_count_upwards_are_noted(tmp_path):
    assert Folder(put(tmp_path / "1", "1/x.png", "2/x.png")).notes == ()
    (note,) = Folder(put(tmp_path / "2", "2/x.png", "10/x.png")).notes
    assert "label 0 is '10', 1 is '2'" in note


def test_what_is_no_image_is_skipped_and_counted(tmp_path):
    put(tmp_path, "a/x.png", "a/.hidden.png", "a/._x.png", ".git/x.png", "__MACOSX/x.png")
    for name in ["a/Thumbs.db", "a/.DS_Store", "a/notes.txt", "a/BMW.txt", "a/README", "top.csv"]:
        (tmp_path / name).write_text("BM is how a bitmap begins")
    Image.new("L", (2, 2)).save(tmp_path / "a/scan.tif")
    folder = Folder(tmp_path)
    assert folder.paths == ("a/x.png",) and folder.class_names == ("a",)
    assert folder.skipped == 11
    assert folder.notes == ("11 files skipped that are hidden or no PNG, JPEG, WEBP or BMP (.csv, .tif, .txt)",)


def test_content_counts_not_the_extension(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "photo", format="JPEG")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "x.dat", format="BMP")
    Image.new("RGB", (2, 2), "red").save(tmp_path / "y.png", format="WEBP")
    assert Folder(tmp_path).paths == ("photo", "x.dat", "y.png")


@pytest.mark.parametrize(
    ("modes", "channels"),
    [(["L"], 1), (["L", "1", "LA"], 1), (["L", "RGB"], 3), (["RGB"], 3), (["I;16"], 1)],
)
def test_channels_are_those_of_the_files_unless_given(modes, channels, tmp_path):
    for mode in modes:
        put(tmp_path, f"{mode[0]}{len(mode)}.png", mode=mode)
    folder = Folder(tmp_path)
    assert folder.channels == channels
    assert all(folder.image(i).shape == (2, 3, channels) for i in range(len(folder)))
    for given in (1, 3):
        assert Folder(tmp_path, given).image(0).shape == (2, 3, given)


def test_16_bit_grey_is_noted(tmp_path):
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(tmp_path / "x.png")
    folder = Folder(tmp_path)
    assert folder.image(0).max() == 255 and folder.notes == ("1 images of 16-bit grey, scaled to 8 bits (v / 257)",)


def test_unreadable_images_are_counted_and_named_with_their_reasons(tmp_path):
    put(tmp_path, "a/good.png", "a/torn.png", size=(40, 40))
    (tmp_path / "a/empty.jpg").touch()
    (tmp_path / "a/page.webp").write_text("<html>")
    (tmp_path / "a/torn.png").write_bytes((tmp_path / "a/torn.png").read_bytes()[:60])
    message = refused(tmp_path)
    assert message.startswith("3 unreadable images of 4 in ")
    assert "'a/empty.jpg' (empty file); 'a/page.webp' (not a PNG, JPEG, WEBP or BMP) and 1 more" in message
    (tmp_path / "a/empty.jpg").unlink()
    (tmp_path / "a/page.webp").unlink()
    assert "1 unreadable image of 2" in refused(tmp_path) and "'a/torn.png'" in refused(tmp_path)


@pytest.mark.parametrize("size", [(9000, 8000), (1, 500)])
def test_bombs_are_refused(size, tmp_path):
    Image.new("1", size).save(tmp_path / "bomb.png")
    assert f"'bomb.png' ({size[0]}x{size[1]} is " in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_pipes_are_listed_and_never_opened(tmp_path):
    os.mkfifo(put(tmp_path, "a.png") / "pipe.png")
    assert "'pipe.png' (not a regular file)" in refused(tmp_path)


def test_links_may_lead_to_files_within_the_folder_only(tmp_path):
    root = put(tmp_path / "in", "a/x.png")
    outside = put(tmp_path / "out", "y.png")
    (root / "a/twin.png").symlink_to("x.png")
    assert Folder(root).paths == ("a/twin.png", "a/x.png")
    for target, reason in [
        (outside / "y.png", "a link that leads outside"),
        (root, "a link to a folder"),
        (outside, "a link to a folder"),
        (root / "gone", "a link that leads nowhere"),
        ("loop.png", "a link that leads nowhere"),
    ]:
        (root / "a/loop.png").symlink_to(target)
        assert f"'a/loop.png' ({reason})" in refused(root)
        (root / "a/loop.png").unlink()
    (root / "a/README").symlink_to(outside)
    assert "'a/README' (a link to a folder)" in refused(root)
    (root / "a/README").unlink()
    (root / "a/README").symlink_to(outside / "gone")
    assert Folder(root).skipped == 1


def test_images_beside_class_folders_are_refused(tmp_path):
    message = refused(put(tmp_path, "a/x.png", "b/x.png", "loose.png"))
    assert "'loose.png'" in message and "'a', 'b'" in message


@pytest.mark.parametrize("make", ["nothing", "folder", "class", "text"])
def test_a_folder_without_images_is_named(make, tmp_path):
    root = tmp_path / "my data"
    root.mkdir()
    if make != "nothing":
        (root / "class").mkdir()
    if make == "text":
        (root / "class/a.txt").write_text("a")
    message = refused(root)
    assert "no images in" in message and "my data'" in message
    assert ("only 1 other file" in message) == (make == "text")


def test_what_is_no_folder_is_refused(tmp_path):
    assert "does not exist: give a folder" in refused(tmp_path / "gone")
    assert "no directory at its end" in refused(put(tmp_path, "x.png") / "x.png")
    with pytest.raises(UsageError, match="channels 2"):
        Folder(tmp_path, 2)


@pytest.mark.skipif(os.name == "nt" or unicodedata.unidata_version == "", reason="names are bytes on POSIX only")
def test_a_class_name_that_is_no_text_is_refused(tmp_path):
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert "not named in UTF-8: rename it" in refused(tmp_path)


@pytest.mark.parametrize("change", ["delete", "grow", "damage"])
def test_a_file_that_changes_during_training_is_named(change, tmp_path):
    folder = Folder(put(tmp_path, "a/x.png"))
    path = Path(tmp_path, "a/x.png")
    data = path.read_bytes()
    new = {"grow": data + b"\0", "damage": data[:40] + b"\0" * (len(data) - 40)}
    path.write_bytes(new[change]) if change in new else path.unlink()
    with pytest.raises(DataError, match=r"x\.png'.*: (restore|replace)") as error:
        folder.image(0)
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_over_contents_labels_and_classes_not_over_place_or_time(tmp_path):
    first = Folder(put(tmp_path / "1", "a/x.png", "b/y.png"))
    again = put(tmp_path / "2", "a/x.png", "b/y.png")
    os.utime(again / "a/x.png", (0, 0))
    assert Folder(again).fingerprint == first.fingerprint
    (again / "a/x.png").rename(again / "a/w.png")
    assert Folder(again).fingerprint == first.fingerprint, "the same images, in the same order"
    changes = [
        lambda: put(again, "b/new.png"),
        lambda: (again / "b/new.png").rename(again / "a/new.png"),
        lambda: (again / "empty").mkdir(),
        lambda: (again / "empty").rename(again / "renamed"),
        lambda: put(again, "a/w.png", size=(99, 99)),
        lambda: (again / "a/w.png").write_bytes((again / "b/y.png").read_bytes()),
    ]
    seen = {first.fingerprint}
    for change in changes:
        change()
        seen.add(Folder(again).fingerprint)
    assert len(seen) == 1 + len(changes)


def test_progress_counts_every_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr("adm.data._scan_threads.THREADS", 1)
    put(tmp_path, *(f"{k}.png" for k in range(150)))
    calls = []
    Folder(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [150] * len(calls) and len(calls) > 1
    assert calls[-1][0] == 150 and calls == sorted(calls)


def test_the_scan_leaves_random_generators_and_warnings_alone(tmp_path):
    put(tmp_path, "a/x.png")
    Image.new("1", (9800, 9800)).save(tmp_path / "a/big.png")  # Pillow warns of it
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    )
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "9800x9800" in refused(tmp_path)
    assert not caught and warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)
