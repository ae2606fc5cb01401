"""Packs: what training is given from one is what it is given from the images that were packed."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from adm.data import Loader, _pack_writer
from adm.data._pack_writer import pack_images, working_directory
from adm.data.digits import Digits
from adm.data.folder import Folder
from adm.data.pack import Pack, is_pack
from adm.runtime.errors import DamagedError, DataError, StoppedError, UsageError


def photos(root, mode="RGB", num=7):
    """Two classes of noise in sizes from 9 to 60; a half of them smooth enough to be like pictures."""
    rng = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for k in range(num):
            shape = (*rng.randint(9, 60, 2), 3) if mode == "RGB" else rng.randint(9, 60, 2)
            Image.fromarray(rng.randint(0, 256, shape, np.uint8)).save(root / name / f"{k}.png")
    return Folder(root)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(_pack_writer, "LEAST_SHARD", 3000)


@pytest.fixture
def folder(tmp_path, small_shards):
    return photos(tmp_path / "photos")


def batches(dataset, size, num=6, **options):
    loader = Loader(dataset, size, 5, seed=3, **options)
    return [loader.batch(5 * k) for k in range(num)]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [16, (12, 20), 40])
def test_batches_of_a_pack_are_those_of_its_images_bit_for_bit(mode, size, tmp_path, small_shards):
    folder = photos(tmp_path / "photos", mode)
    pack = Pack(pack_images(folder, tmp_path / "pack", size))
    assert len(pack.document.shards) > 1 and len(pack) == 14 and pack.channels == folder.channels
    assert pack.class_names == ("cat", "dog") and pack.default_flip == folder.default_flip and pack.name == folder.name
    for one, other in zip(batches(folder, size), batches(pack, size), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.label, other.label) and torch.equal(one.index, other.index)
    assert pack.fingerprint_at(size) == folder.fingerprint != pack.fingerprint


def test_a_pack_of_grey_images_can_be_used_as_rgb(tmp_path, small_shards):
    folder = photos(tmp_path / "photos", "L")
    out = pack_images(folder, tmp_path / "pack", 16)
    as_rgb = batches(Folder(folder.tree.path, 3), 16)
    for one, other in zip(as_rgb, batches(Pack(out, 3), 16), strict=True):
        assert torch.equal(one.images, other.images)
    assert Pack(out, 3).fingerprint_at(16) == Pack(out).fingerprint_at(16) == folder.fingerprint
    colour = pack_images(Folder(folder.tree.path, 3), tmp_path / "colour", 16)
    with pytest.raises(DataError, match="has 3 channels, not 1: pack the images again with --channels 1"):
        Pack(colour, 1)


def test_random_crops_of_a_pack_for_them_are_at_the_same_places(tmp_path, small_shards):
    """Of smooth pictures, where the second scaling costs less than 2 levels of 255 on average; small ones are equal."""
    (tmp_path / "smooth").mkdir()
    y, x = np.mgrid[:90, :120] / 20
    for k in range(6):
        picture = np.stack([np.sin(y + k) * np.cos(x), np.cos(y - x * k / 5), np.sin(x + 2 * y)], axis=2)
        Image.fromarray((127.5 + 127 * picture).astype(np.uint8)).save(tmp_path / "smooth" / f"{k}.png")
    smooth = Folder(tmp_path / "smooth")
    pack = Pack(pack_images(smooth, tmp_path / "pack", 32, for_random_crop=True))
    assert {pack.image(i).shape for i in range(6)} == {(40, 53, 3)}  # ceil(32 / 0.8) = 40, and 40 * 120 / 90 = 53.3
    pairs = zip(batches(smooth, 32, random_crop=True), batches(pack, 32, random_crop=True), strict=True)
    assert max(float((one.images - other.images).abs().mean()) for one, other in pairs) * 127.5 < 2
    elsewhere = zip(batches(smooth, 32, random_crop=True), batches(pack, 32), strict=True)
    assert min(float((one.images - other.images).abs().mean()) for one, other in elsewhere) * 127.5 > 5

    folder = photos(tmp_path / "photos")
    small = Pack(pack_images(folder, tmp_path / "small", 48, for_random_crop=True))  # none is longer than 60
    for one, other in zip(batches(folder, 48, random_crop=True), batches(small, 48, random_crop=True), strict=True):
        assert torch.equal(one.images, other.images)
    assert small.fingerprint_at(48, random_crop=True) == small.fingerprint_at(48) == small.fingerprint


def test_what_would_be_worse_than_the_images_is_refused(folder, tmp_path):
    pack = Pack(pack_images(folder, tmp_path / "pack", 16))
    pack.check_use(16)
    pack.check_use((8, 16))
    with pytest.raises(UsageError, match=r"holds central crops.*--for-random-crop"):
        pack.check_use(16, random_crop=True)
    with pytest.raises(UsageError, match=r"made for 16x16, and 16x20 is wanted.*--image-size 16x20"):
        pack.check_use((16, 20))
    whole = Pack(pack_images(folder, tmp_path / "whole", 16, for_random_crop=True))
    whole.check_use(16, random_crop=True)
    assert pack.fingerprint_at(8) == pack.fingerprint


def test_unconditional_and_built_in_data_can_be_packed(tmp_path):
    digits = Digits("test")
    pack = Pack(pack_images(digits, tmp_path / "digits", 8))
    assert all(np.array_equal(pack.image(i), digits.image(i)) for i in range(len(digits)))
    assert pack.labels.tolist() == digits.labels.tolist() and not pack.default_flip
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "flat/a.png")
    flat = Pack(pack_images(Folder(tmp_path / "flat"), tmp_path / "p", 4))
    assert flat.class_names == () and flat.label(0) == -1
    with pytest.raises(IndexError):
        flat.image(1)


@pytest.mark.parametrize("for_random_crop", [False, True])
@pytest.mark.parametrize("stop_at", [1, 5, 13])
def test_a_stopped_pack_is_continued_to_the_same_bytes(stop_at, for_random_crop, folder, tmp_path):
    whole = pack_images(folder, tmp_path / "whole", 16, for_random_crop=for_random_crop)
    seen = []
    options = {"for_random_crop": for_random_crop, "source": "photos"}
    with pytest.raises(StoppedError, match="run the same command to continue"):
        pack_images(
            folder,
            tmp_path / "pack",
            16,
            on_progress=lambda done, total: seen.append(done),
            stop_requested=lambda: seen[-1:] == [stop_at],
            **options,
        )
    assert not (tmp_path / "pack").exists() and working_directory(tmp_path / "pack").is_dir()
    decoded = []
    image = folder.image
    folder.image = lambda i: decoded.append(i) or image(i)
    out = pack_images(folder, tmp_path / "pack", 16, **options)
    rows = Pack(out).document.shards[0]
    assert sorted(decoded) == list(range(stop_at // rows * rows, 14))  # whole shards are not made again
    assert not working_directory(out).exists()
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        if name not in ("MANIFEST.json", "pack.json"):  # which say where the images came from
            assert (out / name).read_bytes() == (whole / name).read_bytes()
    decoded.clear()
    assert pack_images(folder, out, 16, **options) == out and not decoded  # it is there


def test_a_pack_is_not_made_over_anything_else(folder, tmp_path):
    out = pack_images(folder, tmp_path / "pack", 16)
    with pytest.raises(UsageError, match="a pack of other images or another size"):
        pack_images(folder, out, 24)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists and is no pack"):
        pack_images(folder, tmp_path / "mine", 16)
    working_directory(tmp_path / "new").mkdir()
    (working_directory(tmp_path / "new") / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and no unfinished pack"):
        pack_images(folder, tmp_path / "new", 16)
    (working_directory(tmp_path / "new") / "thesis.tex").unlink()
    with pytest.raises(StoppedError):
        pack_images(folder, tmp_path / "new", 16, stop_requested=lambda: True)
    with pytest.raises(UsageError, match="was begun with other images or another size"):
        pack_images(folder, tmp_path / "new", 24)


def test_an_image_that_cannot_be_used_leaves_no_pack(folder, tmp_path):
    path = folder.tree.path / folder.paths[9]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="changed since the scan"):
        pack_images(folder, tmp_path / "pack", 16)
    assert not is_pack(tmp_path / "pack") and not (tmp_path / "pack").exists()


@pytest.mark.parametrize("name", ["pack.json", "labels.npy", "images-00001.npy", "sizes-00001.npy", "MANIFEST.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "grown"])
def test_a_pack_that_is_not_whole_is_refused_when_it_is_opened(name, how, folder, tmp_path):
    pack_images(folder, tmp_path / "pack", 16, for_random_crop=True)
    path = tmp_path / "pack" / name
    data = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(data[:-1] if how == "cut" else data + b"\0")
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")) as error:
        Pack(tmp_path / "pack")
    assert "\n" not in str(error.value)
    assert is_pack(tmp_path / "pack") == (how != "gone" or name not in ("pack.json", "MANIFEST.json"))


def test_verifying_sees_a_flipped_bit_that_opening_does_not(folder, tmp_path):
    pack = Pack(pack_images(folder, tmp_path / "pack", 16))
    pack.verify()
    path = tmp_path / "pack/images-00002.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"images-00002\.npy: contents do not match"):
        Pack(tmp_path / "pack").verify()


def test_a_pack_that_shrinks_while_it_is_read_is_an_error(folder, tmp_path):
    pack = Pack(pack_images(folder, tmp_path / "pack", 16))
    with (tmp_path / "pack/images-00000.npy").open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(DataError, match="has changed since it was opened"):
        pack.image(0)


def test_the_fingerprint_is_that_of_the_contents(folder, tmp_path):
    first = Pack(pack_images(folder, tmp_path / "a", 16)).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    assert Pack(tmp_path / "elsewhere").fingerprint == first
    Image.new("RGB", (20, 20)).save(folder.tree.path / "cat" / "0.png")
    changed = Folder(folder.tree.path)
    assert Pack(pack_images(changed, tmp_path / "b", 16)).fingerprint != first
    assert Pack(pack_images(folder.__class__(folder.tree.path), tmp_path / "c", 12)).fingerprint != first


def test_a_pack_of_a_later_version_is_refused_with_its_format(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_pack_writer, "to_dict", lambda document: {**TO_DICT(document), "format": 2})
    pack_images(folder, tmp_path / "pack", 16)
    with pytest.raises(DamagedError, match="format is 2: this version reads format 1"):
        Pack(tmp_path / "pack")


TO_DICT = _pack_writer.to_dict


def test_a_shard_is_a_plain_array_that_numpy_maps(folder, tmp_path):
    pack = Pack(pack_images(folder, tmp_path / "pack", 16))
    shards = [np.load(path, mmap_mode="r") for path in sorted((tmp_path / "pack").glob("images-*.npy"))]
    assert np.array_equal(np.concatenate(shards), [pack.image(i) for i in range(len(pack))])
    assert np.array_equal(np.load(tmp_path / "pack/labels.npy"), folder.labels)
    assert json.loads((tmp_path / "pack/pack.json").read_text())["class_names"] == ["cat", "dog"]


def test_a_grey_pack_of_colour_is_not_the_data_that_a_colour_run_saw(folder, tmp_path):
    grey = Folder(folder.tree.path, 1)
    out = pack_images(grey, tmp_path / "grey", 16)
    for one, other in zip(batches(grey, 16), batches(Pack(out), 16), strict=True):
        assert torch.equal(one.images, other.images)
    assert Pack(out).fingerprint_at(16) == grey.fingerprint
    pairs = zip(batches(folder, 16), batches(Pack(out, 3), 16), strict=True)
    assert not any(torch.equal(one.images, other.images) for one, other in pairs)
    assert Pack(out, 3).fingerprint_at(16) == Pack(out).fingerprint != folder.fingerprint
