"""From small images to large ones, in order, with their labels, and with the variance that the truth leaves open."""

import hashlib
import itertools
import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import adm
from adm.checkpoints import imagenet
from adm.checkpoints.load import save_model
from adm.checkpoints.openai_flags import read_flags
from adm.checkpoints.presets import find_preset
from adm.data import SampleSet, to_model_range, write_npz
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime.errors import DataError, UsageError
from adm.studies.request import prepare, prepare_named
from adm.studies.small_images import of_array, open_small
from adm.studies.upsample import check_small, labels_of, trained_size, upsample
from adm.training.upsampling import low_res_of
from golden_weights import DIFFUSION, recorded_weights, released_shapes

TRUNK = {
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "num_head_channels": 8,
}
NAMES = ("cat", "7", "dog")
VARIANCE = 0.02


class Exact(torch.nn.Module):
    """E[x_0 | x_t, mean of each 2 x 2 block] of independent N(0, v) pixels: the network of a perfect upsampler.

    Given its mean m a block is N(m, v (1 - 1/4)) with covariance -v/4: what m leaves open is the part without mean.
    """

    config = SimpleNamespace(low_res_channels=1, num_classes=None)

    def __init__(self, schedule, image_shape):
        super().__init__()
        self.schedule, self.image_shape = schedule, image_shape

    def forward(self, x, t, label, low_res):
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        mean = low_res.repeat_interleave(2, 2).repeat_interleave(2, 3)
        means_of_x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return mean + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - means_of_x)


def exact(image_shape, variance="small"):
    schedule = adm.cosine(1000)
    return adm.DiffusionModel(Exact(schedule, image_shape), schedule, mean="x0", variance=variance)


def in_blocks(x):
    """(N, 1, H, W) -> (blocks, 4)."""
    return x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4)


def left_open(schedule, timesteps, sampler, variance):
    """The variance of what has no mean after these steps, for data of variance v: its scalar recursion.

    x_0 is predicted as g x_t; DDIM multiplies by what DDIM Eq. 12 says, DDPM by that of DDPM Eq. 7 and adds its noise.
    """
    alpha_bars = [*(float(schedule.alpha_bar[t]) for t in sorted(timesteps, reverse=True)), 1.0]
    now = 1.0
    for ab, ab_s in itertools.pairwise(alpha_bars):
        g = ab**0.5 * VARIANCE / (ab * VARIANCE + 1 - ab)
        beta = 1 - ab / ab_s
        if isinstance(sampler, adm.DDIM):
            now *= (ab_s**0.5 * g + ((1 - ab_s) / (1 - ab)) ** 0.5 * (1 - ab**0.5 * g)) ** 2
            continue
        factor = beta * ab_s**0.5 / (1 - ab) * g + (1 - ab_s) * (1 - beta) ** 0.5 / (1 - ab)
        noise = beta if variance == "large" else beta * (1 - ab_s) / (1 - ab)
        now = now * factor**2 + (0 if ab_s == 1 else noise)
    return now


@pytest.mark.parametrize(("sampler", "variance"), [(adm.DDIM(), "small"), (adm.DDPM(), "small"), (adm.DDPM(), "large")])
def test_samples_of_gaussian_data_have_the_given_means_and_the_variance_that_these_leave_open(sampler, variance):
    model, generator = exact((1, 48, 64), variance), torch.Generator().manual_seed(0)
    low_res = 0.1 * torch.randn(4, 1, 24, 32, dtype=torch.float64, generator=generator)
    timesteps = adm.spaced(1000, 50)
    noise, chain = adm.SeededNoise(range(4), torch.float64), adm.Chain(model.schedule, timesteps)
    x = adm.sample(model, chain, sampler, noise, (4, 1, 48, 64), adm.Condition(low_res=low_res))
    blocks, means = in_blocks(x), low_res.reshape(-1)
    assert torch.allclose(blocks.mean(1), means, rtol=0, atol=1e-12)
    rest = blocks - means[:, None]
    covariance = rest.T @ rest / len(rest)
    expected = left_open(model.schedule, timesteps, sampler, variance)
    # 3072 blocks with three free directions each: standard errors of 2.6 % of a variance, 1.5 % of all of it.
    projection = torch.eye(4, dtype=torch.float64) - 1 / 4
    assert torch.allclose(covariance, expected * projection, rtol=0, atol=4 * 0.026 * 0.75 * expected)
    assert float(rest.square().mean()) == pytest.approx(0.75 * expected, rel=4 * 0.015)
    # And with all steps that is, but for 3 %, what the means leave open in truth.
    assert left_open(model.schedule, range(1000), sampler, variance) == pytest.approx(VARIANCE, rel=0.03)


def test_from_grey_levels_to_grey_levels_the_means_are_those_of_the_small_images():
    small = np.random.RandomState(0).randint(80, 176, (7, 4, 6, 1)).astype(np.uint8)
    images = upsample(exact((1, 8, 12)), small, steps=25, batch_size=3)
    assert (images.shape, images.dtype) == ((7, 8, 12, 1), np.uint8)
    means = images.reshape(7, 4, 2, 6, 2).mean((2, 4))
    # Grey levels are cut off, not rounded: half a level less on average.
    np.testing.assert_allclose(means + 0.5, small[..., 0], atol=0.5 + 1e-4)
    assert images.astype(float).std() > 15  # and they are no copies: sqrt(0.015) is 15.6 levels


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def upsampler(num_classes=3, channels=1, size=(8, 12)):
    network = UNet(
        UNetConfig(
            image_size=size,
            in_channels=channels,
            out_channels=2 * channels,
            low_res_channels=channels,
            num_classes=num_classes,
            **TRUNK,
        )
    )
    model = randomised(adm.DiffusionModel(network, adm.cosine(1000)))
    model.class_names = NAMES if num_classes == 3 else ()
    return model


@pytest.fixture(scope="module")
def model():
    return upsampler()


@pytest.fixture(scope="module")
def plain():
    return upsampler(None)


@pytest.fixture(scope="module")
def small():
    return np.random.RandomState(1).randint(0, 256, (5, 4, 6, 1)).astype(np.uint8)


def close(a, b):
    """Networks round differently in other batch sizes: a grey level at most."""
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_it_is_the_one_loop_with_the_small_images_as_low_res(model, small):
    labels = [0, 2, 1, 1, 0]
    images = upsample(model, small, labels, steps=5, sampler="ddim:eta=0.5", seed=11)
    chain, noise = adm.Chain(model.schedule, adm.strided(1000, 5)), adm.SeededNoise(range(11, 16))
    cond = adm.Condition(label=labels, low_res=torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1)
    x = adm.sample(adm.guide(model, adm.Clip()), chain, adm.DDIM(eta=0.5), noise, (5, 1, 8, 12), cond)
    np.testing.assert_array_equal(images, ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_image_k_depends_on_its_small_image_its_label_and_seed_plus_k_alone(model, small, sampler):
    labels = [0, 1, 2, 0, 1]
    everything = upsample(model, small, labels, steps=4, sampler=sampler, seed=5)
    close(upsample(model, small[3:4], labels[3:4], steps=4, sampler=sampler, seed=8), everything[3:4])
    for batch_size in (1, 2, 3):
        close(upsample(model, small, labels, steps=4, sampler=sampler, seed=5, batch_size=batch_size), everything)
    for other, chosen, seed in ((small[:1], [1], 5), (small[1:2], [0], 5), (small[:1], [0], 6)):
        changed = upsample(model, other, chosen, steps=4, sampler=sampler, seed=seed)
        assert (changed != everything[:1]).any(), (chosen, seed)


def test_more_images_than_small_ones_take_these_in_turn(plain, small):
    images = upsample(plain, small[:2], steps=4, num=5, batch_size=3)
    close(images, upsample(plain, small[[0, 1, 0, 1, 0]], steps=4))
    assert (images[0] != images[2]).any()  # another seed
    close(upsample(plain, small, steps=4, num=2), images[:2])


def classifier(num_classes=3):
    config = ClassifierConfig(image_size=(8, 12), in_channels=1, num_classes=num_classes, **TRUNK)
    model = randomised(adm.NoisyClassifier(EncoderClassifier(config), adm.cosine(1000)))
    model.class_names = NAMES if num_classes == 3 else ()
    return model


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_classifier_guides_an_upsampler_toward_the_label(plain, small, sampler):
    guide = classifier()
    log_probs = []
    for scale in (0.0, 3000.0):
        images = upsample(
            plain, small, ["dog"], steps=10, sampler=sampler, guidance=[adm.ClassifierGuidance(guide, scale)]
        )
        log_probs.append(
            float(guide.log_prob(to_model_range(images), torch.tensor(0), torch.full((5,), 2)).detach().mean())
        )
    assert log_probs[1] > log_probs[0]


class TestLabels:
    def test_those_given_count_and_else_those_of_the_images(self, model, tmp_path, small):
        write_npz(tmp_path / "s.npz", small, [2, 0, 1, 1, 0])
        request, images = prepare(model, 2, "ddim", kind="upsampler"), open_small(tmp_path / "s.npz", 1)
        assert labels_of(request, images, None) == [2, 0, 1, 1, 0]
        assert labels_of(request, images, None, 7) == [2, 0, 1, 1, 0, 2, 0]
        assert labels_of(request, images, ["dog"]) == [2] * 5
        assert labels_of(request, images, ["dog", "0"]) == [2, 0, 2, 0, 2]
        assert labels_of(request, images, ["7", 0, 0, 0, "cat"]) == [1, 0, 0, 0, 0]

    def test_a_conditional_model_without_any_says_so_in_a_line(self, model, small):
        request = prepare(model, 2, "ddim", kind="upsampler")
        says = (
            r"the images: the model is class-conditional \(3 classes\), and the images have no labels\. .*--labels NAME"
        )
        with pytest.raises(UsageError, match=says) as error:
            labels_of(request, of_array(small, 1), None)
        assert "\n" not in str(error.value)

    def test_a_single_image_without_a_label_is_named(self, model, tmp_path, small):
        write_npz(tmp_path / "s.npz", small, [2, 0, -1, 1, 0])
        request = prepare(model, 2, "ddim", kind="upsampler")
        with pytest.raises(UsageError, match="no label at image 2"):
            labels_of(request, open_small(tmp_path / "s.npz", 1), None)

    def test_an_unconditional_model_keeps_those_of_the_images_and_refuses_given_ones(self, plain, tmp_path, small):
        write_npz(tmp_path / "s.npz", small, [9, 0, -1, 1, 0])
        request, images = prepare(plain, 2, "ddim", kind="upsampler"), open_small(tmp_path / "s.npz", 1)
        assert labels_of(request, images, None) == [9, 0, -1, 1, 0]
        np.testing.assert_array_equal(upsample(plain, tmp_path / "s.npz", steps=2), upsample(plain, small, steps=2))
        with pytest.raises(UsageError, match=r"unconditional and nothing guides it"):
            labels_of(request, images, ["0"])

    def test_a_label_that_is_no_class_is_refused(self, model, tmp_path, small):
        write_npz(tmp_path / "s.npz", small, [2, 0, 3, 1, 0])
        request = prepare(model, 2, "ddim", kind="upsampler")
        with pytest.raises(DataError, match="label 3 is no class of the model, which has 3"):
            labels_of(request, open_small(tmp_path / "s.npz", 1), None)
        with pytest.raises(UsageError, match="6 labels for 5 images"):
            labels_of(request, of_array(small, 1), [0] * 6)
        with pytest.raises(UsageError, match="'cow' is no class"):
            labels_of(request, of_array(small, 1), ["cow"])

    @staticmethod
    def folder(root, small, classes):
        for k, name in enumerate(classes):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(small[k, :, :, 0]).save(root / name / f"{k}.png")
        return root

    def test_class_folders_mean_the_models_classes_of_those_names(self, model, tmp_path, small):
        request = prepare(model, 2, "ddim", kind="upsampler")
        folder = self.folder(tmp_path / "a", small, ["dog", "cat", "dog"])  # dog would be number 1 by itself
        assert labels_of(request, open_small(folder, 1), None) == [0, 2, 2]
        numbered = self.folder(tmp_path / "b", small, ["7", "Dog"])
        assert labels_of(request, open_small(numbered, 1), None) == [1, 2]
        for name, says in (("cow", "label 'cow' is no class"), ("0", "class '0' is none of the model's")):
            strange = self.folder(tmp_path / name, small, ["dog", name])
            with pytest.raises(DataError, match=rf"{says}.* Or say the classes by --labels"):
                labels_of(request, open_small(strange, 1), None)

    def test_a_sample_set_means_the_classes_that_it_names(self, model, tmp_path, small):
        with SampleSet.open(tmp_path / "s", {"model": "base"}) as samples:
            for k in range(3):
                samples.add(k, small[k])
            samples.finish([0, 1, 0], ("dog", "cat"), 0)  # of a base model that numbers them otherwise
        request = prepare(model, 2, "ddim", kind="upsampler")
        assert labels_of(request, open_small(tmp_path / "s", 1), None) == [2, 0, 2]

    def test_imagenets_own_folders_and_two_classes_of_one_name(self, small, tmp_path):
        big = upsampler(1000)
        big.class_names = imagenet.NAMES
        request = prepare(big, 2, "ddim", kind="upsampler")
        folder = self.folder(tmp_path / "a", small, ["n02123045", "n01440764"])
        assert labels_of(request, open_small(folder, 1), None) == [0, 281]
        twins = [k for k, name in enumerate(imagenet.NAMES) if imagenet.NAMES.count(name) > 1]
        with SampleSet.open(tmp_path / "s", {"model": "base"}) as samples:
            for k in range(2):
                samples.add(k, small[k])
            labels = (twins or [134, 517])[:2]
            samples.finish(labels, imagenet.NAMES, 0)
        assert labels_of(request, open_small(tmp_path / "s", 1), None) == labels


class TestInputs:
    @pytest.fixture
    def colour(self):
        return np.random.RandomState(2).randint(0, 256, (4, 4, 6, 3)).astype(np.uint8)

    def test_a_folder_its_zip_an_npz_and_a_sample_set_give_the_same_images_in_the_same_order(self, tmp_path, colour):
        (tmp_path / "f").mkdir()
        write_npz(tmp_path / "a.npz", colour, [-1] * 4)
        with (
            zipfile.ZipFile(tmp_path / "f.zip", "w") as archive,
            SampleSet.open(tmp_path / "s", {"model": "base"}) as samples,
        ):
            for k, image in enumerate(colour):
                samples.add(k, image)
                Image.fromarray(image).save(tmp_path / "f" / f"{'dcba'[k]}.png")
                archive.write(tmp_path / "f" / f"{'dcba'[k]}.png", f"f/{'dcba'[k]}.png")
            samples.finish([-1] * 4, (), 0)
        expected = to_model_range(colour)
        for name in ("a.npz", "s"):
            assert torch.equal(open_small(tmp_path / name, 3).low_res(range(4)), expected), name
        for name in ("f", "f.zip"):  # by name, not by when they were written
            assert torch.equal(open_small(tmp_path / name, 3).low_res(range(4)), expected.flip(0)), name
        assert open_small(tmp_path / "f", 3).sha256 == open_small(tmp_path / "f.zip", 3).sha256

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
    def test_a_picture_is_one_image(self, tmp_path, colour, suffix):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(colour[0]).save(path)
        small = open_small(path, 3)
        with Image.open(path) as image:
            decoded = np.asarray(image.convert("RGB"))[None]
        assert (small.num, small.size, small.labels) == (1, (4, 6), None)
        assert torch.equal(small.low_res(range(1)), to_model_range(decoded))
        assert torch.equal(small.low_res(range(5, 7)), to_model_range(decoded.repeat(2, 0)))
        assert small.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_rows_begin_anywhere_and_go_round(self, tmp_path, colour):
        write_npz(tmp_path / "a.npz", colour, [-1] * 4)
        small = open_small(tmp_path / "a.npz", 3)
        for rows in (range(0), range(2, 3), range(3, 9), range(4, 6), range(1, 14)):
            if len(rows):
                assert torch.equal(small.low_res(rows), to_model_range(colour[[k % 4 for k in rows]])), rows

    def test_grey_is_repeated_for_a_colour_model_and_a_grey_model_gets_the_luma(self, tmp_path, colour):
        Image.fromarray(colour[0, :, :, 0]).save(tmp_path / "grey.png")
        grey = open_small(tmp_path / "grey.png", 3)
        assert torch.equal(grey.low_res(range(1)), to_model_range(colour[:1, :, :, :1].repeat(3, 3)))
        assert grey.notes == ()
        Image.fromarray(colour[0]).save(tmp_path / "colour.png")
        luma = open_small(tmp_path / "colour.png", 1)
        weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
        np.testing.assert_allclose((luma.low_res(range(1))[0, 0] + 1) * 127.5, colour[0] @ weights, atol=0.51)
        assert "in colour and the model is grey" in luma.notes[0]

    def test_channels_that_no_rule_turns_into_the_models_are_refused(self, small):
        with pytest.raises(DataError, match=r"1 channel\(s\), the model takes 2"):
            of_array(small, 2)

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((2, 4, 6), np.uint8),
            np.zeros((2, 4, 6, 1)),
            np.zeros((0, 4, 6, 1), np.uint8),
            np.zeros((2, 4, 6, 4)),
        ],
    )
    def test_arrays_that_are_no_images_are_refused(self, plain, images):
        with pytest.raises(DataError, match=r"give uint8 \(n, h, w, 1\)"):
            upsample(plain, images)

    def test_what_is_not_there_or_no_image_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            open_small(tmp_path / "nothing.png", 3)
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
        with pytest.raises(DataError, match=r"broken\.png.* cannot be read"):
            open_small(tmp_path / "broken.png", 3)


class TestSizes:
    def test_of_a_model_that_does_not_say_any_size_that_divides_is_taken_with_a_note(self, plain, small):
        request = prepare(plain, 2, "ddim", kind="upsampler")
        assert trained_size(request) is None
        assert "does not say which size it was trained to enlarge to 8x12" in str(
            check_small(request, of_array(small, 1))
        )
        assert check_small(request, of_array(small[:, :2, :3], 1)) is not None
        for wrong in (
            np.zeros((1, 8, 12, 1)),
            np.zeros((1, 16, 24, 1)),
            np.zeros((1, 3, 6, 1)),
            np.zeros((1, 4, 12, 1)),
        ):
            with pytest.raises(DataError, match="cannot be enlarged to 8x12"):
                check_small(request, of_array(wrong.astype(np.uint8), 1))

    def test_released_ones_say_it_in_their_flags(self):
        request = prepare(upsampler(None), 2, "ddim", kind="upsampler")
        for name, size in (("openai/imagenet64-to-256", 64), ("openai/imagenet128-to-512", 128)):
            preset = find_preset(name)
            assert trained_size(replace(request, preset=preset)) == (size, size)
            assert preset.base is not None and find_preset(preset.base).image_size == size

    def test_a_converted_file_says_it_in_the_flags_that_it_was_converted_with(self, tmp_path):
        model = upsampler(None, size=(16, 16))
        saved = {
            "flags": ({"source": "a.pt", "flags": {"large_size": 16, "small_size": 8}}, (8, 8)),
            "words": ({"source": "a.pt", "flags": "--large_size 16 --small_size 4"}, (4, 4)),
            "like": ({"source": "a.pt", "like": "openai/imagenet64-to-256"}, (64, 64)),
            "silent": ({"source": "a.pt"}, None),
        }
        for name, (provenance, size) in saved.items():
            save_model(model, tmp_path / name, provenance)
            assert trained_size(prepare_named(tmp_path / name, 2, "ddim", kind="upsampler")) == size, name

    @pytest.mark.parametrize(
        ("size", "says"),
        [
            (
                (8, 8),
                r"images are 8x8, and the model enlarges 4x4 to 16x16: make them 4x4 first.* image.reduce\(\(2, 2\)\)",
            ),
            ((4, 8), r"images are 4x8, .* make them 4x4 first.* image.reduce\(\(2, 1\)\)"),
            ((6, 6), r"images are 6x6, .* make them 4x4 first.* image.resize\(\(4, 4\), Image.Resampling.BOX\)"),
            ((2, 2), r"images are 2x2, and the model enlarges 4x4 to 16x16: give images of 4x4"),
            ((2, 8), r"give images of 4x4"),
        ],
    )
    def test_another_size_is_refused_with_the_right_one(self, tmp_path, size, says):
        save_model(upsampler(None, size=(16, 16)), tmp_path / "m", {"flags": "--large_size 16 --small_size 4"})
        with pytest.raises(DataError, match=says) as error:
            upsample(tmp_path / "m", np.zeros((1, *size, 1), np.uint8), steps=2)
        assert "\n" not in str(error.value)

    def test_the_remedy_is_the_average_of_training(self):
        large = np.random.RandomState(0).randint(0, 256, (8, 18)).astype(np.uint8)
        shrunk = np.asarray(Image.fromarray(large).reduce((3, 2)))
        shown = low_res_of(torch.from_numpy(large).double()[None, None], (4, 6), 0, torch.zeros(1), torch.zeros(1))
        np.testing.assert_allclose(shrunk, shown[0, 0], atol=0.501)  # but for the rounding to grey levels


def test_what_is_no_upsampler_is_refused_by_name(tmp_path):
    base = UNetConfig(image_size=(8, 12), in_channels=1, out_channels=2, **TRUNK)
    save_model(randomised(adm.DiffusionModel(UNet(base), adm.cosine(1000))), tmp_path / "base")
    save_model(classifier(), tmp_path / "guide")
    for name, says in (
        (tmp_path / "base", "base makes images from noise alone"),
        (tmp_path / "guide", "guide is a classifier. Give an upsampler"),
        (
            "openai/imagenet64",
            r"makes images from noise alone.* Give an upsampler; of its images, openai/imagenet64-to-256",
        ),
        ("openai/imagenet64-classifier", "is a classifier"),
    ):
        with pytest.raises(UsageError, match=says):
            upsample(name, np.zeros((1, 4, 4, 1), np.uint8), steps=2)


def test_a_recorded_upsampler_is_converted_and_used(tmp_path):
    """The weights of golden/diffusion/upsampler_8_to_16; its network's output is held against the record elsewhere."""
    flags = json.loads((DIFFUSION / "upsampler_8_to_16.json").read_text())
    seed = flags.pop("weight_seed")
    torch.save(recorded_weights(released_shapes(read_flags(flags)), seed), tmp_path / "up.pt")
    adm.convert(tmp_path / "up.pt", tmp_path / "up", flags=flags)
    small = np.random.RandomState(0).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    images = upsample(tmp_path / "up", small, [3, 999], steps=2)
    assert images.shape == (2, 16, 16, 3)
    with pytest.raises(DataError, match="enlarges 8x8 to 16x16"):
        upsample(tmp_path / "up", small[:, :4, :4], [3, 999], steps=2)
