"""A run that was stopped, killed or damaged ends, to the last byte, as one that never was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.runtime.errors import DamagedError, StoppedError
from adm.training import run as training_run
from faults import count_operations
from tiny_runs import contents, in_new_process, run, run_until_killed, start_process, tiny

# Batches of 5 from 24 images: the border of an epoch falls into a batch, and none of them on step 10.
CASES = {
    "diffusion": ("diffusion",),
    "diffusion-everything": (
        "diffusion",
        "timesteps=loss-second-moment",
        "schedule.num_timesteps=3",  # 3 x 10 losses fill the history by step 7: importance is learnt before the stop
        "network.dropout=0.3",
        "data.workers=2",
        "data.random_crop=true",
        "loop.microbatch=2",
        "optimizer.anneal=linear",
        "optimizer.warmup_steps=12",
        "optimizer.weight_decay=0.05",
        "ema.kind=constant",
        "ema.rate=0.9",
    ),
    "classifier": ("classifier", "network.dropout=0.2", "optimizer.anneal=linear"),
    "classifier-importance": (
        "classifier",
        "timesteps=loss-second-moment",
        "schedule.num_timesteps=3",
        "data.workers=2",
    ),
}
REPEATED = ("diffusion", "classifier-importance")
"""What the others have too: run with the slow tests."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """name of a case -> its run directory, trained without a break, once."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("undisturbed") / name
            assert in_new_process(run, tiny(*CASES[name]), out) == 0
            made[name] = out
        return made[name]

    return directory


@pytest.fixture(scope="session")
def _stopped(tmp_path_factory):
    made: dict[tuple[str, int], Path] = {}

    def directory(case: str, at: int) -> Path:
        if (case, at) not in made:
            out = tmp_path_factory.mktemp("stopped") / "run"
            with pytest.raises(StoppedError):
                run(tiny(*CASES[case]), out, stop_at=at)
            made[case, at] = out
        return made[case, at]

    return directory


@pytest.fixture
def stopped(_stopped, tmp_path: Path):
    """(case, step) -> a run of its own that was stopped at the step."""
    return lambda case, at: shutil.copytree(_stopped(case, at), tmp_path / "stopped")


def final(out: Path) -> dict[str, bytes]:
    files = contents(out / "checkpoints" / "step-00000020")
    assert {"MANIFEST.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"} <= set(
        files
    )
    return files


def assert_same_end(out: Path, reference: Path) -> None:
    ours, theirs = final(out), final(reference)
    assert [name for name in theirs if ours.get(name) != theirs[name]] == []
    assert ours.keys() == theirs.keys()
    assert (out / "config.json").read_bytes() == (reference / "config.json").read_bytes()
    assert contents(out / "samples") == contents(reference / "samples")


def log_lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_speed(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


# ---- stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in REPEATED else case for case in CASES]
)
def test_twenty_steps_are_ten_and_ten_in_another_process(case: str, undisturbed, tmp_path: Path) -> None:
    config, out = tiny(*CASES[case]), tmp_path / "run"
    assert in_new_process(run, config, out, stop_at=10) == StoppedError.exit_code
    assert [line["step"] for line in log_lines(out)] == [4, 5, 8, 10]
    assert in_new_process(run, config, out) == 0
    assert_same_end(out, undisturbed(case))
    assert without_speed(log_lines(out)) == without_speed(log_lines(undisturbed(case)))
    assert [line["step"] for line in log_lines(out)] == [4, 5, 8, 10, 12, 15, 16, 20]


def test_steps_added_later_are_those_of_the_longer_run(undisturbed, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny("diffusion", "loop.steps=7"), out)
    run(tiny("diffusion"), out)
    assert final(out) == final(undisturbed("diffusion"))


def test_a_stop_between_two_saves_saves(tmp_path: Path, undisturbed) -> None:
    out = tmp_path / "run"
    with pytest.raises(StoppedError, match="stopped at step 7; run the same command to continue"):
        run(tiny("diffusion"), out, stop_at=7)
    assert checkpoint_format.steps(out / "checkpoints") == [5, 7]
    run(tiny("diffusion"), out)
    assert_same_end(out, undisturbed("diffusion"))
    steps = [line["step"] for line in log_lines(out)]
    assert steps == sorted(set(steps)) and {4, 8, 12, 16, 20} <= set(steps)


def test_the_number_of_workers_and_checkpoints_kept_do_not_enter_the_result(undisturbed, tmp_path: Path) -> None:
    settings = ("data.workers=2", "loop.save_every=7", "loop.keep=2", "loop.log_every=3")
    checkpoint = run(tiny(*CASES["diffusion"], *settings), tmp_path / "run")
    for name in ("model", "ema", "optimizer"):
        file = f"{name}.safetensors"
        assert (checkpoint / file).read_bytes() == final(undisturbed("diffusion"))[file]
    assert checkpoint_format.steps(tmp_path / "run" / "checkpoints") == [14, 20]


FORGOTTEN = {
    "the optimizer's moments": lambda trainer: trainer.optimizer.state.clear(),
    "the count of averaged weights": lambda trainer: setattr(trainer.ema, "num_updates", 0),
    "the importance of timesteps": lambda trainer: setattr(
        trainer, "timesteps", training_run.Trainer(trainer.model, trainer.config).timesteps
    ),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_the_twin_whatever_a_restored_trainer_forgets_shows(what: str, monkeypatch, undisturbed, stopped) -> None:
    case = "classifier-importance"
    out = stopped(case, 10)
    restore = training_run.Trainer.restore

    def forgetful(trainer, tensors, state) -> None:
        restore(trainer, tensors, state)
        FORGOTTEN[what](trainer)

    monkeypatch.setattr(training_run.Trainer, "restore", forgetful)
    run(tiny(*CASES[case]), out)
    assert final(out) != final(undisturbed(case))


# ---- killed ---------------------------------------------------------------------------------------


def test_killed_at_any_operation_on_the_disk_the_same_command_ends_the_same(undisturbed, tmp_path: Path) -> None:
    config = tiny(*CASES["classifier"], "loop.keep=2")
    total = count_operations(lambda: run(config, tmp_path / "count"))
    reference = final(tmp_path / "count")
    chosen = sorted(random.Random(0).sample(range(total), 8))
    out = tmp_path / "run"
    # Killed again and again in the same directory: what one death leaves, the next start has to live with.
    for operation in chosen:
        status = in_new_process(run_until_killed, config, out, operation)
        assert status in (0, -signal.SIGKILL)
    assert in_new_process(run, config, out) == 0
    assert final(out) == reference
    assert checkpoint_format.newest_intact(out / "checkpoints") == (out / "checkpoints" / "step-00000020", [])
    assert not [name for name in contents(out) if ".partial-" in name and name.startswith("checkpoints")]
    assert without_speed(log_lines(out)) == without_speed(log_lines(tmp_path / "count"))


@pytest.mark.parametrize("operation", [3, 60])
def test_killed_at_a_first_start(operation: int, undisturbed, tmp_path: Path) -> None:
    config, out = tiny(*CASES["diffusion"]), tmp_path / "run"
    assert in_new_process(run_until_killed, config, out, operation) == -signal.SIGKILL
    run(config, out)
    assert_same_end(out, undisturbed("diffusion"))


def test_killed_at_a_random_moment(undisturbed, tmp_path: Path) -> None:
    case, out = "diffusion-everything", tmp_path / "run"
    process = start_process(run, tiny(*CASES[case]), out)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.6))
    process.kill()
    process.join()
    run(tiny(*CASES[case]), out)
    assert_same_end(out, undisturbed(case))
    assert without_speed(log_lines(out)) == without_speed(log_lines(undisturbed(case)))


# ---- damaged --------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_named_kept_and_passed_over(file: str, undisturbed, stopped) -> None:
    out = stopped("diffusion", 12)
    flip_a_bit(out / "checkpoints" / "step-00000012" / file)
    damaged = contents(out / "checkpoints" / "step-00000012")
    notes: list[str] = []
    run(tiny(*CASES["diffusion"]), out, on_progress=lambda progress: notes.extend(progress.notes))
    assert "step-00000012 is damaged" in notes[0] and file in notes[0] and "\n" not in notes[0]
    assert "Kept aside as step-00000012.damaged. Using step-00000010" in notes[0]
    assert notes[1] == "continuing from step 10"
    assert contents(out / "checkpoints" / "step-00000012.damaged") == damaged
    assert_same_end(out, undisturbed("diffusion"))
    assert [line["step"] for line in log_lines(out)] == [4, 5, 8, 10, 12, 15, 16, 20]


def test_a_checkpoint_of_a_newer_format_is_no_damaged_one_and_nothing_is_changed(stopped) -> None:
    """One whose format a flipped bit made larger is: a storm flips them all."""
    out = stopped("diffusion", 12)
    path = out / "checkpoints" / "step-00000012" / "MANIFEST.json"
    manifest = json.loads(path.read_text()) | {"format": 2, "more": ["than", "we", "know"]}
    del manifest["self"]
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(manifest | {"self": hashlib.sha256(canonical.encode()).hexdigest()}))
    before = contents(out)
    for use in (lambda: run(tiny(*CASES["diffusion"]), out), lambda: adm.load(out)):
        with pytest.raises(
            DamagedError, match=r"step-00000012 was written by a newer version of adm .format 2, this one reads 1"
        ):
            use()
        assert contents(out) == before


def test_load_passes_over_a_damaged_newest_checkpoint_and_says_so(stopped) -> None:
    out = stopped("diffusion", 12)
    newest = out / "checkpoints" / "step-00000012"
    flip_a_bit(newest / "ema.safetensors")
    with pytest.warns(UserWarning, match=r"step-00000012 is damaged \(ema.safetensors.*Using step-00000010"):
        model = adm.load(out)
    expected = checkpoint_format.load(out / "checkpoints" / "step-00000010").tensors["ema"]
    assert all(torch.equal(value, expected[name]) for name, value in model.network.state_dict().items())
    assert newest.is_dir()  # reading moves nothing
    with pytest.raises(DamagedError, match=r"step-00000012 is damaged \(ema.safetensors"):
        adm.load(newest)


def test_with_every_checkpoint_damaged_load_refuses(stopped) -> None:
    out = stopped("classifier", 12)
    for step in (5, 10, 12):
        flip_a_bit(out / "checkpoints" / checkpoint_format.step_name(step) / "model.safetensors")
    with pytest.raises(DamagedError, match=r"step-00000012 is damaged.*No intact checkpoint is left"):
        adm.load(out)
    before = contents(out)
    for _ in range(2):
        with pytest.raises(
            DamagedError, match=r"step-00000012 is damaged.*Bring an intact copy of .*checkpoints back, or choose"
        ):
            run(tiny(*CASES["classifier"]), out)
        assert contents(out) == before


def test_a_damaged_log_loses_lines_and_not_the_run(undisturbed, stopped) -> None:
    out = stopped("diffusion", 12)
    log = out / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"step": 8', b'"st\xffp": 8') + b'{"step": 13, "lo')
    run(tiny(*CASES["diffusion"]), out)
    assert_same_end(out, undisturbed("diffusion"))
    assert [line["step"] for line in log_lines(out)] == [4, 5, 10, 12, 15, 16, 20]
