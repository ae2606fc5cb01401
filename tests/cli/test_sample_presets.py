"""`adm sample` of released models: from a name to pictures, with small models under names of their own in a cache."""

import csv
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

import adm
from adm.checkpoints.presets import PRESETS, Preset, Recommended, find_preset, preset_spec
from adm.data import to_uint8
from golden_weights import recorded_weights, released_shapes

TRUNK = "--num_channels 32 --num_res_blocks 1 --num_head_channels 32 --attention_resolutions 8 --resblock_updown True"
DIFFUSION = f"--image_size 32 {TRUNK} --learn_sigma True --noise_schedule cosine --diffusion_steps 1000"
CLASSIFIER = (
    "--image_size 32 --classifier_width 32 --classifier_depth 1 --classifier_attention_resolutions 8 "
    "--classifier_pool attention --noise_schedule cosine --diffusion_steps 1000"
)
STEPS = (Recommended("ddpm", 3, 200.0), Recommended("ddim", 2, 500.0))

GUIDED_BY = "classifier:classifier=tiny/clf,scale=200.0,temperature=1.0"


def preset(name, kind, flags, **more):
    names = {"name": f"tiny/{name}", "what": name, "file": f"{name}.pt"}
    texts = {field.name: "" for field in dataclasses.fields(Preset) if field.default is dataclasses.MISSING}
    return Preset(**texts | names | {"kind": kind, "flags": flags, "image_size": 32} | more)


TINY = (
    preset("base", "diffusion", f"{DIFFUSION} --class_cond True", class_table="imagenet", classifier="tiny/clf",
           recommended=STEPS),
    preset("plain", "diffusion", DIFFUSION, classifier="tiny/clf", recommended=STEPS[:1]),
    preset("alone", "diffusion", f"{DIFFUSION} --dropout 0.1", recommended=(Recommended("ddpm", 4),)),
    preset("clf", "classifier", CLASSIFIER, class_table="imagenet"),
)  # fmt: skip


def save(preset, directory, seed, weights=recorded_weights):
    file = directory / preset.file
    torch.save(weights(released_shapes(preset_spec(preset)), seed), file)
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache") / "models"
    directory.mkdir()
    for seed, tiny in enumerate(TINY):
        save(tiny, directory, seed)
    return directory


@pytest.fixture
def cache(files, monkeypatch):
    """The cache with the files of all tiny presets."""
    monkeypatch.setenv("ADM_CACHE", str(files.parent))
    for tiny in TINY:
        monkeypatch.setitem(PRESETS, tiny.name, tiny)
    return files


def sampled(adm_command, out, *words):
    result = adm_command("sample", *words, "--out", out, "--device", "cpu", "--set", "batch_size=1")
    assert result.code == 0, result.err
    pictures = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
    return np.stack(pictures), json.loads((out / "request.json").read_text()), result


def by_hand(label, scale, steps, sampler, num=1):
    """The same from the parts, with nothing chosen."""
    model, classifier = adm.load("tiny/base"), adm.load("tiny/clf")
    timesteps = (adm.strided if sampler == adm.DDIM() else adm.spaced)(1000, steps)
    denoiser = adm.guide(model, adm.Clip(), adm.ClassifierGuidance(classifier, scale))
    noise, cond = adm.SeededNoise([0]), adm.Condition(label=[label])
    return to_uint8(
        adm.sample(denoiser, adm.Chain(model.schedule, timesteps), sampler, noise, (1, 3, 32, 32), cond)
    ).numpy()


def test_one_command_picks_the_classifier_the_scale_and_the_steps_and_says_so(cache, tmp_path, adm_command):
    words = ["tiny/base", "--labels", "chihuahua", "--guidance", "classifier"]
    images, request, result = sampled(adm_command, tmp_path / "s", *words)
    assert result.err.splitlines()[0] == "adm: using tiny/clf, scale 200.0, 3 steps of ddpm (the released settings)"
    np.testing.assert_array_equal(images, by_hand(151, 200.0, 3, adm.DDPM()))
    with (tmp_path / "s" / "labels.csv").open() as file:
        assert [(row["label"], row["class"].lower()) for row in csv.DictReader(file)] == [("151", "chihuahua")]
    sha256 = {name: hashlib.sha256((cache / f"{name}.pt").read_bytes()).hexdigest() for name in ("base", "clf")}
    assert request | {"model": "tiny/base", "model_sha256": sha256["base"], "weights": "ema", "labels": "chihuahua",
                      "guidance": [GUIDED_BY], "guidance_sha256": [sha256["clf"]],
                      "label_policy": "given, in turn", "steps": 3, "sampler": "ddpm"} == request  # fmt: skip
    np.testing.assert_array_equal(
        adm.generate("tiny/base", ["chihuahua"], sampler="ddpm", guidance=("classifier",)), images
    )


def test_ddim_takes_its_own_recommendation(cache, tmp_path, adm_command):
    words = ["tiny/base", "--labels", "n02085620", "--guidance", "classifier", "--sampler", "ddim"]
    images, request, result = sampled(adm_command, tmp_path / "s", *words)
    assert result.err.splitlines()[0] == "adm: using tiny/clf, scale 500.0, 2 steps of ddim (the released settings)"
    assert (request["steps"], request["guidance"]) == (
        2,
        ["classifier:classifier=tiny/clf,scale=500.0,temperature=1.0"],
    )
    np.testing.assert_array_equal(images, by_hand(151, 500.0, 2, adm.DDIM()))
    np.testing.assert_array_equal(adm.generate("tiny/base", [151], guidance=["classifier"]), images)


def test_what_is_said_wins(cache, tmp_path, adm_command):
    words = ["tiny/base", "--labels", "151", "--guidance", "classifier:scale=7", "--steps", "2"]
    images, _, result = sampled(adm_command, tmp_path / "s", *words)
    assert result.err.splitlines()[0] == "adm: using tiny/clf"
    np.testing.assert_array_equal(images, by_hand(151, 7.0, 2, adm.DDPM()))


def test_an_unconditional_model_takes_labels_when_it_is_guided(cache, tmp_path, adm_command):
    words = ["tiny/plain", "--labels", "tiger cat", "--steps", "2"]
    refused = adm_command("sample", *words, "--out", tmp_path / "s")
    assert (refused.code, "unconditional and nothing guides it" in refused.problem) == (2, True)
    _, request, _ = sampled(adm_command, tmp_path / "s", *words, "--guidance", "classifier")
    _, unguided, _ = sampled(adm_command, tmp_path / "n", *words[:1], *words[3:], "--num", 1)
    assert (request["guidance"], unguided["guidance"]) == ([GUIDED_BY], [])
    assert (request["label_policy"], unguided["label_policy"]) == ("given, in turn", "none")


def test_a_model_without_a_classifier_says_so(cache, tmp_path, adm_command):
    result = adm_command("sample", "tiny/alone", "--out", tmp_path / "s", "--guidance", "classifier")
    assert (result.code, "none is known for tiny/alone" in result.problem) == (2, True)
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("default")
def test_the_file_itself_and_what_was_converted_from_it_choose_as_the_name_does(cache, tmp_path, adm_command):
    words = ["--labels", "3", "--guidance", "classifier"]
    images, _, _ = sampled(adm_command, tmp_path / "a", "tiny/base", *words)
    adm.convert(cache / "base.pt", tmp_path / "converted")
    for k, model in enumerate((cache / "base.pt", tmp_path / "converted")):
        again, _, result = sampled(adm_command, tmp_path / str(k), model, *words)
        assert result.err.splitlines()[0] == (
            "adm: using tiny/clf, scale 200.0, 3 steps of ddpm (the released settings)"
        )
        np.testing.assert_array_equal(again, images)


def test_what_is_missing_is_one_line_before_any_work(tmp_path, monkeypatch, adm_command):
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    words = ["sample", "openai/imagenet64", "--out", tmp_path / "s", "--labels", "chihuahua"]
    result = adm_command(*words, "--guidance", "classifier")
    assert result.code == 2 and list(tmp_path.iterdir()) == []
    for name in ("openai/imagenet64", "openai/imagenet64-classifier"):
        assert f"adm models get {name}" in result.problem
    assert "classifier" not in adm_command(*words).problem
    upsampler = adm_command("sample", "openai/imagenet64-to-256", "--out", tmp_path / "s")
    assert (upsampler.code, "is an upsampler" in upsampler.problem) == (2, True)
    likelihood = adm_command("likelihood", "openai/imagenet64", "digits")
    assert (likelihood.code, "adm models get openai/imagenet64" in likelihood.problem) == (2, True)


@pytest.mark.slow
def test_the_real_shapes_make_an_image_from_one_command(tmp_path, monkeypatch, adm_command):
    """296 million parameters and their classifier, of random weights: what the command line of the issue does."""
    monkeypatch.setenv("ADM_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()

    def small(shapes, seed):
        generator = torch.Generator().manual_seed(seed)
        return {name: (0.02 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}

    made = [
        save(find_preset(name), tmp_path / "models", seed, small)
        for seed, name in enumerate(("openai/imagenet64", "openai/imagenet64-classifier"))
    ]
    words = ["openai/imagenet64", "--labels", "chihuahua", "--guidance", "classifier", "--steps", "2"]
    images, request, result = sampled(adm_command, tmp_path / "s", *words)
    assert result.err.splitlines()[0] == "adm: using openai/imagenet64-classifier, scale 1.0 (the released settings)"
    assert (images.shape, images.dtype) == ((1, 64, 64, 3), np.uint8) and images.std() > 0
    assert request["guidance"] == ["classifier:classifier=openai/imagenet64-classifier,scale=1.0,temperature=1.0"]
    for file in made:
        file.unlink()
