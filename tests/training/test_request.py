"""What is not said follows the run that is there; what is said is applied or refused by name."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adm.checkpoints import format as checkpoint_format
from adm.data.digits import Digits
from adm.runtime import files
from adm.runtime.config import difference, meanings, override, settings
from adm.runtime.errors import AdmError, DamagedError, UsageError
from adm.runtime.signals import SIGNALS
from adm.training.config import TrainConfig
from adm.training.defaults import default_config, typical_config, usual_settings
from adm.training.request import Request, plan
from adm.training.resume import MAY_CHANGE, read_config
from adm.training.run import train
from conftest import write_folder
from tiny_runs import contents

UNLIKE_DEFAULTS = (
    "network.model_channels=8", "network.num_head_channels=8", "network.dropout=0.2", "loop.batch_size=6",
    "loop.seed=11", "loop.save_every=1", "schedule.num_timesteps=20", "loss=simple", "ema.gamma=3",
    "optimizer.betas=0.5,0.9", "network.num_classes=none",
)  # fmt: skip
"""Settings that somebody gave once."""


@pytest.fixture(scope="module")
def _two(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("request") / "run"
    planned = plan(Request("diffusion", "digits", out, steps=2, settings=UNLIKE_DEFAULTS))
    train(planned.config, out, dataset=planned.dataset)
    return out


@pytest.fixture
def two(_two: Path, tmp_path: Path) -> Path:
    """A run of two steps with settings unlike the defaults."""
    return shutil.copytree(_two, tmp_path / "run")


def asked(out: Path, **fields: Any) -> TrainConfig:
    return plan(Request(**({"job": "diffusion", "data": "digits", "out": out} | fields))).config


def test_nothing_said_continues_the_run_as_it_is(two: Path) -> None:
    assert asked(two) == read_config(two)


def test_without_saying_it_again_a_run_ends_as_if_it_had_been_said(two: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    planned = plan(Request("diffusion", "digits", said, steps=4, settings=UNLIKE_DEFAULTS))
    train(planned.config, said, dataset=planned.dataset)
    planned = plan(Request("diffusion", "digits", two, steps=4))
    train(planned.config, two, dataset=planned.dataset)
    assert contents(two / "checkpoints" / "step-00000004") == contents(said / "checkpoints" / "step-00000004")


def test_what_is_said_again_is_no_contradiction(two: Path) -> None:
    assert asked(two, batch=6, seed=11, steps=2, image_size="8", settings=UNLIKE_DEFAULTS) == read_config(two)
    assert asked(two, image_size="8x8") == read_config(two)


NOT_ALONE = {"data.path", "data.labels_from", "data.validation_labels_from", "source"}


@pytest.mark.parametrize("name", sorted(MAY_CHANGE - NOT_ALONE))
def test_what_may_change_is_applied_alone(name: str, two: Path) -> None:
    before = read_config(two)
    value = {"loop.microbatch": "2", "optimizer.lr": "0.5", "loop.wandb": "true"}.get(name, "7")
    changed = difference(before, asked(two, settings=(f"{name}={value}",)))
    assert [entry[0] for entry in changed] == [name] and str(changed[0][2]).removesuffix(".0").lower() == value


def test_data_may_lie_elsewhere(two: Path) -> None:
    before = read_config(two)
    assert asked(two, data="digits:train") == replace(before, data=replace(before.data, path="digits:train"))


def test_all_that_contradicts_is_refused_at_once_by_name_and_value(two: Path) -> None:
    before = contents(two)
    wrong = ("mean=v", "network.channel_mult=1,2,2", "optimizer.lr=0.1", "network.num_classes=10")
    with pytest.raises(UsageError) as info:
        asked(two, batch=5, image_size="8x16", settings=wrong)
    assert str(info.value) == (
        "this run was started with network.image_size=8, you asked for 8x16; loop.batch_size=6, you asked for 5; "
        "mean=eps, you asked for v; network.channel_mult=1,2, you asked for 1,2,2; network.num_classes=none, you asked "
        "for 10. Leave these options out to continue, or choose another --out."
    )
    with pytest.raises(UsageError, match=r"loss=simple, you asked for hybrid. Leave the option out to continue"):
        asked(two, settings=("loss=hybrid",))
    with pytest.raises(UsageError, match=r"did you mean 'optimizer.lr'"):
        asked(two, settings=("lr=1",))
    with pytest.raises(UsageError, match=r"is a diffusion run, not classifier. Choose another --out"):
        asked(two, job="classifier")
    assert contents(two) == before


def test_a_run_without_a_readable_config_follows_its_newest_checkpoint(two: Path) -> None:
    before = read_config(two)
    (two / "config.json").write_text("{")
    with pytest.warns(UserWarning, match=r"config.json cannot be used .* what the newest checkpoint says counts"):
        assert asked(two) == before
    (two / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"config.json is missing: what the newest checkpoint says counts"):
        assert asked(two) == before
    for step in checkpoint_format.steps(two / "checkpoints"):
        (two / "checkpoints" / checkpoint_format.step_name(step) / "config.json").write_text("{}")
    fresh = asked(two)  # nothing intact is left to continue
    assert fresh == default_config("diffusion", "digits", Digits())


def test_a_config_that_defines_another_run_than_the_checkpoints_does_not_count(two: Path) -> None:
    before, path = read_config(two), two / "config.json"
    path.write_text(path.read_text().replace('"seed": 11', '"seed": 4'))
    with pytest.warns(UserWarning, match=r"config.json is not as the run was started \(loop.seed\): what the newest"):
        assert asked(two) == before
    path.write_text(path.read_text().replace('"seed": 4', '"seed": 11').replace('"keep": 3', '"keep": 7'))
    assert asked(two).loop.keep == 7  # as a run that was to be continued so, and had no time to save, left it


def test_a_directory_that_only_began_is_set_up_anew(two: Path) -> None:
    shutil.rmtree(two / "checkpoints")
    assert asked(two, steps=3, seed=5) == override(
        default_config("diffusion", "digits", Digits()), ["loop.steps=3", "loop.seed=5"]
    )


def test_other_images_are_refused_as_such_whatever_their_number_and_classes(two: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "few", (8, 8), ("a",), "L")
    planned = plan(Request("diffusion", str(folder), two, steps=4))
    with pytest.raises(AdmError, match="the images are not those that this run was started with"):
        train(planned.config, two, dataset=planned.dataset)


def test_a_run_among_its_images_is_refused_as_it_could_not_continue(tmp_path: Path) -> None:
    """Its pictures would be images, and its folder a class."""
    folder = write_folder(tmp_path / "photos", (8, 8), ("a", "b"))
    for labels_from in (None, "folders"):
        with pytest.raises(UsageError, match=r"photos/run lies within the data .* Choose another --out"):
            asked(folder / "run", data=str(folder), labels_from=labels_from)


def test_a_checkpoint_with_a_foreign_config_is_refused(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (two / "config.json").unlink()
    monkeypatch.setattr("adm.training.request.parse_config", _fail)
    with pytest.raises(DamagedError, match="no config"):
        asked(two)


def _fail(*_: object) -> None:
    raise UsageError("no config")


def test_a_run_in_use_is_refused_before_images_are_read(two: Path, adm_command, monkeypatch) -> None:
    monkeypatch.setattr("adm.training.request.open_training", lambda *_: pytest.fail("images were read"))
    with files.lock(two / ".lock", "run 'first'"):
        result = adm_command("train", "diffusion", "--data", "digits", "--out", two, "--device", "cpu")
    assert result.code == 5 and f"is in use by pid {os.getpid()} on " in result.last


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_to_stop_while_images_are_read_ends_with_75_and_nothing_written(
    number: int, tmp_path: Path, adm_command, monkeypatch
) -> None:
    folder, looks = write_folder(tmp_path / "few", (8, 8), ("a",), "L"), []

    def opened(data, channels, on_images):
        looks.append(1)
        os.kill(os.getpid(), number)
        on_images(1, 2)
        pytest.fail("it went on to the second image")

    monkeypatch.setattr("adm.training.request.open_training", opened)
    result = adm_command("train", "diffusion", "--data", folder, "--out", tmp_path / "run", "--device", "cpu")
    assert result.code == 75 and "stopped before the first step" in result.last and looks == [1]
    assert not (tmp_path / "run").exists()


# ---- what --help says -----------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["diffusion", "classifier"])
def test_every_setting_has_a_meaning_and_a_default_that_a_fresh_config_has(job: str) -> None:
    config = typical_config(job)
    assert meanings(config).keys() == settings(config).keys()
    assert all("\n" not in text and 3 < len(text) < 200 for text in meanings(config).values() if text != "T")
    usual = usual_settings(job)
    assert usual.keys() == settings(config).keys() - {"data.path"}
    digits = default_config(job, "digits", Digits())
    assert all(value in ("(by the data)", settings(digits)[name]) for name, value in usual.items())
    assert usual["network.model_channels"] == "(by the data)" and usual["ema.gamma"] == "6.94"


@pytest.mark.parametrize("job", ["diffusion", "classifier"])
def test_a_setting_as_listed_is_a_setting_as_given(job: str) -> None:
    for config in (typical_config(job), default_config(job, "digits", Digits())):
        assert override(config, [f"{name}={value}" for name, value in settings(config).items()]) == config
    assert not {"job", "source", "source_sha256"} & settings(config).keys()
    for name in ("job=classifier", "source=a"):
        with pytest.raises(UsageError, match="there is no setting"):
            override(replace(config), [name])
