"""Weights & Biases gets what the log has, and nothing that it lacks or does stops a run."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adm.training._wandb import open_sink
from tiny_runs import contents, global_states, run, tiny

CONFIG = {"job": "diffusion", "loop": {"steps": 3}}


class FakeRun:
    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def log(self, line: dict[str, Any], step: int) -> None:
        self.sent.append((step, line))

    def finish(self) -> None:
        self.finished += 1


class FakeWandb(types.ModuleType):
    """What is used of the package; refused: modes in which init raises."""

    Settings = dict

    def __init__(self) -> None:
        super().__init__("wandb")
        self.account = True
        self.refused: tuple[str, ...] = ()
        self.calls: list[str] = []
        self.started: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []

    def setup(self, settings: dict[str, Any]) -> None:
        self.calls.append("setup")

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify, "nobody is asked, nothing is waited for"
        return self.account

    def teardown(self) -> None:
        self.calls.append("teardown")

    def init(self, **arguments: Any) -> FakeRun:
        self.calls.append(f"init {arguments['mode']}")
        if arguments["mode"] in self.refused:
            raise ConnectionError("no route\nto host")
        self.started.append(arguments)
        self.runs.append(FakeRun())
        return self.runs[-1]

    def Image(self, path: str) -> tuple[str, tuple[int, int]]:
        with Image.open(path) as picture:
            return "image", picture.size


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_a_run_that_does_not_ask_leaves_no_trace(wandb: FakeWandb, tmp_path: Path) -> None:
    assert open_sink(tmp_path, CONFIG, enabled=False) is None
    assert wandb.calls == [] and list(tmp_path.iterdir()) == []


def test_lines_and_pictures_are_sent_with_their_steps(wandb: FakeWandb, tmp_path: Path) -> None:
    picture = tmp_path / "samples" / "step-00000002.png"
    picture.parent.mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(picture)
    sink = open_sink(tmp_path, CONFIG, enabled=True)
    assert sink is not None
    sink.log({"loss": 0.5, "lr": 1e-4}, 1)
    sink.image(picture, 2)
    sink.close()
    sink.close()
    sink.log({"loss": 0.4}, 3)
    (sent,) = wandb.runs
    assert sent.sent == [(1, {"loss": 0.5, "lr": 1e-4}), (2, {"samples": ("image", (6, 4))})]
    assert sent.finished == 1
    (arguments,) = wandb.started
    assert arguments["mode"] == "online" and arguments["resume"] == "allow" and arguments["config"] == CONFIG
    assert (arguments["name"], arguments["project"], arguments["dir"]) == (tmp_path.name, "adm", str(tmp_path))
    assert arguments["settings"]["console"] == "off" and arguments["settings"]["init_timeout"] <= 60


def test_the_same_directory_goes_on_with_the_same_run_and_another_with_another(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    for name in ("a", "a", "b"):
        assert open_sink(tmp_path / name, CONFIG, enabled=True) is not None
    first, again, other = (arguments["id"] for arguments in wandb.started)
    assert first == again != other
    assert json.loads((tmp_path / "a" / "wandb.json").read_text()) == {"id": first}
    (tmp_path / "a").rename(tmp_path / "moved")
    open_sink(tmp_path / "moved", CONFIG, enabled=True)
    assert wandb.started[-1]["id"] == first


@pytest.mark.parametrize("text", ["", "[]", '{"id": "a/../b"}', '{"id": 3}', "\0"])
def test_a_damaged_id_is_a_new_run_and_a_note(text: str, wandb: FakeWandb, tmp_path: Path) -> None:
    (tmp_path / "wandb.json").write_text(text)
    with pytest.warns(UserWarning, match=r"wandb\.json is damaged: this goes to a new run"):
        open_sink(tmp_path, CONFIG, enabled=True)
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": wandb.started[0]["id"]}


def test_without_the_package_it_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match=r"is not installed; the run goes on.*pip install 'adm-diffusion\[wandb\]'"):
        assert open_sink(tmp_path, CONFIG, enabled=True) is None
    assert list(tmp_path.iterdir()) == []


def test_without_an_account_it_is_written_for_later(wandb: FakeWandb, tmp_path: Path) -> None:
    wandb.account = False
    with pytest.warns(UserWarning, match=r"is offline: wandb sync .*offline-run-\* sends the run"):
        sink = open_sink(tmp_path, CONFIG, enabled=True)
    assert sink is not None and wandb.started[0]["mode"] == "offline"


def test_without_network_it_is_written_for_later(wandb: FakeWandb, tmp_path: Path) -> None:
    """The first attempt holds the id until it is torn down (seen with wandb 0.31)."""
    wandb.refused = ("online",)
    with pytest.warns(UserWarning, match=r"does not answer .no route.nto host.\. Written for wandb sync"):
        sink = open_sink(tmp_path, CONFIG, enabled=True)
    assert sink is not None
    assert wandb.calls[-3:] == ["init online", "teardown", "init offline"]


def test_what_cannot_start_at_all_is_a_note(wandb: FakeWandb, tmp_path: Path) -> None:
    wandb.refused = ("online", "offline")
    with pytest.warns(UserWarning, match="cannot start .*The run goes on without"):
        assert open_sink(tmp_path, CONFIG, enabled=True) is None


@pytest.mark.parametrize("mode", ["disabled", "offline", "online"])
def test_the_usual_variables_are_followed(
    mode: str, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_PROJECT", "flowers")
    wandb.account = False
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        open_sink(tmp_path, CONFIG, enabled=True)
    assert wandb.started[0]["mode"] == mode and wandb.started[0]["project"] == "flowers"
    assert len(seen) == (mode == "offline")


@pytest.mark.parametrize("method", ["log", "finish"])
def test_what_fails_later_is_one_note(
    method: str, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise BrokenPipeError("service is gone")

    monkeypatch.setattr(FakeRun, method, fail)
    sink = open_sink(tmp_path, CONFIG, enabled=True)
    assert sink is not None
    attempts: list[Callable[[], None]] = [
        lambda: sink.log({"loss": 1.0}, 1),
        lambda: sink.log({"loss": 1.0}, 2),
        lambda: sink.image(tmp_path / "missing.png", 2) if method == "log" else None,
        sink.close,
    ]
    with pytest.warns(UserWarning, match=r"gets no more of this run .service is gone.\. The run goes on") as seen:
        for attempt in attempts:
            attempt()
    assert len(seen) == 1


def test_a_run_sends_the_lines_of_its_log_and_is_the_same_run_otherwise(wandb: FakeWandb, tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=4", "loop.log_every=2", "loop.wandb=true"), tmp_path / "sent")
    run(tiny("diffusion", "loop.steps=4", "loop.log_every=2"), tmp_path / "plain")
    lines = [json.loads(line) for line in (tmp_path / "sent" / "log.jsonl").read_text().splitlines()]
    sent = [(step, line) for step, line in wandb.runs[0].sent if "loss" in line]
    assert sent == [(line.pop("step"), line) for line in lines] and len(sent) == 2
    assert wandb.runs[0].finished == 1 and len(wandb.runs) == 1
    weights = [contents(tmp_path / name / "checkpoints")["step-00000004/ema.safetensors"] for name in ("sent", "plain")]
    assert weights[0] == weights[1]


def test_the_real_package_writes_offline_and_leaves_the_generators_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="an extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = global_states()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink = open_sink(tmp_path, CONFIG, enabled=True)
        assert sink is not None
        sink.log({"loss": 0.5}, 1)
        sink.close()
    assert global_states() == before
    made = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{made}/run-{made}.wandb"))
