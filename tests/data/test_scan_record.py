"""What an earlier scan found saves time and nothing else: the result is that of looking again."""

import os
import zipfile

import pytest
from PIL import Image

from adm.data import _decoding_scan, _images
from adm.data.folder import Folder
from adm.runtime.errors import DataError

YEARS = 10 * 365 * 86400


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Ten images, and a record of any length that may be young."""
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_decoding_scan, "MIN_RECORDED", 1)
    monkeypatch.setattr(_decoding_scan, "SETTLED", 0)
    for k in range(10):
        path = tmp_path / "pets" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), 20 * k).save(path, format="BMP")
    return tmp_path / "pets"


@pytest.fixture
def decoded(monkeypatch):
    """The number of images decoded so far, in a list of one."""
    count = [0]
    original = _images.load_upright

    def counting(image):
        count[0] += 1
        return original(image)

    monkeypatch.setattr(_images, "load_upright", counting)
    return count


def facts(folder):
    return folder.fingerprint, folder.paths, folder.labels.tolist(), folder.channels, folder.notes, folder.skipped


def record(pets):
    (path,) = (pets.parent / "cache/scans").iterdir()
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_has_not_changed_is_decoded_once(kind, pets, decoded):
    source = pets
    if kind == "zip":
        source = pets.parent / "pets.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(pets.rglob("*.png")):
                archive.write(path, path.relative_to(pets.parent))
    first = Folder(source)
    assert decoded == [10]
    assert facts(Folder(source)) == facts(first) and decoded == [10]
    assert first.fingerprint == Folder(pets).fingerprint


def test_only_what_changed_is_decoded_again(pets, decoded):
    first = Folder(pets)
    Image.new("L", (4, 3), 255).save(pets / "a/0.png", format="BMP")
    Image.new("L", (4, 3), 254).save(pets / "a/new.png", format="BMP")
    (pets / "b/1.png").unlink()
    decoded[0] = 0
    again = Folder(pets)
    assert decoded == [2] and again.paths == ("a/0.png", *first.paths[1:5], "a/new.png", *first.paths[6:])
    assert again.fingerprint != first.fingerprint


def test_an_edit_of_equal_size_with_its_time_set_back_is_seen(pets):
    path = pets / "a/0.png"
    before, times = Folder(pets).fingerprint, path.stat()
    Image.new("L", (4, 3), 1).save(path, format="BMP")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    assert Folder(pets).fingerprint != before


@pytest.mark.parametrize("years", [-10, 10])
def test_times_that_are_off_by_years_change_nothing(years, pets):
    first = facts(Folder(pets))
    for k, path in enumerate(sorted(pets.rglob("*.png"))):
        when = path.stat().st_mtime + years // 10 * YEARS + k
        os.utime(path, (when, when))
    assert facts(Folder(pets)) == first == facts(Folder(pets))


def test_a_file_that_was_just_written_is_not_believed(pets, decoded, monkeypatch):
    monkeypatch.setattr(_decoding_scan, "SETTLED", 3600 * 10**9)
    Folder(pets)
    Folder(pets)
    assert decoded == [20]


def test_a_bad_image_is_looked_at_again_and_reported_again(pets):
    (pets / "a/bad.png").write_bytes(b"<html>")
    messages = []
    for _ in range(2):
        with pytest.raises(DataError) as error:
            Folder(pets)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert facts(Folder(pets, skip_bad=True)) == facts(Folder(pets, skip_bad=True))


def test_a_damaged_record_is_looked_past(pets, decoded):
    first = facts(Folder(pets))
    whole = record(pets).read_bytes()
    for k, at in enumerate(range(0, len(whole), 37)):
        decoded[0] = 0
        record(pets).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << k % 8)]) + whole[at + 1 :])
        assert facts(Folder(pets)) == first and decoded == [10]
    for content in (b"", whole[:200], b"\n", b"[[[[\n"):
        record(pets).write_bytes(content)
        assert facts(Folder(pets)) == first


def test_a_cache_that_cannot_be_written_is_done_without(pets, monkeypatch):
    first = facts(Folder(pets))
    (pets.parent / "file").write_text("")
    monkeypatch.setenv("ADM_CACHE", str(pets.parent / "file/cache"))
    assert facts(Folder(pets)) == first


def test_small_data_leave_no_record(pets, monkeypatch):
    monkeypatch.setattr(_decoding_scan, "MIN_RECORDED", 11)
    Folder(pets)
    assert not (pets.parent / "cache").exists()


def test_an_image_that_is_not_what_the_record_says_is_refused_when_it_is_read(pets, monkeypatch):
    monkeypatch.setattr("adm.data._file_tree.file_stamp", lambda path: (1, 2, 3))  # a file system without times
    Folder(pets)
    Image.new("L", (4, 3), 1).save(pets / "a/0.png", format="BMP")
    folder = Folder(pets)
    with pytest.raises(DataError, match=r"image 'a/0\.png' in .* changed since the scan: restore"):
        folder.image(0)
    assert folder.image(1)[0, 0, 0] == 40
