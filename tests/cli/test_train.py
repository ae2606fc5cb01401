"""`adm train` and what follows it: `adm sample` and `adm likelihood` on the same images."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import adm
from adm.cli._progress import Bar
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
    assert result.code == 0 and "continuing" not in result.err
    assert result.err.splitlines()[-1] == "done: all 6 steps are trained; --steps above 6 trains on"
    assert checkpoint_bytes(tmp_path / "run") == before
    fewer = adm_command(*words, "--steps", 5)
    assert fewer.code == 0 and "done: 6 steps are trained, of 5; " in fewer.err and fewer.out == result.out
    (grid,) = (tmp_path / "run" / "samples").glob("step-00000006.png")
    picture = grid.read_bytes()
    grid.unlink()
    mended = adm_command(*words)
    assert mended.code == 0 and "not there yet, and made now: the sample grid of step 6\n" in mended.err
    assert grid.read_bytes() == picture
    further = adm_command(*words, "--steps", 7)
    assert further.code == 0 and "continuing from step 6" in further.err and further.out.endswith("step-00000007\n")


def test_a_run_that_diverges_exits_6_names_the_step_and_keeps_the_last_checkpoint(tmp_path, adm_command):
    wild = ["--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=none", "--set", "optimizer.warmup_steps=0"]
    result = adm_command(*WORDS, *wild, "--out", tmp_path / "run")
    assert (result.code, "step 2: not finite" in result.last) == (6, True)


def test_nothing_said_again_a_run_continues_as_it_is(runs, tmp_path, adm_command):
    whole = adm_command(*WORDS, "--out", tmp_path / "whole")
    first = adm_command(*WORDS, "--out", tmp_path / "run", "--steps", 3)
    assert (whole.code, first.code) == (0, 0)
    result = adm_command(
        "train", "diffusion", "--data", "digits", "--out", tmp_path / "run", "--steps", 6, "--device", "cpu"
    )
    assert result.code == 0 and "continuing from step 3\nloop.steps: 3 -> 6\n" in result.err
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(tmp_path / "whole")


def test_from_begins_with_the_weights_and_the_same_command_continues_without_them(runs, tmp_path, adm_command):
    source = shutil.copytree(runs / "photo-model", tmp_path / "source")
    data = write_folder(tmp_path / "data", (20, 30), ("ü", "z"), "L")
    words = ["train", "diffusion", "--data", data, "--from", source, "--batch", 2, "--device", "cpu"]
    words += ["--set", "loop.save_every=3"]
    result = adm_command(*words, "--out", tmp_path / "whole", "--steps", 6)
    assert result.code == 0 and "tensors loaded, label table: 1 classes kept by name, 1 new: z\n" in result.err
    assert "8x12, 3 channel(s), 2 classes" in result.err
    assert adm_command(*words, "--out", tmp_path / "run", "--steps", 3).code == 0
    shutil.rmtree(source)
    result = adm_command(*words, "--out", tmp_path / "run", "--steps", 6)
    assert result.code == 0 and "continuing from step 3" in result.err
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(tmp_path / "whole")


def test_a_classifier_is_continued_likewise(runs, tmp_path, adm_command):
    words = [
        "train",
        "classifier",
        "--data",
        "photos",
        "--from",
        "guide",
        "--steps",
        1,
        "--batch",
        2,
        "--device",
        "cpu",
    ]
    result = adm_command(*words, "--out", tmp_path / "run")
    assert result.code == 0 and "last layer new (2 classes; the source had 10)" in result.err
    assert adm.load(tmp_path / "run").class_names == ("a b", "ü")


@pytest.mark.parametrize("job", ["diffusion", "classifier"])
def test_help_lists_every_setting_with_its_default_and_says_none_of_none(job, adm_command):
    text = " ".join(adm_command("train", job, "--help").out.split())
    listed = re.findall(r"(?<= )([a-z_.]+)=(\S+|\(by the data\)):", text)
    names = {name for name, _ in listed}
    assert {"optimizer.lr", "network.model_channels", "loop.precision", "ema.gamma", "data.flip"} <= names
    assert ("loss" in names) == (job == "diffusion") and ("network.pool" in names) == (job == "classifier")
    assert "job" not in names and "default: None" not in text
    assert "loop.save_every=1000: steps between checkpoints" in text


def test_the_progress_of_a_sample_grid_is_shown(tmp_path, adm_command, monkeypatch):
    monkeypatch.setattr("adm.cli._progress.LINE_EVERY", 0.0)
    monkeypatch.setattr("adm.cli._progress.WORTH_A_LINE", 0.0)
    result = adm_command(*WORDS, "--steps", 2, "--out", tmp_path / "run")
    assert result.code == 0
    shown = [int(found) for found in re.findall(r"^sample grid (\d+)/36", result.err, re.MULTILINE)]
    assert shown == sorted(shown) and shown[-1] == 36 and len(shown) > 10


def test_a_terminal_shows_other_work_beside_the_bar_while_it_lasts():
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as progress:
        bar = Bar("training", 10, progress)
        for done in (1, 2):
            bar.aside("sample grid", done, 2)
            titles = [task.description for task in progress.tasks]
            assert titles == (["training", "sample grid"] if done < 2 else ["training"])


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
        pytest.param((32, 48), ("1", "10"), "RGB", marks=pytest.mark.slow),
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
    chosen = [0, 119, 239, 359, 479]  # 599 images, spread evenly
    x0 = to_model_range(np.stack([data.image(i) for i in chosen]))
    label = torch.tensor([data.label(i) for i in chosen])
    chain = adm.Chain(model.schedule, adm.spaced(1000, 4))
    noise = adm.SeededNoise([9 + i for i in chosen])
    bits = bits_per_dim(adm.guide(model, adm.Clip()), chain, x0, noise, adm.Condition(label=label))
    assert written["bits_per_dim"] == pytest.approx(float(bits.total.mean()), rel=1e-5)
    assert written["terms"] == pytest.approx(bits.vb.double().mean(0).tolist(), rel=1e-4, abs=1e-6)
    assert written["standard_error"] == pytest.approx(float(bits.total.std() / 5**0.5), rel=1e-4)
    assert (written["num"], written["steps"], written["seed"], written["data"]) == (5, 4, 9, "digits:test")
    shown = f"{written['bits_per_dim']:.4f} bits/dim +- {written['standard_error']:.4f} (5 of 599 images, spread evenly"
    assert result.out.startswith(shown) and "4 of 1000 timesteps" in result.out


def test_labels_of_a_part_of_the_data_go_by_name(runs, tmp_path, adm_command, monkeypatch):
    """A folder with the second class alone has label 0 there; the model knows it as 1."""
    shutil.copytree(runs / "photos" / "ü", tmp_path / "part" / "ü")
    seen = []
    forward = adm.DiffusionModel.forward
    monkeypatch.setattr(
        adm.DiffusionModel, "forward", lambda self, x, t, cond=None: (seen.append(cond), forward(self, x, t, cond))[1]
    )
    words = ["likelihood", "photo-model", tmp_path / "part", "--steps", 1, "--device", "cpu"]
    assert adm_command(*words).code == 0
    assert {label for cond in seen for label in cond.label.tolist()} == {1}
