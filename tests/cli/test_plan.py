"""`adm plan train` and `adm plan sample`: what they print of known networks, and what they refuse."""

from __future__ import annotations

import re

import pytest

from adm.studies import _plan_probe
from adm.studies._plan_probe import Probe


def fake(*_: object, **__: object) -> Probe:
    return Probe(8, 0.5, 5, 10**9, 10**9, 2.0, grid_seconds=1.0, save_seconds=1.0)


@pytest.mark.slow
def test_a_preset_is_planned_without_data_and_without_a_step(adm_command) -> None:
    result = adm_command("plan", "train", "classifier", "--preset", "imagenet64", "--no-probe", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    # adm-spec 1.10: 65.44M, 38.2 GFLOPs with what the released pool computes for nothing.
    assert "classifier: 64x64, 3 channel(s), 1000 classes, 65.44M parameters, batch 1024" in result.out
    assert "65,438,568" in result.out and "38.1 GFLOPs to evaluate an image" in result.out
    assert "weights 262 MB, gradients 262 MB, AdamW 524 MB, EMA 262 MB" in result.out and "speed" not in result.out


def test_flags_and_settings_are_those_of_train(adm_command) -> None:
    words = ["plan", "train", "diffusion", "--data", "digits", "--no-probe", "--device", "cpu", "--batch", 7]
    result = adm_command(*words, "--steps", 9, "--set", "network.num_classes=none", "--set", "ema.others=16.97")
    assert result.code == 0 and "8x8, 1 channel(s), unconditional" in result.out
    assert "batch 7, 9 steps" in result.out and "with 7 image(s) at once" in result.out
    sizes = re.search(r"weights (\S+ \S+), .*EMA (\S+ \S+),", result.out)
    assert sizes is not None and float(sizes[2].split()[0]) == pytest.approx(2 * float(sizes[1].split()[0]), rel=0.02)


def test_what_is_measured_is_said_in_full(adm_command, monkeypatch) -> None:
    monkeypatch.setattr("adm.studies.plan.probe_training", fake)
    result = adm_command("plan", "train", "diffusion", "--data", "digits", "--device", "cpu", "--steps", 1000)
    assert result.code == 0 and "trying 7 steps with 8 image(s)" in result.err
    for said in ("memory measured", "cpu has left", "fits", "disk", "images/s", "time in all", "sample grids 1 s"):
        assert said in result.out, said


def test_a_released_model_need_not_be_here_to_be_planned(adm_command) -> None:
    words = ["plan", "sample", "openai/imagenet64", "--no-probe", "--device", "cpu", "--num", 5]
    result = adm_command(*words, "--guidance", "classifier")
    assert result.code == 0, result.err
    assert "sampling 5 image(s) of openai/imagenet64: 250 steps, 5 at once" in result.out
    assert "295,904,454 + 65,438,568" in result.out and "257 GFLOPs" in result.out


def test_a_run_is_planned_for_sampling_by_its_own_steps(runs, adm_command, monkeypatch) -> None:
    monkeypatch.setattr("adm.studies._plan_sampling.probe_sampling", fake)
    result = adm_command("plan", "sample", "model", "--num", 20, "--steps", 10, "--sampler", "ddim", "--device", "cpu")
    assert result.code == 0, result.err
    # One block of 20 images and 10 steps of half a second, after two of starting.
    assert "10 steps, 20 at once" in result.out and "time in all       7 s" in result.out


def test_steps_of_a_real_run_are_measured(runs) -> None:
    import torch

    words = {"model": "model", "steps": 4, "sampler": "ddpm", "guidance": ["classifier:classifier=guide,scale=2"]}
    probe = _plan_probe.probe_sampling(words, 2, torch.device("cpu"), 0.5)
    assert (probe.images, probe.num_steps >= 1) == (2, True) and 0 < probe.step_seconds < 60


def test_help_lists_the_presets(adm_command) -> None:
    text = adm_command("plan", "train", "--help").out
    for name in ("digits8", "grey28", "cifar32", "imagenet64", "imagenet128", "imagenet256", "imagenet512"):
        dropout = "" if name.startswith("imagenet") else "; label dropout 0.1"
        assert re.search(rf"^  {name} .*\(diffusion, classifier{dropout}\)$", text, re.MULTILINE), name
    assert re.search(r"^  imagenet64-to-256 .*\(upsampler\)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "diffuser", "--preset", "cifar32"], "did you mean 'diffusion'?"),
        (["train", "diffusion"], "needs --data PATH, or --preset NAME"),
        (["train", "diffusion", "--preset", "cifar"], "there is no preset 'cifar'"),
        (["train", "upsampler", "--preset", "cifar32"], "is for diffusion and classifier, not for upsampler"),
        (["train", "diffusion", "--data", "digits", "--preset", "cifar32"], "images of 8x8, but preset cifar32"),
        (["train", "diffusion", "--preset", "cifar32", "--image-size", "64"], "preset cifar32 is for 32x32"),
        (["train", "diffusion", "--preset", "cifar32", "--from", "run"], "needs --data PATH"),
        (["sample", "openai/imagenet64-classifier"], "is a classifier"),
        (["sample", "openai/imagenet64", "--num", "0"], "plan at least 1 image"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(words, said, adm_command) -> None:
    result = adm_command("plan", *words, "--device", "cpu", "--no-probe")
    assert result.code == 2 and said in result.problem
