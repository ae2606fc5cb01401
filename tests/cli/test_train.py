"""`adm train` and what follows it: `adm sample` and `adm likelihood` on the same images."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import adm
from adm.data import open_dataset, to_model_range
from adm.diffusion.likelihood import bits_per_dim
from adm.training.trainer import Trainer
from conftest import TINY, write_folder

WORDS = ["train", "diffusion", "--data", "digits", "--steps", "6", "--batch", "4", "--device", "cpu", *TINY]
PROGRAM = "import sys; from adm.cli.main import main; sys.exit(main())"


def checkpoint_bytes(run):
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {path.name: path.read_bytes() for path in newest.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_on_request_it_exits_75_and_the_same_command_ends_as_if_never_stopped(
    number, tmp_path, adm_command, monkeypatch
):
    result = adm_command(*WORDS, "--out", tmp_path / "whole")
    assert (result.code, result.out) == (0, f"{tmp_path / 'whole' / 'checkpoints' / 'step-00000006'}\n")
    with monkeypatch.context() as patch:
        advance = Trainer.advance

        def interrupted(self, batch):
            if self.step == 2:
                signal.raise_signal(number)
            return advance(self, batch)

        patch.setattr(Trainer, "advance", interrupted)
        result = adm_command(*WORDS, "--out", tmp_path / "run")
    assert (result.code, result.last) == (75, "adm: stopped at step 3; run the same command to continue.")
    result = adm_command(*WORDS, "--out", tmp_path / "run")
    assert result.code == 0 and "continuing from step 3" in result.err
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(tmp_path / "whole")


def test_a_signal_to_a_real_process_stops_it_in_order(tmp_path):
    words = [*WORDS, "--steps", "1000000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and err.splitlines()[-1].endswith("run the same command to continue.")
    assert isinstance(adm.load(tmp_path / "run"), adm.DiffusionModel)


def test_a_finished_run_is_said_to_be_so_and_left_alone(runs, tmp_path, adm_command):
    words = [*WORDS, "--out", tmp_path / "run"]
    assert adm_command(*words).code == 0
    before = checkpoint_bytes(tmp_path / "run")
    result = adm_command(*words)
    assert result.code == 0 and "continuing from step 6" in result.err
    assert checkpoint_bytes(tmp_path / "run") == before


def test_a_run_that_diverges_exits_6_names_the_step_and_keeps_the_last_checkpoint(tmp_path, adm_command):
    wild = ["--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=none", "--set", "optimizer.warmup_steps=0"]
    result = adm_command(*WORDS, *wild, "--out", tmp_path / "run")
    assert (result.code, "step 2: not finite" in result.last) == (6, True)


def test_flags_and_set_reach_the_config(tmp_path, adm_command):
    words = [*WORDS, "--steps", "1", "--image-size", "8x12", "--seed", "7", "--set", "data.flip=true"]
    assert adm_command(*words, "--out", tmp_path / "run").code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["network"]["image_size"] == [8, 12] and config["network"]["channel_mult"] == [1, 2]
    assert (config["loop"]["seed"], config["loop"]["steps"], config["data"]["flip"]) == (7, 1, True)


@pytest.mark.parametrize(
    ("size", "classes", "mode"),
    [
        ((8, 8), ("cat", "a dog", "été"), "L"),
        ((16, 8), ("",), "RGB"),
        ((32, 48), ("1", "10"), "RGB"),
        ((6, 10), ("",), "L"),
    ],
)
def test_a_folder_of_any_size_goes_from_images_to_samples_and_bits(
    size, classes, mode, tmp_path, adm_command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data", size, classes, mode)
    named = classes != ("",)
    assert adm_command(*WORDS, "--data", "data", "--steps", 2, "--batch", 3, "--out", "run").code == 0
    words = ["sample", "run", "--out", "s.npz", "--num", 2, "--steps", 2, "--device", "cpu"]
    assert adm_command(*words, *(["--labels", classes[-1]] if named else [])).code == 0
    with np.load("s.npz") as arrays:
        assert arrays["arr_0"].shape == (2, *size, 1 if mode == "L" else 3)
        assert not named or arrays["arr_1"].tolist() == [sorted(classes).index(classes[-1])] * 2
    result = adm_command("likelihood", "run", "data", "--num", 2, "--steps", 2, "--out", "bits.json", "--device", "cpu")
    assert (
        result.code == 0
        and "bits/dim" in result.out
        and np.isfinite(json.loads((tmp_path / "bits.json").read_text())["bits_per_dim"])
    )


def test_likelihood_says_what_bits_per_dim_computes(runs, tmp_path, adm_command):
    words = ["likelihood", "model", "digits:test", "--num", 5, "--steps", 4, "--seed", 9, "--device", "cpu"]
    result = adm_command(*words, "--batch", 2, "--out", tmp_path / "x" / "bits.json")
    assert (result.code, result.err) == (0, "")
    written = json.loads((tmp_path / "x" / "bits.json").read_text())
    model, data = adm.load("model"), open_dataset("digits:test")
    x0 = to_model_range(np.stack([data.image(i) for i in range(5)]))
    label = torch.tensor([data.label(i) for i in range(5)])
    chain = adm.Chain(model.schedule, adm.spaced(1000, 4))
    noise = adm.SeededNoise(range(9, 14))
    bits = bits_per_dim(adm.guide(model, adm.Clip()), chain, x0, noise, adm.Condition(label=label))
    assert written["bits_per_dim"] == pytest.approx(float(bits.total.mean()), rel=1e-5)
    assert written["terms"] == pytest.approx(bits.vb.double().mean(0).tolist(), rel=1e-4, abs=1e-6)
    assert written["standard_error"] == pytest.approx(float(bits.total.std() / 5**0.5), rel=1e-4)
    assert (written["num"], written["steps"], written["seed"], written["data"]) == (5, 4, 9, "digits:test")
    assert result.out == f"{written['bits_per_dim']:.4f} bits/dim +- {written['standard_error']:.4f} (5 images)\n"


def test_labels_of_a_part_of_the_data_go_by_name(runs, tmp_path, adm_command, monkeypatch):
    """A folder with the second class alone has label 0 there; the model knows it as 1."""
    import shutil

    shutil.copytree(runs / "photos" / "ü", tmp_path / "part" / "ü")
    seen = []
    forward = adm.DiffusionModel.forward
    monkeypatch.setattr(
        adm.DiffusionModel, "forward", lambda self, x, t, cond=None: (seen.append(cond), forward(self, x, t, cond))[1]
    )
    words = ["likelihood", "photo-model", tmp_path / "part", "--steps", 1, "--device", "cpu"]
    assert adm_command(*words).code == 0
    assert {label for cond in seen for label in cond.label.tolist()} == {1}
