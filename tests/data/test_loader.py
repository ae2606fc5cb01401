"""Batches are a function of (seed, position)."""

import itertools
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from adm.data import Loader, center_crop, decode, to_uint8
from adm.data._images import _cover
from adm.data.digits import Digits
from adm.data.folder import Folder
from adm.runtime.errors import AdmError, DataError, UsageError

NUM = 23


class Numbered:
    """NUM images of 8 x 8; image i is dark left and bright right, and its label is i % 5."""

    name, fingerprint, class_names, channels, default_flip = (
        "numbered",
        "0",
        ("a", "b", "c", "d", "e"),
        3,
        True,
    )

    def __init__(self, num=NUM):
        self.num, self.num_decoded = num, 0

    def __len__(self):
        return self.num

    def image(self, i):
        self.num_decoded += 1
        columns = np.arange(8, dtype=np.uint8) * 20 + i
        return np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (8, 8, 3)))

    def label(self, i):
        return i % 5


def joined(batches):
    batches = list(batches)
    return tuple(torch.cat([getattr(b, part) for b in batches]) for part in ("images", "label", "index"))


def first(loader, num, start=0):
    return joined(itertools.islice(loader.batches(start), -(-num // loader.batch_size)))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(params=["centre", "random", "uncached"])
def make(request):
    """A loader of the numbered images, flipped and enlarged, in each of the ways of preparing them."""
    options = {"centre": {}, "random": {"random_crop": True}, "uncached": {"cache_bytes": 0}}[request.param]
    return lambda batch, seed=3, **more: Loader(Numbered(), 10, batch, seed, **{**options, **more})


def test_samples_do_not_depend_on_the_batch_size(make):
    reference = first(make(1), 120)
    for batch in (2, 5, 8, 23):
        parts = first(make(batch), 120)
        assert equal([part[:120] for part in parts], [part[:120] for part in reference])


def test_a_restart_at_any_position_continues_the_run(make):
    run = first(make(4), 80)
    for start in (0, 4, 20, 24, 44, 48, 7):
        rest = first(make(4), 80 - start, start)
        assert equal([part[: 80 - start] for part in rest], [part[start:] for part in run])


def test_batches_do_not_depend_on_what_was_asked_before(make):
    loader = make(8)
    backwards = {position: loader.batch(position) for position in (800, 160, 8, 0, 96, 8)}
    for position, batch in backwards.items():
        fresh = make(8).batch(position)
        assert fresh.position == batch.position == position
        assert equal([batch.images, batch.label, batch.index], [fresh.images, fresh.label, fresh.index])


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_a_step_in_contiguous_parts(make, world):
    whole = make(12)
    for position in (0, 12, 24):
        shares = joined(make(12, rank=rank, world=world).batch(position) for rank in range(world))
        assert equal(shares, joined([whole.batch(position)]))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(make, workers):
    assert equal(first(make(4, workers=workers), 200, 8), first(make(4), 200, 8))


def test_the_seed_changes_order_flips_and_crops(make):
    (images, _, index), (other_images, _, other_index) = first(make(23), 23), first(make(23, seed=4), 23)
    assert not torch.equal(index, other_index)
    flips = [
        {int(i): tuple(image.flatten().tolist()) for i, image in zip(n, x, strict=True)}
        for n, x in ((index, images), (other_index, other_images))
    ]
    assert flips[0] != flips[1]


@pytest.mark.parametrize("batch", [1, 5, 23])
def test_each_epoch_has_every_image_once_in_another_order(batch):
    index = first(Loader(Numbered(), 8, batch, 0), 10 * NUM)[2][: 10 * NUM].reshape(10, NUM)
    assert torch.equal(index.sort(dim=1).values, torch.arange(NUM).expand(10, NUM))
    assert len({tuple(epoch.tolist()) for epoch in index}) == 10


def test_a_sample_is_its_image_and_label():
    """float32 NCHW in [-1, 1], mirrored or not."""
    data = Numbered()
    batch = Loader(data, 8, 20, 0).batch(100)
    assert batch.images.shape == (20, 3, 8, 8) and batch.images.dtype == torch.float32
    assert batch.label.dtype == batch.index.dtype == torch.int64
    num_mirrored = 0
    for x, label, i in zip(batch.images, batch.label.tolist(), batch.index.tolist(), strict=True):
        straight = data.image(i).transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1
        mirrored = np.array_equal(x.numpy(), straight[:, :, ::-1])
        assert mirrored or np.array_equal(x.numpy(), straight)
        assert label == i % 5
        num_mirrored += mirrored
    assert 0 < num_mirrored < 20


def test_half_of_the_samples_are_flipped_independently_of_image_and_time():
    """10,000 samples: within 4 standard deviations (.02) of a half; uncorrelated in time."""
    loader = Loader(Numbered(20), 8, 20, 1)
    images, _, index = first(loader, 10_000)
    flipped = (images[:, 0, 0, 0] > images[:, 0, 0, -1]).double()
    assert abs(flipped.mean() - 0.5) < 0.02
    of_image = torch.stack([flipped[index == i].mean() for i in range(20)])
    assert (of_image - 0.5).abs().max() < 4 * 0.5 / 500**0.5
    for lag in (1, 20, 1024):
        assert abs(torch.corrcoef(torch.stack([flipped[lag:], flipped[:-lag]]))[0, 1]) < 0.045


@pytest.mark.parametrize(
    ("flip", "default", "expected"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_flipping_is_the_data_sets_wish_unless_given(flip, default, expected):
    data = Numbered()
    data.default_flip = default
    images = first(Loader(data, 8, 20, 1, flip=flip), 100)[0]
    assert bool((images[:, 0, 0, 0] > images[:, 0, 0, -1]).any()) is expected


def test_images_are_cropped_to_the_size(tmp_path):
    """Mixed sizes, larger and smaller than 12 x 16; the random crop is one of the crops of that image."""
    rng = np.random.default_rng(0)
    for k, size in enumerate([(40, 30), (9, 9), (12, 16), (33, 90)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{k}.png")
    data = Folder(tmp_path)
    batch = Loader(data, (12, 16), 4, flip=False).batch(0)
    assert batch.images.shape == (4, 3, 12, 16) and batch.label.tolist() == [-1] * 4
    for x, i in zip(batch.images, batch.index.tolist(), strict=True):
        expected = center_crop(decode(tmp_path / f"{i}.png"), (12, 16))
        assert np.abs(to_uint8(x[None])[0].numpy().astype(int) - expected).max() <= 1  # truncation, see to_uint8
    loader = Loader(data, 8, 4, flip=False, random_crop=True)
    for batch in itertools.islice(loader.batches(), 3):
        for x, i in zip(batch.images, batch.index.tolist(), strict=True):
            crop = ((x.numpy() + 1) * 127.5).round()
            scaled = [_cover(data.image(i), (side, side)) for side in (8, 9, 10)]
            windows = [np.lib.stride_tricks.sliding_window_view(image, (8, 8), (0, 1)) for image in scaled]
            assert any((window == crop).all((2, 3, 4)).any() for window in windows)


def test_small_data_are_decoded_once():
    data = Numbered()
    first(Loader(data, 10, 8, workers=2), 10 * NUM)
    assert NUM <= data.num_decoded <= 2 * NUM  # two threads may meet at the same image
    data = Numbered()
    first(Loader(data, 10, 8), 10 * NUM)
    assert data.num_decoded == NUM
    data = Numbered()
    first(Loader(data, 10, 8, cache_bytes=NUM * 300 - 1), 80)
    assert data.num_decoded == 80


def test_a_batch_belongs_to_its_user():
    """What is done to one batch in place does not reach the next."""
    loader = Loader(Numbered(), 8, NUM, flip=False)
    before = loader.batch(0).images.clone()
    loader.batch(0).images.zero_()
    assert torch.equal(loader.batch(0).images, before)


def test_digits_pass_through_exactly():
    digits = Digits()
    batch = Loader(digits, 8, 1198).batch(0)
    assert batch.images.shape == (1198, 1, 8, 8)
    assert torch.equal(batch.index.sort().values, torch.arange(1198))
    restored = ((batch.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(restored.numpy(), digits.images[batch.index])
    assert np.array_equal(batch.label.numpy(), digits.labels[batch.index])


def test_threads_end_with_the_iterator_and_errors_come_through():
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("adm-data")]

    batches = Loader(Numbered(), 8, 4, workers=2).batches()
    next(batches)
    assert threads()
    batches.close()
    assert not threads()
    data = Numbered()
    data.channels = 1
    with pytest.raises(DataError, match=r"image \d+ of 'numbered' has shape \(8, 8, 3\), not \(H, W, 1\)"):
        next(Loader(data, 8, 4, workers=2).batches())
    assert not threads()


def test_global_random_generators_are_left_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first(Loader(Numbered(), 8, 4, random_crop=True, workers=2), 100)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize(
    ("num", "arguments", "options", "kind", "message"),
    [
        (6, (8, 64), {}, DataError, "6 images but batch 64: use --batch 6 or less, or add images"),
        (5, (8, 8), {"world": 2}, DataError, "5 images but batch 8: use --batch 5 or less, or add images"),
        (0, (8, 1), {}, DataError, "0 images but batch 1: add images"),
        (9, (8, 0), {}, UsageError, "batch 0: use 1 or more"),
        (20, (8, 10), {"world": 4}, UsageError, "batch 10 does not split over 4 processes: use 8 or 12"),
        (20, (8, 3), {"world": 4}, UsageError, "batch 3 does not split over 4 processes: use 4"),
        (9, (8, 4), {"rank": 2, "world": 2}, UsageError, "rank 2 of 2 processes: ranks count from 0 to 1"),
        (9, (0, 4), {}, UsageError, "image size 0x0: both sides must be at least 1 pixel"),
    ],
)
def test_errors_teach_at_construction(num, arguments, options, kind, message):
    with pytest.raises(AdmError) as error:
        Loader(Numbered(num), *arguments, **options)
    assert type(error.value) is kind and str(error.value) == message


@pytest.mark.parametrize(
    ("label", "names", "allowed"),
    [(5, tuple("abcde"), "one of 0..4"), (-2, tuple("abcde"), "one of 0..4"), (0, (), "-1")],
)
def test_a_label_out_of_range_is_refused_before_a_device_sees_it(label, names, allowed):
    data = Numbered()
    data.class_names, data.label = names, lambda i: label if i == 3 else -1
    with pytest.raises(DataError, match=rf"image 3 of 'numbered' has the label {label}, not {allowed}.*: mend"):
        Loader(data, 8, NUM).batch(0)


class Hanging(Numbered):
    """Image 7 is on a disk that has gone away."""

    def __init__(self, paths=None):
        super().__init__()
        self.back = threading.Event()
        if paths is not None:
            self.paths = paths

    def image(self, i):
        if i == 7:
            self.back.wait()
        return super().image(i)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("paths", "named"),
    [(None, "image 7 of 'numbered'"), ([f"a/{i}.png" for i in range(NUM)], "image 'a/7.png' of 'numbered'")],
)
def test_a_read_that_does_not_end_is_named(paths, named, workers):
    data, started = Hanging(paths), time.monotonic()
    with pytest.raises(DataError) as error:
        first(Loader(data, 8, 4, workers=workers, cache_bytes=0, patience=0.4), 100)
    data.back.set()
    assert str(error.value).startswith(f"{named} has not been read for 0.4 s: is its disk")
    assert time.monotonic() - started < 5


def test_without_workers_a_read_that_does_not_end_is_named_once_and_waited_for():
    data, lines = Hanging(), []
    read_by = set()
    image = data.image
    data.image = lambda i: read_by.add(threading.get_ident()) or image(i)

    def on_hang(line):
        lines.append(line)
        threading.Timer(0.6, data.back.set).start()  # more than the patience later

    loader = Loader(data, 8, 4, cache_bytes=0, patience=0.4)
    seen = [batch.index for batch, _ in zip(loader.batches(on_hang=on_hang), range(NUM // 4 + 1), strict=False)]
    assert 7 in torch.cat(seen)
    (line,) = lines
    assert line.startswith("image 7 of 'numbered' has not been read for 0.4 s, and is waited for: is its disk")
    assert read_by == {threading.get_ident()}  # a data set may be bound to the thread that opened it
    assert not [thread for thread in threading.enumerate() if thread.name == "adm-data-watch" and thread.is_alive()]


def test_reads_that_are_slow_together_are_waited_for():
    data = Numbered()
    image = data.image
    data.image = lambda i: time.sleep(0.05) or image(i)
    assert first(Loader(data, 8, 20, workers=1, cache_bytes=0, patience=0.4), 20)[0].shape[0] == 20


HANGS = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from test_loader import Hanging
from adm.data import Loader
data = Hanging()
for batch in Loader(data, 8, 4, workers=2, cache_bytes=0, patience=0.4).batches():
    pass
"""


def test_a_read_that_does_not_end_does_not_keep_the_process(request):
    """Threads of concurrent.futures would be waited for at exit."""
    command = [sys.executable, "-c", HANGS, str(request.path.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "DataError: image 7 of 'numbered' has not been read for 0.4 s" in ended.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["image", "label"])
def test_whatever_a_data_set_raises_names_the_image(what, workers):
    data = Numbered()
    given = getattr(data, what)
    setattr(data, what, lambda i: {}["gone"] if i == 7 else given(i))
    with pytest.raises(DataError, match=r"image 7 of 'numbered' cannot be read \(KeyError: 'gone'\): mend it"):
        first(Loader(data, 8, 4, workers=workers), 100)
