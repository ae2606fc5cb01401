"""`adm demo` at a reduced size: everything is there, nothing is done twice, and a stop costs nothing."""

import json
import signal

import numpy as np
import pytest

from adm.metrics import CleanClassifier
from adm.studies import demo, generate
from adm.studies.demo import DemoConfig
from adm.training import loop
from adm.training.trainer import Trainer

SMALL = ["diffusion_steps=4", "classifier_steps=3", "judge_steps=3", "scales=0,2", "num_per_class=1", "sample_steps=2"]
SMALL += ["likelihood_num=4", "likelihood_steps=2", "batch_size=8"]
WORDS = ["demo", *(word for setting in SMALL for word in ("--set", setting)), "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed demo."""
    from adm.cli.main import main

    out = tmp_path_factory.mktemp("demo") / "whole"
    assert main([*WORDS, str(out)]) == 0
    return out


@pytest.fixture
def bare(monkeypatch):
    """Without the pictures, which are most of the time and none of the results here."""
    monkeypatch.setattr(loop, "preview", lambda *_, **__: np.zeros((36, 8, 8, 1), np.uint8))
    monkeypatch.setattr(demo, "write_demo_report", lambda out, *_: (out / "report.html", ""))


def contents(out):
    """The results that are numbers and images; pictures of the report are made anew each time."""
    names = [
        "measurements.json",
        *(str(p.relative_to(out)) for p in out.rglob("*.npz")),
        *(p.name for p in out.glob("likelihood*")),
    ]
    return {name: (out / name).read_bytes() for name in sorted(names)}


def test_everything_is_written(whole):
    assert (whole / "report.html").stat().st_size > 10_000
    assert len(list((whole / "pictures").glob("*.png"))) >= 4
    measured = json.loads((whole / "measurements.json").read_text())
    assert [(m["sampler"], m["scale"]) for m in measured["sets"]] == [
        (s, x) for s in ("ddpm", "ddim") for x in (0.0, 2.0)
    ]
    for name in ("label_accuracy", "precision", "recall"):
        assert all(0 <= m[name] <= 1 for m in measured["sets"])
    assert any(key.startswith("fd_") for key in measured["sets"][0])
    assert not any("fid" in key.lower() for key in measured["sets"][0])
    assert measured["bits_per_dim"]["num"] == 4 and measured["real"]["held_out"]
    assert measured["settings"]["scales"] == [0.0, 2.0]
    assert len(list((whole / "sets").glob("*.npz"))) == 4


def test_the_report_stands_alone(whole):
    html = (whole / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html
    for outside in ('src="http', 'href="http', "<script", "@import"):
        assert outside not in html


def test_running_it_again_does_nothing_again_and_says_the_same(whole, adm_command, monkeypatch):
    before = contents(whole)

    def refuse(*_, **__):
        raise AssertionError("was done again")

    monkeypatch.setattr(Trainer, "advance", refuse)
    monkeypatch.setattr(generate, "sample", refuse)
    monkeypatch.setattr(demo, "measure_likelihood", refuse)
    monkeypatch.setattr(CleanClassifier, "fit", refuse)
    result = adm_command(*WORDS, whole)
    assert result.code == 0, result.err
    assert "report: " in result.out and "real" in result.out
    assert contents(whole) == before


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("training the diffusion model", marks=pytest.mark.slow),
        pytest.param("training the classifier", marks=pytest.mark.slow),
        "sampling",
    ],
)
def test_stopped_at_any_moment_it_exits_75_and_goes_on_to_the_same_end(
    moment, bare, whole, tmp_path, adm_command, monkeypatch
):
    calls = {"advance": 0, "sample": 0}
    at = {
        "training the diffusion model": ("advance", 2),
        "training the classifier": ("advance", 6),
        "sampling": ("sample", 2),
    }
    advance, sample = Trainer.advance, generate.sample

    def interrupt(name):
        calls[name] += 1
        if (name, calls[name]) == at[moment]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda self, batch: (interrupt("advance"), advance(self, batch))[1])
        patch.setattr(generate, "sample", lambda *a, **k: (interrupt("sample"), sample(*a, **k))[1])
        result = adm_command(*WORDS, tmp_path / "demo")
    assert (result.code, "run the same command to continue" in result.last) == (75, True)
    assert not (tmp_path / "demo" / "measurements.json").exists()
    assert adm_command(*WORDS, tmp_path / "demo").code == 0
    assert contents(tmp_path / "demo") == contents(whole)


def test_more_scales_reuse_what_was_trained_and_sampled(bare, whole, tmp_path, adm_command, monkeypatch):
    import shutil

    out = shutil.copytree(whole, tmp_path / "demo")
    made = []
    sample = generate.sample
    monkeypatch.setattr(Trainer, "advance", None)
    monkeypatch.setattr(generate, "sample", lambda *a, **k: (made.append(a), sample(*a, **k))[1])
    assert adm_command(*WORDS, out, "--set", "scales=0,2,5").code == 0
    assert len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"scales": (0.0,)},
        {"scales": (1.0, 2.0)},
        *({name: 0} for name in ("num_per_class", "judge_steps", "batch_size")),
    ],
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DemoConfig(**change)
