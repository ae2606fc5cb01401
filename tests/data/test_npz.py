"""Arrays in OpenAI's layout: written so that numpy reads them, read as numpy does, and never whole."""

import hashlib
import math
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

import faults
from adm.data import NpzWriter, open_images, stored_statistics, write_reference
from adm.data import _npz as npz_file
from adm.runtime.errors import DamagedError, DataError, ResourceError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (37, 5, 4, 3), np.uint8)
LABELS = RNG.randint(0, 9, 37)


def all_of(source, size=8, **part):
    return np.concatenate(list(source.batches(size, **part)))


SAVED = {
    "stored": lambda path: np.savez(path, IMAGES, LABELS),
    "compressed": lambda path: np.savez_compressed(path, IMAGES, LABELS),
    "fortran": lambda path: np.savez(path, np.asfortranarray(IMAGES), LABELS),
    "fortran-compressed": lambda path: np.savez_compressed(path, np.asfortranarray(IMAGES), LABELS),
    "big-endian": lambda path: np.savez(path, IMAGES.astype(">u2"), LABELS),
}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    path = tmp_path / f"{request.param}.npz"
    SAVED[request.param](path)
    return path


# --- reading ------------------------


@pytest.mark.parametrize("size", [1, 8, 37, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 20), (13, None), (13, 14), (36, 99), (5, 5), (37, None)])
def test_any_part_in_batches_of_any_size_is_that_part(saved, size, start, stop):
    batches = list(open_images(saved).batches(size, start, stop))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batch.dtype == np.uint8 and batch.flags.writeable for batch in batches)
    assert np.array_equal(np.concatenate([np.empty((0, 5, 4, 3), np.uint8), *batches]), IMAGES[start:stop])


def test_a_source_says_what_it_is(saved):
    source = open_images(saved)
    assert (source.name, source.num, source.shape) == (saved.name, 37, (5, 4, 3))
    assert source.labels.dtype == np.int64 and np.array_equal(source.labels, LABELS)
    assert source.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert source.conditions["kind"] == "npz" and source.conditions["compressed"] == ("compressed" in saved.name)
    assert source.conditions["order"] == ("Fortran" if "fortran" in saved.name else "C")


def test_in_fortran_order_the_blocks_that_are_gathered_do_not_matter(saved, monkeypatch):
    monkeypatch.setattr(npz_file, "BLOCK_BYTES", 8 * 60)
    assert np.array_equal(all_of(open_images(saved), 3), IMAGES)
    assert np.array_equal(all_of(open_images(saved), 3, start=10, stop=30), IMAGES[10:30])


def test_a_bare_npy_is_read_too(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    source = open_images(tmp_path / "x.npy")
    assert source.labels is None and np.array_equal(all_of(source), IMAGES)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes() + b"more")
    with pytest.raises(DamagedError, match="but holds"):
        open_images(tmp_path / "x.npy")


def test_minus_one_is_no_label(tmp_path):
    np.savez(tmp_path / "some.npz", IMAGES, np.where(LABELS > 3, LABELS, -1))
    np.savez(tmp_path / "none.npz", IMAGES, np.full(37, -1))
    assert (open_images(tmp_path / "some.npz").labels == -1).any()
    assert open_images(tmp_path / "none.npz").labels is None


def test_images_that_were_floats_are_told_by_their_values(tmp_path):
    """A cast of images in [0, 1] leaves 0 and 1; one darker pixel of 2 clears the suspicion."""
    np.savez(tmp_path / "cast.npz", (IMAGES / 255).astype(np.uint8))
    assert open_images(tmp_path / "cast.npz").conditions["looks_like_float"] is True
    np.savez(tmp_path / "dark.npz", np.minimum(IMAGES, 2))
    assert open_images(tmp_path / "dark.npz").conditions["looks_like_float"] is False


# --- what has changed on the disk -----------------------------------


def spoiled(path, at_image):
    """One bit of one image flipped, in a stored .npz; sizes and times as before."""
    data, image = bytearray(path.read_bytes()), IMAGES[at_image].tobytes()
    data[data.index(image)] ^= 1
    path.write_bytes(data)
    return open_images(path)


@pytest.mark.parametrize("part", [{}, {"start": 1}, {"stop": 2}, {"start": 30, "stop": 31}])
def test_a_flipped_bit_anywhere_is_noticed_before_the_last_batch_of_any_part_is_given_out(tmp_path, part):
    np.savez(tmp_path / "x.npz", IMAGES, LABELS)
    source = spoiled(tmp_path / "x.npz", 20)
    received = 0
    with pytest.raises(DamagedError, match=r"'arr_0.npy' does not match its checksum"):
        for batch in source.batches(8, **part):
            received += len(batch)
    assert received < len(IMAGES[part.get("start") : part.get("stop")])


def test_a_file_replaced_after_it_was_opened_is_refused(saved):
    source = open_images(saved)
    np.savez(saved, IMAGES[::-1][:20])
    with pytest.raises(DataError, match="has changed since it was opened"):
        next(source.batches(8))


@pytest.mark.parametrize("name", ["nowhere.npz", "nowhere", "a\0b", "x" * 300, ""])
def test_what_is_not_there_is_said_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder|no images"):
        open_images(name)


# --- statistics ----------------------------------------------------------


def test_statistics_are_given_in_float64_as_stored(tmp_path):
    mu, sigma = RNG.standard_normal(6), np.cov(RNG.standard_normal((6, 50)))
    np.savez(tmp_path / "r.npz", mu=mu.astype(np.float32), sigma=sigma, mu_s=mu, sigma_s=np.asfortranarray(sigma))
    found = stored_statistics(tmp_path / "r.npz")
    assert all(array.dtype == np.float64 for array in found.values())
    assert np.array_equal(found["mu"], mu.astype(np.float32)) and np.array_equal(found["sigma_s"], sigma)
    with pytest.raises(DataError, match="holds statistics, no images"):
        open_images(tmp_path / "r.npz")


def test_a_covariance_rounded_to_float32_is_still_one(tmp_path):
    features = RNG.standard_normal((9, 50)).astype(np.float32)
    sigma = (features @ features.T / 49).astype(np.float32)
    sigma[0, 1] = np.nextafter(sigma[0, 1], np.float32(9))
    np.savez(tmp_path / "r.npz", mu=features.mean(1), sigma=sigma)
    assert np.array_equal(stored_statistics(tmp_path / "r.npz")["sigma"], sigma)


def test_where_there_are_none_there_are_none(tmp_path):
    np.savez(tmp_path / "x.npz", IMAGES)
    np.save(tmp_path / "x.npy", IMAGES)
    assert [stored_statistics(p) for p in (tmp_path, tmp_path / "x.npz", tmp_path / "x.npy")] == [None] * 3


# --- writing -------------------------------------------------------------


def test_what_is_written_row_by_row_is_what_numpy_loads(tmp_path):
    with NpzWriter.open(tmp_path / "x.npz") as writer:
        writer.add_rows("arr_0", (IMAGES[k : k + 5] for k in range(0, 37, 5)), IMAGES.shape, np.uint8)
        writer.add("arr_1", LABELS)
        writer.add("mu", np.zeros(0))
    with np.load(tmp_path / "x.npz") as arrays:
        assert list(arrays) == ["arr_0", "arr_1", "mu"]
        assert np.array_equal(arrays["arr_0"], IMAGES) and np.array_equal(arrays["arr_1"], LABELS)
    assert np.array_equal(all_of(open_images(tmp_path / "x.npz")), IMAGES)


def test_the_original_reader_finds_what_it_looks_for(tmp_path):
    """It opens the member arr_0.npy, reads a version 1.0 header, wants C order, and then bytes in a row."""
    np.savez(tmp_path / "x.npz", IMAGES, LABELS)
    write_reference(tmp_path / "r.npz", open_images(tmp_path / "x.npz"), {"mu": np.arange(3.0)})
    with zipfile.ZipFile(tmp_path / "r.npz") as archive, archive.open("arr_0.npy") as member:
        assert archive.testzip() is None
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == (IMAGES.shape, False, np.uint8)
        assert member.read() == IMAGES.tobytes()


def test_equal_contents_give_equal_bytes_whatever_the_batches_and_the_time(tmp_path):
    written = []
    for k, size in enumerate((1, 7, 37)):
        with NpzWriter.open(tmp_path / f"{k}.npz") as writer:
            writer.add_rows("arr_0", (IMAGES[i : i + size] for i in range(0, 37, size)), IMAGES.shape, np.uint8)
        written.append((tmp_path / f"{k}.npz").read_bytes())
    assert written[0] == written[1] == written[2]
    with zipfile.ZipFile(tmp_path / "0.npz") as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "parts",
    [[IMAGES[:36]], [IMAGES, IMAGES[:1]], [IMAGES.astype(np.int16)], [IMAGES[:, :4]], []],
    ids=["too few", "too many", "other type", "other shape", "none"],
)
def test_parts_that_do_not_make_up_the_array_leave_no_file(tmp_path, parts):
    with pytest.raises(ValueError, match="arr_0"), NpzWriter.open(tmp_path / "x.npz") as writer:
        writer.add_rows("arr_0", parts, IMAGES.shape, np.uint8)
    assert not list(tmp_path.iterdir())


def test_at_every_failure_of_the_disk_there_is_no_file_and_one_line(tmp_path):
    np.savez(tmp_path / "x.npz", IMAGES, LABELS)
    source, out = open_images(tmp_path / "x.npz"), tmp_path / "out" / "r.npz"
    out.parent.mkdir()
    total = faults.count_operations(lambda: write_reference(tmp_path / "count.npz", source))
    for n in range(total - 1):  # the last one syncs the directory: the file is there by then
        with faults.faults(n, faults.ENOSPC), pytest.raises(ResourceError, match="No space left"):
            write_reference(out, source)
        assert not list(out.parent.iterdir()), n


# --- memory ---------------------------------------------------------------


def peak_of(run):
    """Bytes by which the peak memory of a process rises while it does this."""
    extra = Path("extra")

    def measured():
        Path("/proc/self/clear_refs").write_text("5")
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        run()
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
        extra.write_text(str(peak - before))

    assert faults.in_child(measured) == 0
    return int(extra.read_text())


def noise(num, size):
    """Batches of images whose values do not compress, made as they are asked for."""
    block = np.random.RandomState(1).randint(0, 256, (64, size, size, 3), np.uint8)
    for k in range(0, num, 64):
        yield np.roll(block[: num - k], k, axis=1)


def write_noise(path, num, size):
    with NpzWriter.open(path) as writer:
        writer.add_rows("arr_0", noise(num, size), (num, size, size, 3), np.uint8)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("num", [2000, pytest.param(25_000, marks=pytest.mark.slow)])
def test_writing_and_reading_take_the_memory_of_batches_not_of_the_file(tmp_path, monkeypatch, num):
    monkeypatch.chdir(tmp_path)
    size = 256 if num > 2000 else 128  # 4.9 GB, more than the narrow sizes of an archive hold; or 98 MB
    limit = 300e6 if num > 2000 else 60e6
    path, copy = Path("x.npz"), Path("copy.npz")

    def passes():
        source = open_images(path)
        assert sum(len(batch) for batch in source.batches(64)) == num
        assert len(next(source.batches(10, num - 10))) == 10

    assert peak_of(lambda: write_noise(path, num, size)) < limit
    assert peak_of(passes) < limit
    assert peak_of(lambda: write_reference(copy, open_images(path))) < max(limit, 150e6)
    assert path.stat().st_size > math.prod((num, size, size, 3))
    with zipfile.ZipFile(copy) as archive:
        assert archive.infolist()[0].file_size == num * size * size * 3 + 128
