"""A config goes to JSON and back unchanged; every mistake names the field in one line."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from adm.nn import unet
from adm.runtime import config, text
from adm.runtime.device import pick_device
from adm.runtime.errors import UsageError


class Kind(enum.Enum):
    A = "a"


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    model: unet.UNetConfig = field(default_factory=lambda: unet.UNetConfig(image_size=8))
    optimizer: Optimizer = field(default_factory=Optimizer)
    extra: Optimizer | None = None
    steps: int = 100
    flip: bool | None = None
    data: Path = Path("digits")
    mode: Literal["fast", "exact"] = "fast"
    kind: Kind = Kind.A

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: must be at least 1")


RUN = Run()


def test_a_config_comes_back_through_json() -> None:
    changed = replace(RUN, extra=Optimizer(clip=1.0), flip=False, model=unet.UNetConfig(image_size=(8, 16)))
    for run in (RUN, changed):
        back = config.from_dict(Run, json.loads(json.dumps(config.to_dict(run))))
        assert back == run and type(back.optimizer.betas) is tuple and isinstance(back.model, unet.UNetConfig)


def edited(name: str, value: Any) -> dict[str, Any]:
    mapping = config.to_dict(RUN)
    *owners, last = name.split(".")
    target = mapping
    for owner in owners:
        target = target[owner]
    target[last] = value
    return mapping


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("stepz", 3, ["no 'stepz'", "did you mean 'steps'?"]),
        ("optimizer.lrr", 3, ["no 'optimizer.lrr'", "'lr'"]),
        ("model.channels", 3, ["no 'model.channels'"]),
        ("optimizer.lr", "3", ['optimizer.lr = "3"', "valid number"]),
        ("optimizer.lr", float("nan"), ["optimizer.lr", "finite"]),
        ("optimizer.lr", None, ["optimizer.lr = null", "valid number"]),
        ("optimizer.betas", [1, 2, 3], ["optimizer.betas", "2 items"]),
        ("optimizer", 3, ["optimizer = 3"]),
        ("steps", True, ["steps = true", "integer"]),
        ("steps", 1.5, ["steps = 1.5", "integer"]),
        ("steps", 0, ["steps 0: must be at least 1"]),
        ("steps", "x\n" * 5000, ["steps = "]),
        ("mode", "slow", ["mode", "'fast' or 'exact'"]),
        ("model.out_channels", 0, ["model: out_channels is 0: must be at least 1"]),
        ("x\ny" * 1000, 1, ["there is no"]),
    ],
)
def test_mistakes_in_a_file_are_one_line(name: str, value: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        config.from_dict(Run, edited(name, value), where="runs/a/config.json")
    message = str(raised.value)
    assert message.startswith("runs/a/config.json: ") and all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


def test_a_missing_field_and_a_wrong_whole_are_named() -> None:
    with pytest.raises(UsageError, match=r"model\.image_size is missing"):
        config.from_dict(Run, {"model": {}})
    with pytest.raises(UsageError, match="is no mapping"):
        config.from_dict(Run, [1])
    assert config.from_dict(Run, {}) == RUN


def test_overrides_are_read_by_the_fields_type() -> None:
    changed = config.override(
        RUN,
        [
            "optimizer.lr=3e-4",
            "model.channel_mult=1,2,2",
            "flip=true",
            "optimizer.clip=1",
            "data=/a=b",
            "steps=7",
        ],
    )
    assert changed.optimizer == Optimizer(lr=3e-4, clip=1.0) and changed.model.channel_mult == (1, 2, 2)
    assert changed.flip is True and changed.data == Path("/a=b") and changed.steps == 7
    assert config.override(changed, ["flip=none", "optimizer.clip=None"]).flip is None
    assert config.override(RUN, ["model.image_size=16"]).model.image_size == 16
    assert config.override(RUN, ["model.image_size=16,32"]).model.image_size == (16, 32)
    assert config.override(RUN, ["model.num-res-blocks=3"]).model.num_res_blocks == 3
    assert config.override(RUN, ["steps=5", "steps=6"]).steps == 6
    assert config.override(RUN, []) == RUN and Run() == RUN


def test_overrides_that_only_fit_together_are_applied_together() -> None:
    @dataclass(frozen=True)
    class Range:
        low: int = 0
        high: int = 10

        def __post_init__(self) -> None:
            if self.low >= self.high:
                raise ValueError(f"low {self.low} is not below high {self.high}")

    assert config.override(Range(), ["low=20", "high=30"]) == Range(20, 30)
    with pytest.raises(UsageError, match="low=20: low 20 is not below high 10"):
        config.override(Range(), ["low=20"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("optimizer.lx=3", ["no setting 'optimizer.lx'", "did you mean 'optimizer.lr'?"]),
        ("lr=3", ["no setting 'lr'", "did you mean 'optimizer.lr'?"]),
        ("optimizer=3", ["group of settings", "optimizer.lr"]),
        ("optimizer.lr.x=3", ["no setting"]),
        ("extra.lr=3", ["no setting 'extra.lr'"]),
        ("steps", ["sets nothing"]),
        ("=3", ["no setting"]),
        ("steps=many", ["steps=many", "integer"]),
        ("steps=0", ["steps=0", "must be at least 1"]),
        ("optimizer.lr=inf", ["finite"]),
        ("optimizer.betas=1", ["optimizer.betas=1", "too few values"]),
        ("model.out_channels=0", ["model.out_channels=0"]),
        ("model.channel_mult=(1,2", ["lacks a ')'"]),
        ("steps=" + "9" * 5000, ["steps=9"]),
        ("\n" * 500 + "=1", ["no setting"]),
    ],
)
def test_mistakes_in_overrides_are_one_line(assignment: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        config.override(RUN, [assignment])
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


def test_differences_are_named() -> None:
    assert config.difference(RUN, Run()) == []
    changed = replace(RUN, steps=5, optimizer=Optimizer(lr=1.0), extra=Optimizer())
    assert config.difference(RUN, changed) == [
        ("optimizer.lr", 1e-4, 1.0),
        ("steps", 100, 5),
        ("extra.lr", None, 1e-4),
        ("extra.betas", None, [0.9, 0.999]),
    ]


def test_a_config_holds_plain_values() -> None:
    with pytest.raises(TypeError, match="Tensor has no place"):
        config.to_dict(replace(RUN, steps=torch.tensor(3)))


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:1", "cuda:x", "meta", "x\n" * 1000])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="device") as raised:
        pick_device(name)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu") and pick_device("auto").type in ("cpu", "cuda", "mps")


def test_texts_stay_on_one_line() -> None:
    assert text.one_line("a\nb\x1b[31m\u202e\ud800é") == "a\\nb\\x1b[31m\\u202e\\ud800é"
    assert len(text.one_line("x" * 1000)) == 80 and text.one_line("ab" * 60, 11) == "ababa…babab"
    assert [text.num_bytes(n) for n in (0, 999, 1000, 999_499, 999_500, 412_000_000, 10**20)] == [
        "0 bytes", "999 bytes", "1.0 kB", "999 kB", "1.0 MB", "412 MB", "100000000 TB",
    ]  # fmt: skip
    assert text.split_list("a, (b,c) ,[d]") == ["a", "(b,c)", "[d]"] and text.split_list(" ") == []


def test_a_path_is_shown_as_the_user_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert text.shown_path(tmp_path / "runs" / "a") == str(Path("runs/a"))
    assert text.shown_path("/etc/x") == "/etc/x"
