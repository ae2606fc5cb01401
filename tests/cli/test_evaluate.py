"""adm evaluate: five lines, a JSON file, and one line for each thing that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from adm.cli.main import main
from adm.metrics import _evaluator
from metrics_fakes import Projection

PIXELS = ["--only", "--metrics", "frechet:extractor=pixels"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADM_INCEPTION_WEIGHTS", raising=False)
    rng = np.random.default_rng(0)
    for name in ("ref.npz", "samples.npz"):
        np.savez(name, rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8))
    return tmp_path


def test_the_five_lines_and_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_evaluator, "inception_extractor", lambda *options: Projection())
    assert main(["evaluate", "ref.npz", "samples.npz", "--out", "scores.json"]) == 0
    out, err = capsys.readouterr()
    number = r"\d+\.\d+(e-?\d+)?"
    names = ["Inception Score", "FID", "sFID", "Precision", "Recall"]
    assert re.fullmatch("".join(f"{name}: {number}\n" for name in names), out)
    written = json.loads(Path("scores.json").read_text())
    assert set(written) == {"scores", "conditions", "notes"}
    assert [f"{written['scores'][k]}" for k in ("inception_score", "fid")] == re.findall(r": (\S+)", out)[:2]
    assert "adm: note: 40 samples" in err and written["notes"]
    assert main(["evaluate", "ref.npz", "samples.npz", "--out", "scores.json"]) == 2
    assert "scores.json exists" in capsys.readouterr().err


def test_without_the_five_no_weights_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "ref.npz", "ref.npz", *PIXELS]) == 0
    name, value = capsys.readouterr().out.split(":")
    assert name == "fd_pixels" and abs(float(value)) < 1e-3


def test_nearest_writes_a_picture_beside_the_numbers() -> None:
    assert main(["evaluate", "ref.npz", "samples.npz", "--only", "--metrics", "nearest", "--out", "s.json"]) == 0
    assert Path("s.nearest.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "needs REF and SAMPLES"),
        (["ref.npz"], 2, "needs REF and SAMPLES"),
        (["ref.npz", "samples.npz"], 2, "adm models get inception"),
        (["ref.npz", "samples.npz", "--weights", "no.pth"], 3, "no.pth: no such file"),
        (["ref.npz", "samples.npz", "--weights", "ref.npz"], 4, "--allow-other-weights"),
        (["ref.npz", "samples.npz", "--weights", "ref.npz", "--allow-other-weights"], 4, "ref.npz"),
        (["ref.npz", "samples.npz", "--only"], 2, "leaves no metric"),
        (["ref.npz", "no.npz", *PIXELS], 3, "no.npz: no such file"),
        (["no.npz", "ref.npz", *PIXELS], 3, "no.npz: no such file"),
        (["ref.npz", "samples.npz", "--num", "41", *PIXELS], 3, "samples.npz holds 40 images, 41 were asked for"),
        (["ref.npz", "samples.npz", "--batch", "0", *PIXELS], 2, "batch"),
        (["ref.npz", "samples.npz", "--only", "--metrics", "fidd"], 2, "did you mean 'fid'"),
        (["ref.npz", "samples.npz", "--out", "no/such/scores.json", *PIXELS], 0, ""),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *words]) == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err
    assert code == 0 or err.count("\n") == 1


def test_an_environment_of_many_processes_that_is_incomplete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "ref.npz", "samples.npz", *PIXELS]) == 2
    assert "torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_the_selftest_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--selftest", "--device", "cpu"]) == 0
    assert "6 of 6 checks passed" in capsys.readouterr().out
