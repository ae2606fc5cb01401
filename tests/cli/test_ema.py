"""adm ema: from the snapshots of a run to a model that the other commands take."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from conftest import TINY
from tiny_runs import run as train
from tiny_runs import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "stripes"
    train(tiny("diffusion", "loop.steps=8", "ema.snapshot_every=1", "ema.others=16.97"), out)
    return out


def test_an_average_of_another_width_is_made_shown_and_sampled(run, tmp_path, adm_command) -> None:
    result = adm_command("ema", run, "--std", 0.08, "--out", tmp_path / "made")
    assert (result.code, result.err) == (0, "")
    gamma = np.roots([1, 7, 16 - 0.08**-2, 12 - 0.08**-2]).real.max()  # EDM2 Eq. 126
    there, fit, place = result.out.splitlines()
    assert there == "8 snapshots: steps 1, 2, ..., 7, 8; of width 0.050 (gamma 16.97) and 0.100 (gamma 6.94)"
    assert fit.startswith(f"width 0.08 (gamma {gamma:.4g}) at step 8: of 16 averages, its profile to within ")
    assert float(fit.split()[-2]) < 2
    assert place == str(tmp_path / "made")
    stored = checkpoint_format.load(tmp_path / "made")
    assert set(stored.tensors) == {"ema"} and set(stored.documents) == {"model", "provenance"}
    loaded, before = (adm.load(place).network.state_dict() for place in (tmp_path / "made", run))
    assert any(not torch.equal(value, before[name]) for name, value in loaded.items())
    sampled = adm_command("sample", tmp_path / "made", "--out", tmp_path / "x", "--num", 2, "--steps", 2)
    assert sampled.code == 0 and (tmp_path / "x" / "request.json").exists()


def test_a_stored_width_of_an_earlier_step_is_the_stored_average(run, tmp_path, adm_command) -> None:
    result = adm_command("ema", run, "--std", 0.1, "--step", 4, "--out", tmp_path / "made")
    assert result.code == 0 and "4 snapshots: steps 1, 2, 3, 4; " in result.out
    stored = checkpoint_format.load(run / "snapshots" / "step-00000004").tensors["ema"]
    made = checkpoint_format.load(tmp_path / "made").tensors["ema"]
    assert all(torch.allclose(made[name], value, rtol=1e-3, atol=1e-5) for name, value in stored.items())


def test_a_width_that_the_snapshots_cannot_make_well_is_made_with_a_note(run, tmp_path, adm_command) -> None:
    result = adm_command("ema", run, "--std", 0.01, "--step", 3, "--out", tmp_path / "made")
    assert result.code == 0 and (tmp_path / "made" / "ema.safetensors").exists()
    assert result.err.startswith(
        "adm: note: an average of width 0.01 is not well made of these. Train with more snapshots"
    )


def test_a_further_average_is_sampled_by_its_name(run, tmp_path, adm_command) -> None:
    words = ("--num", 2, "--steps", 2, "--seed", 3)
    for weights in ("ema", "ema-1"):
        result = adm_command("sample", run, "--out", tmp_path / weights, *words, "--set", f"weights={weights}")
        assert result.code == 0, result.err
    assert '"weights": "ema-1"' in (tmp_path / "ema-1" / "request.json").read_text()
    result = adm_command("sample", run, "--out", tmp_path / "no", *words, "--set", "weights=ema-2")
    assert result.code == 2 and "has no weights 'ema-2'. Choose ema or ema-1 or model" in result.problem
    result = adm_command("sample", run, "--out", tmp_path / "no", *words, "--set", "weights=best")
    assert result.code == 2 and "weights 'best': choose ema" in result.problem
    assert not (tmp_path / "no").exists()


def test_a_run_without_snapshots_says_how_to_get_them(run, tmp_path, adm_command) -> None:
    bare = shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("snapshots"))
    result = adm_command("ema", bare, "--std", 0.08, "--out", tmp_path / "made")
    assert result.code == 2 and "bare: this run stored no snapshots" in result.problem
    assert "--set ema.snapshot_every=N" in result.problem and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--std", "0.5"], 2, "std is 0.5: must be above 0 and at most 0.2887, the plain mean of the run."),
        (["--std", "nan"], 2, "std is nan: must be above 0"),
        (["--std", "wide"], 2, "ema: Error parsing --std"),
        (
            ["--std", "0.08", "--step", "100"],
            2,
            "no snapshot of step 100. Choose one of the 8 that are there, such as 6, 7, 8.",
        ),
        ([], 2, "ema needs --std"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(words, code, said, run, tmp_path, adm_command) -> None:
    result = adm_command("ema", run, "--out", tmp_path / "made", *words)
    assert result.code == code and said in result.problem
    assert not (tmp_path / "made").exists()


def test_an_output_that_exists_is_left_alone(run, tmp_path, adm_command) -> None:
    (tmp_path / "made").mkdir()
    result = adm_command("ema", run, "--std", 0.08, "--out", tmp_path / "made")
    assert result.code == 2 and "made exists. Choose another --out, or remove it." in result.problem
    assert not list((tmp_path / "made").iterdir())


def test_a_damaged_snapshot_is_named(run, tmp_path, adm_command) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    with open(copy / "snapshots" / "step-00000003" / "ema-1.safetensors", "r+b") as file:
        file.truncate(100)
    result = adm_command("ema", copy, "--std", 0.08, "--out", tmp_path / "made")
    assert result.code == 4 and "step-00000003 is damaged (ema-1.safetensors:" in result.last
    assert "Remove it: the others do without." in result.last and not (tmp_path / "made").exists()


def test_snapshots_of_a_constant_average_are_refused_before_a_run_starts(tmp_path, adm_command) -> None:
    words = ["--set", "ema.kind=constant", "--set", "ema.snapshot_every=5"]
    result = adm_command("train", "diffusion", "--data", "digits", "--out", tmp_path / "run", *TINY, *words)
    assert result.code == 2 and "snapshot_every is for kind=power" in result.problem
    assert not (tmp_path / "run").exists()
