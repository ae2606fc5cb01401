"""What is resumed, what may be changed and what is not finite: every combination, each with its number."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adm.checkpoints import format as checkpoint_format
from adm.cli._parsing import parse
from adm.diffusion.losses import LossTerms
from adm.runtime.errors import AdmError
from adm.training import preview
from adm.training.trainer import Trainer
from conftest import TINY, Command
from faults import in_child
from storms import count, storm
from tiny_runs import contents, global_states, run, tiny

# ---- resumed --------------------------------------------------------------------------------------

PARTS = {"10 + 10": (10,), "7 + 6 + 7": (7, 13), "4 + 1 + 15, about the end of an epoch": (4, 5)}
KINDS = {
    "diffusion": ("network.dropout=0.2", "data.random_crop=true", "loop.microbatch=2"),
    "classifier": ("network.dropout=0.2", "optimizer.anneal=linear"),
}
AVERAGES = {"power": ("ema.others=3.0",), "constant": ("ema.kind=constant", "ema.rate=0.9")}
TIMESTEPS = {"uniform": (), "importance": ("timesteps=loss-second-moment", "schedule.num_timesteps=3")}


def trained(config: Any, out: Path, stop_at: int | None = None) -> None:
    """In a process of its own."""

    def work() -> None:
        try:
            run(config, out, stop_at=stop_at)
        except AdmError as error:
            if stop_at is None or error.exit_code != 75:
                raise

    assert in_child(work) == 0


def resume_storm(root: Path, cases: list[tuple[str, str, str, str, int]]) -> dict[str, Any]:
    problems, whole = [], {}
    for job, average, timesteps, parts, workers in cases:
        settings = (*KINDS[job], *AVERAGES[average], *TIMESTEPS[timesteps])
        key, config = (job, average, timesteps), tiny(job, *settings, f"data.workers={workers}")
        if key not in whole:
            out = root / f"whole-{len(whole)}"
            trained(tiny(job, *settings), out)
            whole[key] = contents(out / "checkpoints" / "step-00000020")
        out = root / "parts"
        for at in PARTS[parts]:
            trained(config, out, at)
        trained(config, out)
        ours, theirs = contents(out / "checkpoints" / "step-00000020"), whole[key]
        with_workers = {"config.json", "MANIFEST.json"} if workers else set()  # which say how many
        wrong = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n) and n not in with_workers]
        if wrong:
            problems.append(f"{key} {parts}, {workers} workers: {sorted(wrong)}")
        shutil.rmtree(out)
    return {"problems": problems, "whole": len(whole)}


def resumes(root: Path, cases: list[tuple[str, str, str, str, int]]) -> None:
    found = storm(resume_storm, root, cases)
    count("resume matrix", len(cases) - len(found["problems"]), len(cases), undisturbed_runs=found["whole"])
    assert found["problems"] == []


@pytest.mark.slow
def test_every_way_to_resume_every_kind_of_run_gives_its_bytes(tmp_path: Path) -> None:
    """Some of it runs by default: tests/training/test_resume.py."""
    resumes(tmp_path, list(itertools.product(KINDS, AVERAGES, TIMESTEPS, PARTS, (0, 2))))


# ---- changed options ------------------------------------------------------------------------------

IDENTITY = (
    "network.model_channels=16", "network.channel_mult=1,3", "network.num_res_blocks=2", "loop.seed=1",
    "network.attention_resolutions=8", "network.num_head_channels=4", "network.dropout=0.2", "network.image_size=16",
    "network.num_classes=none", "schedule.num_timesteps=5", "schedule.name=linear", "timesteps=loss-second-moment",
    "mean=v", "loss=simple", "label_dropout=0.2", "input_perturbation=0.1", "weight.kind=p2", "time_scale=0.5",
    "optimizer.betas=0.8,0.9", "optimizer.weight_decay=0.1", "optimizer.warmup_steps=3", "optimizer.anneal=linear",
    "optimizer.clip_norm=0.5", "ema.gamma=3", "ema.kind=constant", "ema.others=3", "loop.batch_size=6",
    "loop.precision=bfloat16", "loop.exact=true", "data.random_crop=true", "data.flip=true",
)  # fmt: skip
FREE = (
    "optimizer.lr=0.01", "loop.keep=5", "loop.log_every=2", "loop.save_every=3", "loop.sample_every=3",
    "loop.on_nan=2", "loop.microbatch=1", "data.workers=1", "ema.snapshot_every=2", "loop.minutes=9",
)  # fmt: skip


def changed_options(adm_command: Command, out: Path, identity: tuple[str, ...], free: tuple[str, ...]) -> None:
    words = ["train", "diffusion", "--data", "digits", "--out", out, "--device", "cpu"]
    assert adm_command(*words, "--steps", "2", "--batch", "4", *TINY).code == 0
    before, refused, noted = contents(out), 0, 0
    for setting in identity:
        name = setting.split("=")[0]
        result = adm_command(*words, "--set", setting)
        assert result.code == 2 and f"this run was started with {name}=" in result.problem, (setting, result.err)
        refused += contents(out) == before
    for setting in free:
        name = setting.split("=")[0]
        result = adm_command(*words, "--set", setting)
        assert result.code == 0, (setting, result.err)
        noted += any(line.startswith(f"{name}: ") and " -> " in line for line in result.err.splitlines())
    count("changed options", refused + noted, len(identity) + len(free), refused_by_name=refused, noted=noted)
    assert (refused, noted) == (len(identity), len(free))


def test_some_options_that_define_a_run_are_refused_and_others_noted(adm_command: Command, tmp_path: Path) -> None:
    changed_options(adm_command, tmp_path / "run", IDENTITY[::10], FREE[::5])


@pytest.mark.slow
def test_forty_options_are_refused_by_name_or_noted(adm_command: Command, tmp_path: Path) -> None:
    assert len(IDENTITY) + len(FREE) > 40
    changed_options(adm_command, tmp_path / "run", IDENTITY, FREE)


def test_the_twin_without_the_comparison_a_changed_option_is_taken(
    adm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("request", "resume"):
        monkeypatch.setattr(f"adm.training.{module}.refuse_changes", lambda changes: list(changes))
    with pytest.raises(AssertionError, match="weight_decay"):
        changed_options(adm_command, tmp_path / "run", ("optimizer.weight_decay=0.1",), ())


# ---- not finite -----------------------------------------------------------------------------------

TENSOR = "encoder.stem.weight"


def bad_loss(trainer: Trainer) -> None:
    objective = trainer.objective

    def poisoned(model: Any, batch: Any, noise: Any) -> LossTerms:
        trainer.objective = objective
        result = objective(model, batch, noise)
        return LossTerms(result.loss * float("nan"), result.terms)

    trainer.objective = poisoned


def bad_gradient(trainer: Trainer) -> None:
    p = dict(trainer.model.network.named_parameters())[TENSOR]

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient.index_fill(0, torch.tensor([1]), float("inf"))

    handle = p.register_hook(hook)


@torch.no_grad()
def bad_weight(trainer: Trainer) -> None:
    dict(trainer.model.network.named_parameters())[TENSOR].view(-1)[3] = float("nan")


def bad_average(trainer: Trainer) -> None:
    trainer.ema.weights[TENSOR].view(-1)[3] = float("-inf")


BAD = {"loss": bad_loss, "gradient": bad_gradient, "weight": bad_weight, "average": bad_average}
SAID = {
    "loss": "step {step}: not finite: loss nan",
    "gradient": "(first in the gradient of encoder.stem.weight)",
    "weight": "(first in weight encoder.stem.weight)",
    "average": "nothing is saved: ema: encoder.stem.weight has ",
}
SAVE_EVERY = 5


def poisoned(kind: str, step: int, out: Path, config: Any, protected: bool = True) -> tuple[int, str]:
    """Exit status and message of a run whose `step` meets such a number."""
    told = out.with_suffix(".told")

    def work() -> None:
        advance = Trainer.advance

        def advanced(trainer: Trainer, batch: Any) -> Any:
            if trainer.step + 1 == step:
                BAD[kind](trainer)
            return advance(trainer, batch)

        Trainer.advance = advanced  # type: ignore[method-assign]
        if not protected:
            Trainer._not_finite = lambda trainer, losses, norm: None  # type: ignore[method-assign]
            checkpoint_format._check_finite = lambda name, tensor: None  # type: ignore[assignment]
            preview.refuse_not_finite = lambda x: None
        try:
            run(config, out)
        except AdmError as error:
            told.write_text(str(error))
            os._exit(error.exit_code)

    told.write_text("")
    return in_child(work), told.read_text()


def not_finite_in(out: Path) -> list[str]:
    """Files below that hold a number which is not finite."""
    found = []
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        if path.suffix == ".safetensors":
            bad = any(not bool(torch.isfinite(t).all()) for t in load_file(path).values())
        elif "tfevents" in path.name:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            events = EventAccumulator(str(path.parent)).Reload()
            values = [e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
            bad = not bool(torch.isfinite(torch.tensor(values)).all())
        else:
            bad = path.suffix in (".json", ".jsonl") and any(w in path.read_text() for w in ("NaN", "Infinity"))
        found += [str(path.relative_to(out))] if bad else []
    return found


def finite_storm(root: Path, steps: list[int], continued: int) -> dict[str, Any]:
    """Each kind at each step; some are continued, and end as if nothing had been."""
    config, problems, num = tiny("diffusion", "loop.log_every=1", f"loop.save_every={SAVE_EVERY}"), [], 0
    trained(config, root / "clean")
    clean = contents(root / "clean" / "checkpoints")
    for kind, step in itertools.product(BAD, steps):
        out = root / "run"
        status, said = poisoned(kind, step, out, config)
        last = (step - 1) // SAVE_EVERY * SAVE_EVERY
        seen_at = last + SAVE_EVERY if kind == "average" else step  # an average is looked at when it is to be saved
        wrong = [f"on the disk: {name}" for name in not_finite_in(out)]
        if status != 6 or not said.startswith(f"step {seen_at}: ") or SAID[kind].format(step=step) not in said:
            wrong.append(f"exit {status}: {said}")
        if checkpoint_format.steps(out / "checkpoints")[-1:] != ([last] if last else []):
            wrong.append("another checkpoint than before it is the newest")
        num += 1
        if continued and num % continued == 0:
            trained(config, out)
            wrong += [] if contents(out / "checkpoints") == clean else ["then ends differently"]
        problems += [f"{kind} at step {step}: {line}" for line in wrong]
        shutil.rmtree(out)
    status, _ = poisoned("weight", 3, root / "twin", config, protected=False)
    return {"problems": problems, "num": num, "twin": [status, not_finite_in(root / "twin")]}


def numbers_that_are_not_finite(root: Path, steps: list[int], continued: int) -> None:
    found = storm(finite_storm, root, steps, continued)
    num = found["num"]
    count("NaN and infinity in loss, gradient, weight, average", num - len(found["problems"]), num)
    assert found["problems"] == []
    status, on_disk = found["twin"]  # without the protection
    assert status == 0 and any(name.endswith("model.safetensors") for name in on_disk)


def test_what_is_not_finite_is_named_and_never_written(tmp_path: Path) -> None:
    numbers_that_are_not_finite(tmp_path, [7], 0)


@pytest.mark.slow
def test_what_is_not_finite_at_any_of_twenty_steps_is_named_and_never_written(tmp_path: Path) -> None:
    numbers_that_are_not_finite(tmp_path, list(range(1, 21)), 8)


# ---- the world around -----------------------------------------------------------------------------


def undrawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with random's generator put back: tyro draws from it to check itself, under pytest alone."""

    def call(*args: Any) -> Any:
        state = random.getstate()
        try:
            return function(*args)
        finally:
            random.setstate(state)

    return call


@pytest.mark.slow
def test_a_hundred_steps_and_samples_leave_the_global_generators_as_they_were(
    adm_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what commands import, rich draws when it is imported; commands draw nothing. Training itself: test_run.py."""
    monkeypatch.setattr("adm.cli.main.parse", undrawn(parse))
    words = ["train", "diffusion", "--data", "digits", "--batch", "4", "--device", "cpu", *TINY, "--out"]
    images = ["sample", tmp_path / "run", "--steps", "4", "--device", "cpu", "--out"]
    assert adm_command(*words, tmp_path / "run", "--steps", "2").code == 0
    assert adm_command(*images, tmp_path / "images", "--num", "2").code == 0
    before = global_states()
    assert adm_command(*words, tmp_path / "run", "--steps", "102", "--set", "loop.save_every=50").code == 0
    assert adm_command(*images, tmp_path / "more", "--num", "100").code == 0
    unchanged = global_states() == before
    count("global generators as they were after 100 steps and 100 samples", int(unchanged), 1)
    assert unchanged
