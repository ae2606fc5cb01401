"""Images that are not finite are never drawn, whoever asks for them: a line says which, and under which guidance."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adm
from adm.checkpoints.load import save_model
from adm.data import to_uint8, write_npz
from adm.nn import UNet, UNetConfig
from adm.runtime.errors import DivergedError
from adm.studies import generate as generate_file
from adm.studies.experiments.fit_timesteps import FitTimesteps
from adm.studies.generate import batches
from adm.studies.request import prepare
from adm.studies.upsample import upsample

STEPS = ["--steps", "2", "--device", "cpu"]
LOSS = """
import torch

BAD, VALUE = [3], float("nan")


def loss(x0, cond):
    is_bad = torch.isin(cond.label, torch.tensor(BAD))
    return x0.flatten(1).sum(1) * torch.where(is_bad, VALUE, 0.5)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's file with a loss that is NaN for label 3 alone."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "lossy_lab.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    import lossy_lab

    yield lossy_lab
    del sys.modules["lossy_lab"]


def diffusion(num_classes=10, **more):
    config = {"image_size": 8, "in_channels": 1, "out_channels": 2, "model_channels": 8, "channel_mult": (1,)}
    network = UNet(
        UNetConfig(num_classes=num_classes, num_res_blocks=1, attention_resolutions=(), num_heads=1, **config, **more)
    )
    model = adm.DiffusionModel(network, adm.cosine(100)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def model():
    return diffusion()


class Jump:
    """A sampler that ends at a number, whatever the network says."""

    def __init__(self, to):
        self.to = to

    def init(self):
        return None

    def step(self, denoise, x_t, link, noise, state):
        denoise(x_t, link.t)
        return torch.full_like(x_t, self.to), None


def refused(call):
    with pytest.raises(DivergedError) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and error.value.exit_code == 6
    return str(error.value)


def test_images_seeds_and_guidance_are_named(model, module):
    guidance = adm.LossGuidance(module.loss)
    said = refused(lambda: adm.generate(model, [1, 3, 2], steps=2, seed=40, guidance=[guidance]))
    assert said.startswith("image 1 (seed 41) is not finite, made under the guidance LossGuidance, and not drawn: ")
    assert "lower its scale, or leave it out" in said
    said = refused(lambda: adm.generate(model, [1, 3, 3, 2], steps=2, guidance="loss:function=lossy_lab.loss,scale=2"))
    assert said.startswith("images 1 to 2 (seeds 1 to 2) are not finite, made under the guidance loss:function=lossy_")
    said = refused(lambda: adm.generate(model, [3, 1, 3], steps=2, seed=7, guidance=["clip:limit=2", guidance]))
    assert said.startswith("2 images, the first of them 0 (seed 7), are not finite, made under the guidance clip:limit")
    assert "clip:limit=2, LossGuidance" in said
    assert adm.generate(model, [1, 2], steps=2, guidance=[guidance]).shape == (2, 8, 8, 1)


def test_without_guidance_it_is_the_network():
    broken = diffusion()
    with torch.no_grad():
        next(broken.network.parameters()).fill_(torch.nan)
    said = refused(lambda: adm.generate(broken, [1], steps=2))
    assert said.startswith(
        "image 0 (seed 0) is not finite, made by the network itself, without guidance, and not drawn"
    )
    assert "precision" not in said


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_infinite_is_not_finite_and_large_is(model, value):
    refused(lambda: adm.generate(model, [1], steps=2, sampler=Jump(value)))
    assert (adm.generate(model, [1], steps=2, sampler=Jump(1e30)) == 255).all()


def test_half_precision_is_the_first_suspect(module):
    model = diffusion()
    model.precision = torch.bfloat16
    said = refused(lambda: adm.generate(model, [3], steps=2, guidance=adm.LossGuidance(module.loss)))
    assert "not drawn: set precision=float32, or lower its scale" in said


def test_with_the_check_off_they_would_be_drawn_black(model, module, monkeypatch):
    monkeypatch.setattr(generate_file, "_refuse_not_finite", lambda *_: None)
    assert (adm.generate(model, [3], steps=2, guidance=adm.LossGuidance(module.loss)) == 0).all()


def test_blocks_before_are_given_and_an_image_that_fills_up_the_last_block_is_nobodys(model, module):
    request = prepare(model, 2, "ddim", adm.LossGuidance(module.loss))
    made = batches(request, [0, 1, 2, 3], 0, 2)
    assert next(made).index == 0
    refused(lambda: next(made))

    def only_first(x0):  # an image that is thrown away may be anything
        return x0.flatten(1).sum(1) * torch.tensor([0.5, *[torch.nan] * (len(x0) - 1)])

    request = prepare(model, 2, "ddim", adm.LossGuidance(only_first))
    assert [len(batch.images) for batch in batches(request, [1], 0, 1)] == [1]
    ends = batches(request, [0, 1, 2], 0, 2, wanted=lambda k: k == 2)
    assert [len(batch.images) for batch in ends] == [1]


def test_adm_sample_exits_6_keeps_what_was_finished_and_goes_on_when_it_is_mended(
    runs, module, tmp_path, adm_command, monkeypatch
):
    words = ["sample", "model", "--labels", "0,1,2,3,4,5", "--set", "batch_size=2", *STEPS]
    words += ["--guidance", "loss:function=lossy_lab.loss", "--out"]
    result = adm_command(*words, tmp_path / "s")
    assert result.code == 6
    assert result.problem.startswith("adm: image 3 (seed 3) is not finite, made under the guidance loss:function=lossy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").glob("*.png")}
    assert sorted(before) == ["000000.png", "000001.png"]
    monkeypatch.setattr(module, "BAD", [])
    assert adm_command(*words, tmp_path / "s").code == adm_command(*words, tmp_path / "whole").code == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()
        assert before.get(path.name, path.read_bytes()) == path.read_bytes()


def test_an_npz_with_such_images_is_not_written(runs, module, tmp_path, adm_command):
    words = ["sample", "model", "--labels", "0,3", *STEPS, "--set", "precision=bfloat16"]
    result = adm_command(*words, "--guidance", "loss:function=lossy_lab.loss", "--out", tmp_path / "x.npz")
    assert (result.code, [path.name for path in tmp_path.iterdir()]) == (6, ["lib"])
    assert "set precision=float32" in result.problem


def test_upsampling_too(module, tmp_path, adm_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = diffusion(None, low_res_channels=1)
    save_model(model, Path("up"), {"flags": "--large_size 8 --small_size 4"})
    small = np.full((3, 4, 4, 1), 99, np.uint8)
    write_npz(Path("small.npz"), small, [-1] * 3)
    monkeypatch.setattr(module, "loss", lambda x0: x0.flatten(1).sum(1) * module.VALUE)
    guidance = ["--guidance", "loss:function=lossy_lab.loss"]
    result = adm_command("upsample", "up", "small.npz", "--out", "s", *guidance, *STEPS)
    assert result.code == 6 and result.problem.startswith("adm: images 0 to 2 (seeds 0 to 2) are not finite")
    assert [path.name for path in Path("s").iterdir()] == ["request.json"]
    assert adm_command("upsample", "up", "small.npz", "--out", "s", *STEPS).code == 0  # nothing to clear away
    assert np.asarray(Image.open("s/000000.png")).shape == (8, 8)
    refused(lambda: upsample(model, small, steps=2, guidance="loss:function=lossy_lab.loss"))


def test_what_is_drawn_is_what_was_sampled(model):
    """The check changes no byte."""
    x = adm.sample(
        adm.guide(model, adm.Clip()),
        adm.Chain(model.schedule, adm.strided(100, 2)),
        adm.DDIM(),
        adm.SeededNoise([5, 6]),
        (2, 1, 8, 8),
        adm.Condition(label=[1, 2]),
    )
    np.testing.assert_array_equal(adm.generate(model, [1, 2], steps=2, seed=5), to_uint8(x).numpy())


def test_no_grid_is_fitted_to_such_images(module, tmp_path):
    save_model(diffusion(), tmp_path / "model")
    spec = "loss:function=lossy_lab.loss"
    study = FitTimesteps(str(tmp_path / "model"), num=4, batch_size=2, fine=4, links=2, guidance=spec)
    said = refused(lambda: study.run(tmp_path / "fit"))
    assert said.startswith("the teacher's steps from seed 2 on are not finite under the guidance loss:function=lossy_")
    assert len(list((tmp_path / "fit" / "trials").iterdir())) == 1  # of the images before; and no grid
    assert not (tmp_path / "fit" / "grid.json").exists()
