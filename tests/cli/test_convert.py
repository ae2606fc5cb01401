"""adm convert: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import adm
from adm.cli.main import main
from golden_weights import DIFFUSION, recorded_case

PT = str(DIFFUSION / "unet_cond_learned_legacy.pt")
FLAGS = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --num_head_channels 32 --attention_resolutions 8,4 "
    "--channel_mult 1,1,2 --class_cond True --use_scale_shift_norm True --resblock_updown True --learn_sigma True"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))


def test_there_and_back_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", PT, "models/a", "--flags", FLAGS]) == 0
    assert capsys.readouterr() == ("models/a\n", "")
    assert main(["convert", "models/a", "b.pt", "--to", "openai"]) == 0
    path, _, words = capsys.readouterr().out.splitlines()
    assert path == "b.pt" and words.startswith("--image_size 16 --num_channels 32")
    assert main(["convert", "b.pt", "c", "--flags", words]) == 0
    ours, again = (adm.load(name).network.state_dict() for name in ("models/a", "c"))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_keywords_are_printed_where_no_flags_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = torch.load(PT, weights_only=True)
    weights["label_emb.weight"] = weights["label_emb.weight"][:5].clone()
    torch.save(weights, "own.pt")
    assert main(["convert", "own.pt", "a", "--flags", FLAGS]) == 0
    assert main(["convert", "a", "b.pt", "--to", "openai"]) == 0
    words = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(words)["num_classes"] == 5
    Path("words.json").write_text(words)
    assert main(["convert", "b.pt", "c", "--flags", "words.json"]) == 0
    assert adm.load("c").num_classes == 5


def test_what_came_along_from_the_original_trainer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs").mkdir()
    for name in ("model000100.pt", "ema_0.999_000100.pt"):
        Path("logs", name).write_bytes(Path(PT).read_bytes())
    assert main(["convert", "logs", "m", "--flags", FLAGS]) == 0
    assert capsys.readouterr() == ("m\nstep 100: averaged weights (rate 0.999), weights of the step\n", "")
    Path("logs", "model000100.pt").unlink()
    assert main(["convert", "logs", "n", "--flags", FLAGS]) == 0
    assert capsys.readouterr().out == "n\nstep 100: averaged weights (rate 0.999)\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([PT, "m"], 2, "which is no preset. Say what its shapes do not: adm convert"),
        ([PT, "m", "--like", "openai/imagenet46"], 2, "did you mean 'openai/imagenet64'"),
        ([PT, "m", "--like", "openai/imagenet64"], 4, "is not like openai/imagenet64: "),
        ([PT, "m", "--flags", f"{FLAGS} --num_channels 64"], 4, "num_channels is 64: 32 fits"),
        ([PT, "m", "--flags", "--num_chanels 64"], 2, "did you mean 'num_channels'"),
        (["openai/imagenet64", "m"], 2, "adm models get openai/imagenet64"),
        (["absent.pt", "m", "--flags", FLAGS], 3, "absent.pt: no such file"),
        (["page.pt", "m", "--flags", FLAGS], 4, "page.pt: is a web page"),
        ([PT, "m", "--flags", FLAGS, "--weights", "model"], 2, "Leave it out"),
    ],
)
def test_every_refusal_is_one_whole_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.pt").write_text("<html>404</html>")
    assert main(["convert", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("adm: ") and err.count("\n") == 1
    assert said in err and "…" not in err.replace(PT, "")
    assert not Path("m").exists()


def test_a_bare_file_that_says_too_little_is_refused_by_sample_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", PT, "--out", "s"]) == 2
    err = capsys.readouterr().err
    assert "Say what its shapes do not: adm convert" in err and err.count("\n") == 1
    Path("x.pt").write_bytes(Path(PT).read_bytes()[:1000])
    assert main(["sample", "x.pt", "--out", "s"]) == 4
    assert recorded_case("unet_cond_learned_legacy")[0]["image_size"] == 16
