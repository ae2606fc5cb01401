"""`adm upsample`: from small images to sample sets and .npz files, in order, continued, and refused in a line."""

import csv
import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import adm
from adm.checkpoints.load import save_model
from adm.checkpoints.presets import PRESETS, Preset, Recommended, preset_spec
from adm.data import SampleSet, write_npz
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.studies.upsample import upsample
from golden_weights import recorded_weights, released_shapes

TRUNK = {
    "image_size": 16,
    "in_channels": 1,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "num_head_channels": 8,
}
NAMES = ("cat", "dog", "owl")
STEPS = ["--steps", "2", "--device", "cpu"]
SAID = {"flags": "--large_size 16 --small_size 8"}


def saved(network, directory, provenance=None):
    kind = adm.DiffusionModel if isinstance(network, UNet) else adm.NoisyClassifier
    model = kind(network, adm.cosine(1000)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.class_names = NAMES if model.num_classes else ()
    return save_model(model, directory, provenance)


@pytest.fixture(scope="module")
def _place(tmp_path_factory):
    place = tmp_path_factory.mktemp("upsample")
    for name, classes, said in (("up", 3, SAID), ("plain", None, SAID), ("silent", None, None)):
        config = UNetConfig(out_channels=2, low_res_channels=1, num_classes=classes, **TRUNK)
        saved(UNet(config), place / name, said)
    saved(EncoderClassifier(ClassifierConfig(num_classes=3, **TRUNK)), place / "clf")
    small = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    for k, image in enumerate(small):
        for folder in ("flat", f"classes/{NAMES[2 - k % 2]}"):
            (place / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[:, :, 0]).save(place / folder / f"{k}.png")
    write_npz(place / "labelled.npz", small, [2, 1, 2, 1, 2])
    write_npz(place / "bare.npz", small, [-1] * 5)
    return place


@pytest.fixture
def place(_place, monkeypatch):
    monkeypatch.chdir(_place)
    return _place


@pytest.fixture
def small(place):
    with np.load(place / "bare.npz") as arrays:
        return arrays["arr_0"]


def rows(directory):
    with (directory / "labels.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def pixels(directory):
    images = [np.asarray(Image.open(path)) for path in sorted(directory.glob("*.png"))]
    return np.stack([image if image.ndim == 3 else image[:, :, None] for image in images])


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def close(a, b):
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_a_directory_holds_an_image_for_each_small_one_its_label_and_the_request(place, small, tmp_path, adm_command):
    result = adm_command("upsample", "up", "labelled.npz", "--out", tmp_path / "s", "--seed", 5, *STEPS)
    assert (result.code, result.err) == (0, "")
    assert (
        result.out
        == f"{tmp_path / 's'} (5 images; 2 network evaluations an image; overview: {tmp_path / 's-overview.png'})\n"
    )
    close(pixels(tmp_path / "s"), upsample("up", small, [2, 1, 2, 1, 2], steps=2, sampler="ddpm", seed=5))
    assert [(row["label"], row["class"], row["seed"]) for row in rows(tmp_path / "s")] == [
        ("2", "owl", "5"), ("1", "dog", "6"), ("2", "owl", "7"), ("1", "dog", "8"), ("2", "owl", "9")
    ]  # fmt: skip
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert request | {"model": "up", "input": "labelled.npz", "steps": 2, "seed": 5} == request
    assert request["sampler"] == "ddpm" and "interpolation=" in request["sampler_in_full"]
    assert (request["label_policy"], request["low_res_size"], request["image_shape"]) == (
        "of the input",
        [8, 8],
        [1, 16, 16],
    )


def test_a_sample_set_is_taken_and_the_result_is_one_again(place, small, tmp_path, adm_command):
    with SampleSet.open(tmp_path / "base", {"model": "base"}) as samples:
        for k, image in enumerate(small):
            samples.add(k, image)
        samples.finish([1, 0, 1, 0, 1], NAMES, 0)
    assert adm_command("upsample", "up", tmp_path / "base", "--out", tmp_path / "s", *STEPS).code == 0
    assert [row["class"] for row in rows(tmp_path / "s")] == ["dog", "cat", "dog", "cat", "dog"]
    reread = adm.data.open_images(tmp_path / "s")
    assert (reread.num, reread.shape, reread.labels.tolist()) == (5, (16, 16, 1), [1, 0, 1, 0, 1])


def test_a_picture_becomes_one_image_or_several(place, small, tmp_path, adm_command):
    assert adm_command("upsample", "plain", "flat/3.png", "--out", tmp_path / "one", *STEPS).code == 0
    close(pixels(tmp_path / "one"), upsample("plain", small[3:4], steps=2, sampler="ddpm"))
    words = ["upsample", "plain", "flat/3.png", "--num", 3, "--out", tmp_path / "three", *STEPS]
    assert adm_command(*words).code == 0
    close(pixels(tmp_path / "three"), upsample("plain", small[[3, 3, 3]], steps=2, sampler="ddpm"))


def test_an_npz_is_as_openai_writes_it(place, small, tmp_path, adm_command):
    words = ["upsample", "up", "classes", "--out", tmp_path / "x.npz", *STEPS]
    assert adm_command(*words).out == f"{tmp_path / 'x.npz'}\n"
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["arr_1"].tolist() == [1, 1, 2, 2, 2]  # folders by name: dog before owl
        close(arrays["arr_0"], upsample("up", small[[1, 3, 0, 2, 4]], [1, 1, 2, 2, 2], steps=2, sampler="ddpm"))
    assert "exists" in adm_command(*words).problem


def test_labels_that_are_given_come_before_those_of_the_images(place, tmp_path, adm_command):
    words = ["upsample", "up", "labelled.npz", *STEPS, "--out"]
    assert adm_command(*words, tmp_path / "a", "--labels", "owl,cat*2").code == 0
    assert [row["label"] for row in rows(tmp_path / "a")] == ["2", "0", "0", "2", "0"]
    assert adm_command(*words, tmp_path / "b", "--labels", "cat").code == 0
    assert [row["class"] for row in rows(tmp_path / "b")] == ["cat"] * 5


def test_a_class_conditional_upsampler_without_labels_is_one_line_that_says_what_to_write(place, tmp_path, adm_command):
    for source in ("bare.npz", "flat", "flat/3.png"):
        result = adm_command("upsample", "up", source, "--out", tmp_path / "s", *STEPS)
        assert (result.code, "the images have no labels" in result.problem) == (2, True)
        assert "--labels NAME" in result.problem and "(such as cat, dog)" in result.problem
        assert not (tmp_path / "s").exists()


def test_the_same_command_makes_only_what_is_missing_with_equal_bytes(place, tmp_path, adm_command, monkeypatch):
    out = tmp_path / "s"
    words = ["upsample", "up", "labelled.npz", "--out", out, "--set", "batch_size=2", *STEPS]
    assert adm_command(*words).code == 0
    before = contents(out)
    made, add = [], SampleSet.add
    monkeypatch.setattr(SampleSet, "add", lambda self, k, image: (made.append(k), add(self, k, image)))
    for name in ("000001.png", "000004.png", "labels.csv"):
        (out / name).unlink()
    result = adm_command(*words)
    assert "3 of 5 images are there" in result.err and made == [1, 4]
    assert contents(out) == before


def test_a_set_grows_over_the_small_images_in_turn(place, tmp_path, adm_command):
    words = ["upsample", "up", "labelled.npz", "--set", "batch_size=3", *STEPS, "--num"]
    assert adm_command(*words, 2, "--out", tmp_path / "s").code == 0
    first = (tmp_path / "s" / "000001.png").read_bytes()
    assert adm_command(*words, 7, "--out", tmp_path / "s").code == 0
    assert adm_command(*words, 7, "--out", tmp_path / "whole").code == 0
    assert [row["label"] for row in rows(tmp_path / "s")] == ["2", "1", "2", "1", "2", "2", "1"]
    assert (tmp_path / "s" / "000001.png").read_bytes() == first
    for k in range(2, 7):  # made in the same blocks
        name = f"{k:06d}.png"
        close(np.asarray(Image.open(tmp_path / "s" / name)), np.asarray(Image.open(tmp_path / "whole" / name)))


def test_stopped_between_batches_the_same_command_ends_with_equal_bytes(place, tmp_path, adm_command, monkeypatch):
    words = ["upsample", "up", "labelled.npz", "--set", "batch_size=2", *STEPS, "--out"]
    assert adm_command(*words, tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        add = SampleSet.add

        def interrupted(self, k, image):
            if k == 1:
                signal.raise_signal(signal.SIGTERM)
            add(self, k, image)

        patch.setattr(SampleSet, "add", interrupted)
        result = adm_command(*words, tmp_path / "s")
    assert (result.code, "stopped after 2 of 5 images; the same command continues" in result.problem) == (75, True)
    assert adm_command(*words, tmp_path / "s").code == 0
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--seed", "1"], "seed"),
        (["--labels", "cat"], "labels"),
        (["--sampler", "ddim"], "sampler"),
        (["--guidance", "classifier:classifier=clf"], "guidance"),
    ],
)
def test_a_set_made_with_other_settings_is_refused_by_name(words, name, place, tmp_path, adm_command):
    base = ["upsample", "up", "labelled.npz", "--out", tmp_path / "s", *STEPS]
    assert adm_command(*base).code == 0
    result = adm_command(*base, *words)
    assert (result.code, f"was made with {name}=" in result.problem) == (2, True)


def test_other_small_images_under_the_same_name_are_another_request(place, tmp_path, adm_command):
    shutil.copytree(place / "flat", tmp_path / "flat")
    words = ["upsample", "plain", tmp_path / "flat", "--out", tmp_path / "s", *STEPS]
    assert adm_command(*words).code == 0
    Image.new("L", (8, 8), 7).save(tmp_path / "flat" / "2.png")
    assert "was made with input_sha256=" in adm_command(*words).problem


def test_guidance_pulls_and_is_recorded(place, tmp_path, adm_command):
    words = ["upsample", "plain", "labelled.npz", *STEPS, "--out"]
    assert adm_command(*words, tmp_path / "a").code == 0
    assert adm_command(*words, tmp_path / "b", "--guidance", "classifier:classifier=clf,scale=9000").code == 0
    assert (pixels(tmp_path / "a") != pixels(tmp_path / "b")).any()
    assert [row["class"] for row in rows(tmp_path / "b")] == ["owl", "dog", "owl", "dog", "owl"]
    request = json.loads((tmp_path / "b" / "request.json").read_text())
    assert (
        request["guidance"] == ["classifier:classifier=clf,scale=9000,temperature=1.0"]
        and len(request["guidance_sha256"]) == 1
    )
    result = adm_command(
        "upsample", "plain", "flat", *STEPS, "--out", tmp_path / "c", *["--guidance", "classifier:classifier=clf"]
    )
    assert "the images have no labels" in result.problem


def test_sizes_are_told(place, tmp_path, adm_command):
    for side, says in ((16, "make them 8x8 first"), (4, "give images of 8x8")):
        Image.new("L", (side, side)).save(tmp_path / "a.png")
        result = adm_command("upsample", "plain", tmp_path / "a.png", "--out", tmp_path / "s", *STEPS)
        assert (result.code, says in result.problem) == (3, True)
        assert f"images are {side}x{side}, and the model enlarges 8x8 to 16x16" in result.problem
    result = adm_command("upsample", "silent", tmp_path / "a.png", "--out", tmp_path / "s", *STEPS)
    assert (result.code, result.err) == (
        0, "adm: note: the model does not say which size it was trained to enlarge to 16x16; make sure that it is 4x4\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["clf", "flat"], 2, "clf is a classifier. Give an upsampler"),
        (["up", "nowhere"], 3, "nowhere: no such file or folder"),
        (["nowhere", "flat"], 2, "no such run or checkpoint"),
        (["openai/imagenet64", "flat"], 2, "Give an upsampler; of its images, openai/imagenet64-to-256"),
        (["up", "labelled.npz", "--labels", "cow"], 2, "'cow' is no class"),
        (["up", "labelled.npz", "--num", "0"], 2, "at least 1"),
        (["up", "labelled.npz", "--seed", "-1"], 2, "seed -1"),
        (["plain", "flat", "--labels", "cat"], 2, "the model is unconditional"),
        (["up", "labelled.npz", "--set", "batch_size=0"], 2, "batch_size is 0"),
        (["up"], 2, "needs INPUT"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(words, code, says, place, tmp_path, adm_command):
    result = adm_command("upsample", *words, "--out", tmp_path / "s", *STEPS)
    assert (result.code, says in result.problem) == (code, True), result.problem
    assert list(tmp_path.iterdir()) == []


def test_adm_sample_names_the_command_for_an_upsampler(place, tmp_path, adm_command):
    assert "adm upsample" in adm_command("sample", "up", "--out", tmp_path / "s", *STEPS).problem
    assert "adm upsample" in adm_command("sample", "openai/imagenet64-to-256", "--out", tmp_path / "s").problem


class TestReleased:
    FLAGS = (
        "--large_size 32 --small_size 8 --num_channels 32 --num_res_blocks 1 --num_head_channels 32 --learn_sigma True "
        "--attention_resolutions 8 --resblock_updown True --class_cond True --noise_schedule linear"
    )

    @pytest.fixture
    def released(self, tmp_path, monkeypatch):
        """An upsampler under a name of its own in a cache, as the released ones are."""
        texts = {field.name: "" for field in dataclasses.fields(Preset) if field.default is dataclasses.MISSING}
        said = {
            "name": "tiny/8-to-32",
            "kind": "upsampler",
            "file": "up.pt",
            "flags": self.FLAGS,
            "image_size": 32,
            "class_table": "imagenet",
            "recommended": (Recommended("ddpm", 3),),
        }
        preset = Preset(**texts | said)
        monkeypatch.setitem(PRESETS, preset.name, preset)
        monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
        (tmp_path / "cache" / "models").mkdir(parents=True)
        file = tmp_path / "cache" / "models" / preset.file
        torch.save(recorded_weights(released_shapes(preset_spec(preset)), 0), file)
        return preset

    @pytest.mark.filterwarnings("default")
    def test_by_name_with_the_released_steps_and_names_of_classes(self, released, tmp_path, adm_command):
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "a.png")
        words = ["upsample", released.name, tmp_path / "a.png", "--labels", "chihuahua", "--device", "cpu", "--out"]
        result = adm_command(*words, tmp_path / "s")
        assert (result.code, "3 steps of ddpm (the released settings)" in result.err) == (0, True), result.err
        assert pixels(tmp_path / "s").shape == (1, 32, 32, 3)
        assert rows(tmp_path / "s")[0] | {"label": "151", "class": "Chihuahua"} == rows(tmp_path / "s")[0]
        Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
        words[2] = tmp_path / "b.png"
        assert "the model enlarges 8x8 to 32x32: make them 8x8 first" in adm_command(*words, tmp_path / "t").last

    def test_one_that_is_not_there_is_fetched_by_a_command_that_is_named(
        self, place, tmp_path, adm_command, monkeypatch
    ):
        monkeypatch.setenv("ADM_CACHE", str(tmp_path / "empty"))
        result = adm_command("upsample", "openai/imagenet64-to-256", "flat", "--out", tmp_path / "s")
        assert (result.code, "adm models get openai/imagenet64-to-256" in result.problem) == (2, True)
