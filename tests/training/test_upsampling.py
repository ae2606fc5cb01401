"""What an upsampler is shown, that it learns to use it, and the pictures of that."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adm
from adm.checkpoints.format import load
from adm.checkpoints.model_document import ScheduleConfig
from adm.data import overview
from adm.data._overview import STRIP
from adm.nn import UNet, UNetConfig
from adm.studies.request import prepare_named
from adm.studies.upsample import trained_size, upsample
from adm.training.config import DataConfig, LoopConfig, OptimizerConfig, UpsamplerTraining
from adm.training.run import new_model, train
from adm.training.upsampling import low_res_of, preview_upsampler
from tiny_runs import global_states

NETWORK = UNetConfig(
    image_size=8,
    in_channels=1,
    out_channels=1,
    low_res_channels=1,
    model_channels=8,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    num_head_channels=8,
)
CONFIG = UpsamplerTraining(
    "upsampler",
    DataConfig("blocks"),
    NETWORK,
    ScheduleConfig("cosine", 100),
    mean="x0",
    variance="small",
    loss="simple",
    low_res_size=4,
    optimizer=OptimizerConfig(lr=5e-3, warmup_steps=10),
    loop=LoopConfig(steps=100, batch_size=16, save_every=100, sample_every=100),
)


class Blocks:
    """8 x 8 images that are constant in blocks of 2 x 2, so that their low resolution says everything."""

    name = "blocks"
    channels = 1
    class_names: tuple[str, ...] = ()
    default_flip = True

    def __init__(self, num: int, seed: int = 0) -> None:
        self.small = np.random.RandomState(seed).randint(0, 256, (num, 4, 4, 1)).astype(np.uint8)
        self.images = self.small.repeat(2, axis=1).repeat(2, axis=2)
        self.fingerprint = hashlib.sha256(self.images.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def label(self, i: int) -> int:
        return -1


def shown(x0, size, noise=0.0, u=None, z=None):
    n, c = x0.shape[:2]
    return low_res_of(x0, size, noise, torch.zeros(n) if u is None else u, torch.zeros(n, c, *size) if z is None else z)


@pytest.mark.parametrize("size", [(4, 6), (2, 3), (8, 4), (1, 1), (8, 12)])
def test_each_pixel_is_the_mean_of_its_block(size):
    x0 = np.random.RandomState(0).standard_normal((3, 2, 8, 12))
    means = x0.reshape(3, 2, size[0], 8 // size[0], size[1], 12 // size[1]).mean((3, 5))
    np.testing.assert_allclose(shown(torch.from_numpy(x0), size), means, rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_ramp_comes_back_from_training_pair_to_network_input_but_for_its_ends(factor):
    """Averages are a ramp's values at the blocks' middles, and bilinear enlargement with align_corners=False takes
    them to lie there: any other rule of either (nearest, corners aligned, every n-th pixel) shifts the ramp."""
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16).contiguous()
    network = UNet(replace(NETWORK, image_size=16)).double()
    enlarged = network.with_low_res(ramp, shown(ramp, (16 // factor, 16 // factor)))[:, 1:]
    inside = slice(factor // 2, 16 - factor // 2)
    assert torch.allclose(enlarged[..., inside], ramp[..., inside], rtol=0, atol=1e-12)
    first = (factor - 1) / 2  # beyond the middle of the outermost blocks there is nothing to go on
    assert torch.allclose(enlarged[..., : factor // 2], torch.full((), first).double(), rtol=0, atol=1e-12)
    assert torch.allclose(enlarged[..., 16 - factor // 2 :], torch.full((), 15 - first).double(), rtol=0, atol=1e-12)


def test_noise_has_its_own_level_for_each_image_and_is_not_clamped():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.ones(4, 1, 64, 64)
    u, z = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64), torch.randn(4, 1, 32, 32, generator=generator)
    noised = shown(x0, (32, 32), 0.4, u, z)
    assert (noised.dtype, float(noised.max()) > 1.5) == (torch.float32, True)
    assert torch.equal(noised[0], torch.ones(1, 32, 32))
    # 1024 pixels: the standard error of a standard deviation is 2.2 %.
    for k in (1, 2, 3):
        assert float((noised[k] - 1).std()) == pytest.approx(0.4 * float(u[k]), rel=4 * 0.022)
        assert float((noised[k] - 1).mean()) == pytest.approx(0, abs=4 * 0.4 * float(u[k]) / 32)
    assert torch.equal(shown(x0, (32, 32), 0.0, u, z), torch.ones(4, 1, 32, 32))


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (0, 4), (16, 16)])
def test_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(ValueError, match="both sides must divide those of the image, "):
        shown(torch.zeros(1, 1, 8, 8), size)


def test_an_upsampler_is_not_shown_the_very_image_that_it_is_to_find():
    with pytest.raises(ValueError, match="low_res_size is 8, the size of the images: nothing is left to find"):
        replace(CONFIG, low_res_size=8)
    replace(CONFIG, low_res_size=8, low_res_noise=0.5)  # noise is
    replace(CONFIG, low_res_size=(8, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A hundred steps on images that their low resolution says everything about; the checkpoint."""
    return train(CONFIG, tmp_path_factory.mktemp("upsampler") / "run", dataset=Blocks(256))


def errors(made, held):
    """Root mean squares, in grey levels: of the pixels against the truth, of the blocks' means against the input."""
    means = made.astype(float).reshape(-1, 4, 2, 4, 2).mean((2, 4))
    pixels = ((made.astype(float) - held.images) ** 2).mean() ** 0.5
    return pixels, ((means - held.small[..., 0]) ** 2).mean() ** 0.5


def test_a_trained_upsampler_finds_held_out_images_that_are_determined_and_keeps_their_block_means(run):
    held = Blocks(32, seed=1)
    pixels, means = errors(upsample(run, held.small, steps=10), held)
    # Uniform grey levels: whoever does not use the small image is off by 74 at least.
    assert pixels < 20 and means < 15
    untrained = new_model(CONFIG)
    pixels, means = errors(upsample(untrained, held.small, steps=10), held)
    assert pixels > 60 and means > 60
    # And it is the small image that it goes by: with another's it makes the other.
    pixels, _ = errors(upsample(run, held.small[::-1].copy(), steps=10), held)
    assert pixels > 60


def test_the_checkpoint_knows_the_size_that_it_was_trained_with(run):
    for model in (run, run.parent.parent):
        assert trained_size(prepare_named(model, 2, "ddim", kind="upsampler")) == (4, 4)


def test_the_run_shows_three_rows_low_res_upsampled_and_true(run):
    picture = np.asarray(Image.open(run.parent.parent / "samples" / "step-00000100.png"))
    scale, pad, num = 8, 2, 8  # 8 pixels become 64
    height, width = 8 * scale + STRIP + pad, 8 * scale + pad
    assert picture.shape == (3 * height + pad, num * width + pad)
    cells = picture[pad:, pad:].reshape(3, height, num, width)
    rows = cells[:, : 8 * scale : scale, :, : 8 * scale : scale]
    low, made, true = rows.transpose(0, 2, 1, 3).astype(int)
    data = Blocks(256)
    expected = data.images[[k * 32 for k in range(8)], :, :, 0].astype(int)
    np.testing.assert_array_equal(true, expected)
    np.testing.assert_allclose(low, expected, atol=1)  # of such images; to grey levels it is cut off
    assert np.sqrt(((made - expected) ** 2).mean()) < 20
    captions = overview(np.zeros((3, 8, 8, 1), np.uint8), ["input 4x4", "upsampled", "true"], columns=1)
    for row, said in zip(cells, captions[pad:, pad:-pad, 0].reshape(3, height, -1), strict=True):
        assert all((row[8 * scale : -pad, k, :-pad] == said[8 * scale : -pad]).all() for k in range(num))


class TestPreview:
    @pytest.fixture
    def model(self):
        """A network that says x_0 = 0, whatever it sees, until its last bias is changed."""
        return new_model(CONFIG)

    @staticmethod
    def middle(picture, num):
        height = 64 + STRIP + 2
        return picture[2 + height : 2 + height + 64].reshape(64, -1)[:, 2 : 2 + 64]

    def test_it_shows_the_weights_that_it_is_given_and_leaves_the_model_alone(self, model):
        weights = {name: value.clone() for name, value in model.network.state_dict().items()}
        weights["out.conv.bias"] += 0.5
        model.train()
        before = global_states()
        for given, level in ((model.network.state_dict(), 127), (weights, 191)):
            picture = preview_upsampler(model, given, Blocks(3), CONFIG, steps=4)
            assert picture.shape == (3 * (64 + STRIP + 2) + 2, 3 * 66 + 2, 1)
            assert (self.middle(picture, 3) == level).all()
        assert model.training and not model.network.state_dict()["out.conv.bias"].any()
        assert global_states() == before

    def test_progress_counts_images_and_what_it_raises_ends_the_work(self, model):
        seen = []
        weights = model.network.state_dict()
        preview_upsampler(model, weights, Blocks(9), CONFIG, num=2, steps=4, on_progress=lambda *at: seen.append(at))
        assert seen == [(0, 2), (1, 2), (1, 2), (2, 2)]

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            preview_upsampler(model, weights, Blocks(9), CONFIG, on_progress=stop)

    def test_labels_are_those_of_the_models_classes_by_name(self, monkeypatch):
        config = replace(CONFIG, network=replace(NETWORK, num_classes=3))
        model = new_model(config, ("cat", "dog", "owl"))
        data = Blocks(4)
        data.class_names, data.label = ("dog", "cat", "yak"), lambda i: (0, 1, 2, -1)[i]  # type: ignore[method-assign]
        seen = []
        forward = adm.DiffusionModel.forward
        monkeypatch.setattr(
            adm.DiffusionModel,
            "forward",
            lambda self, x, t, cond: (seen.append(cond.label), forward(self, x, t, cond))[1],
        )
        picture = preview_upsampler(model, model.network.state_dict(), data, config, steps=1)
        assert seen[0].tolist() == [1, 0, -1, -1]
        below = picture[-2 - STRIP : -2, 2:].reshape(STRIP, 4, 66)[:, :, :64]
        captions = ["true dog", "true cat", "true yak", "true"]
        expected = overview(np.zeros((4, 8, 8, 1), np.uint8), captions, columns=4)
        np.testing.assert_array_equal(below, expected[-2 - STRIP : -2, 2:].reshape(STRIP, 4, 66)[:, :, :64])


def test_stopped_and_continued_it_is_the_same_run(tmp_path: Path):
    config = replace(CONFIG, low_res_noise=0.3, loop=LoopConfig(steps=6, batch_size=5, save_every=3, sample_every=None))
    whole = load(train(config, tmp_path / "whole", dataset=Blocks(12))).tensors["ema"]
    train(replace(config, loop=replace(config.loop, steps=3)), tmp_path / "parts", dataset=Blocks(12))
    parts = load(train(config, tmp_path / "parts", dataset=Blocks(12))).tensors["ema"]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    other = load(train(replace(config, low_res_noise=0.0), tmp_path / "other", dataset=Blocks(12))).tensors["ema"]
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
