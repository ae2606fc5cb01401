"""What a run directory accepts, refuses and holds."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.data import overview
from adm.data._overview import STRIP
from adm.runtime import _disk
from adm.runtime.config import difference, from_dict, override, to_dict
from adm.runtime.errors import DamagedError, DataError, DivergedError, ResourceError, StoppedError, UsageError
from adm.training import loop as training_loop
from adm.training import run as training_run
from adm.training.build import new_model
from adm.training.preview import num_shown, with_classes
from adm.training.resume import MAY_CHANGE, read_config
from adm.training.run import train
from adm.training.runlog import read_log
from adm.training.validation import Validation
from tiny_runs import Stripes, contents, global_states, in_new_process, run, start_process, tiny

# ---- what defines a run ---------------------------------------------------------------------------

MAY = {
    "data.labels_from", "data.path", "data.validation", "data.validation_labels_from", "data.workers",
    "ema.snapshot_every", "loop.keep", "loop.log_every", "loop.microbatch", "loop.minutes", "loop.on_nan",
    "loop.sample_every", "loop.save_every",
    "loop.steps", "loop.validate_every", "loop.wandb", "optimizer.lr", "source",
}  # fmt: skip
OTHER: dict[str, Any] = {
    "data.path": "the same images, moved",
    "data.labels_from": "prefix",
    "data.validation": "held-out",
    "data.validation_labels_from": "folders",
    "data.flip": True,
    "ema.others": [3.0],
    "ema.snapshot_every": 2,
    "loop.minutes": 3.0,
    "loop.on_nan": 3,
    "low_res_size": 2,
    "weight.kind": "p2",
    "weight.gamma": 4.0,
    "network.image_size": [8, 8],
    "network.num_head_channels": 4,
    "network.channel_mult": [1, 3],
    "network.attention_resolutions": [8],
    "network.model_channels": 16,
    "network.num_classes": 3,
    "network.out_channels": 3,
    "network.pool": "spatial",
    "schedule.name": "flow",
    "schedule.alpha_bar": [0.9, 0.1],
    "mean": "v",
    "variance": "small",
    "time_scale": 0.5,
    "loss": "simple",
    "timesteps": "loss-second-moment",
    "optimizer.betas": [0.5, 0.9],
    "optimizer.anneal": "linear",
    "optimizer.clip_norm": 0.5,
    "ema.kind": "constant",
    "ema.rate": 0.5,
    "loop.microbatch": 2,
    "loop.precision": "bfloat16",
}

# What can only be changed together with something else.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("diffusion", "variance"): {"network.out_channels": 1},
    ("diffusion", "weight.gamma"): {"weight.kind": "p2"},
    ("diffusion", "weight.k"): {"weight.kind": "p2"},
    **{
        (job, name): needs
        for job in ("diffusion", "classifier")
        for name, needs in {
            "log_normal.mean": {"timesteps": "log-normal"},
            "log_normal.std": {"timesteps": "log-normal"},
            "ema.rate": {"ema.kind": "constant"},
            "optimizer.anneal_from": {"optimizer.anneal": "linear"},
            "data.validation_labels_from": {"data.validation": "held-out"},
        }.items()
    },
    ("diffusion", "network.in_channels"): {"network.out_channels": 4},
    ("diffusion", "network.out_channels"): {"network.out_channels": 1, "variance": "small"},
}


def leaves(config: object, owner: str = "") -> list[tuple[str, Any]]:
    out = []
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        name = owner + field.name
        out += leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]
    return out


def changed(config: Any, name: str, value: Any) -> Any:
    if name in OTHER:
        value = OTHER[name]
    else:
        assert isinstance(value, (bool, int, float)), f"{name} is new: say in OTHER what to change it to"
        value = not value if isinstance(value, bool) else value + (1 if isinstance(value, int) else 0.25)
    document = to_dict(config)
    for dotted, new in {name: value, **TOGETHER.get((config.job, name), {})}.items():
        place = document
        *owners, last = dotted.split(".")
        for owner in owners:
            place = place[owner]
        place[last] = new
    return from_dict(type(config), document)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for job in ("diffusion", "classifier", "upsampler"):
        made[job] = tmp_path_factory.mktemp("run") / job
        run(tiny(job, "loop.steps=2", "loop.save_every=1"), made[job])
    return made


FIXED = {"job", "preset", "network.low_res_channels"}  # have one value in these jobs
FIXED |= {"source", "source_sha256"}  # come together: tests/training/test_finetune.py
ALL = [(job, name) for job in ("diffusion", "classifier") for name, _ in leaves(tiny(job)) if name not in FIXED]
ALL += [("upsampler", name) for name, _ in leaves(tiny("upsampler")) if name.startswith("low_res")]


def test_what_may_change_is_the_list_here_and_names_of_the_config() -> None:
    assert MAY_CHANGE == MAY
    assert {name for _, name in ALL} | {"source"} >= MAY


@pytest.mark.parametrize(("job", "name"), [(job, name) for job, name in ALL if name not in MAY])
def test_an_option_that_defines_the_run_is_refused_by_name(job: str, name: str, two_steps) -> None:
    config = tiny(job, "loop.steps=4", "loop.save_every=1")
    value = dict(leaves(config))[name]
    other = changed(config, name, value)
    names = [entry[0] for entry in difference(config, other)]
    assert name in names and not MAY & set(names)
    before = contents(two_steps[job])
    trainer = training_run.Trainer(new_model(config), config)
    newest = two_steps[job] / "checkpoints" / "step-00000002"
    with pytest.raises(UsageError) as info:
        training_run.restore(trainer, newest, other, Stripes())
    message = str(info.value)
    assert message.startswith(f"this run was started with {names[0]}=") and "choose another --out" in message
    assert "\n" not in message and trainer.step == 0
    assert contents(two_steps[job]) == before


@pytest.mark.parametrize("name", sorted(MAY - {"source"}))
def test_an_option_that_may_change_is_noted(name: str, two_steps) -> None:
    config = tiny("diffusion", "loop.steps=2", "loop.save_every=1")
    other = changed(config, name, dict(leaves(config))[name])
    trainer = training_run.Trainer(new_model(other), other)
    notes = training_run.restore(trainer, two_steps["diffusion"] / "checkpoints" / "step-00000002", other, Stripes())
    said = "done: all 2 steps are trained; --steps above 2 trains on" if trainer.finished else "continuing from step 2"
    assert notes[0] == said and trainer.step == 2
    changes = difference(config, other)
    assert name in [entry[0] for entry in changes] and (len(changes) == 1 or ("diffusion", name) in TOGETHER)
    assert notes[1:] == [f"{dotted}: {old} -> {new}" for dotted, old, new in changes]


def test_train_refuses_another_option_and_leaves_the_run_as_it_was(two_steps) -> None:
    before = contents(two_steps["diffusion"])
    with pytest.raises(UsageError, match=r"started with loop.batch_size=5, you asked for 6"):
        run(tiny("diffusion", "loop.batch_size=6", "loop.steps=4"), two_steps["diffusion"])
    with pytest.raises(UsageError, match="is a diffusion run, not classifier"):
        run(tiny("classifier"), two_steps["diffusion"])
    assert contents(two_steps["diffusion"]) == before


def test_other_images_are_refused(two_steps) -> None:
    with pytest.raises(DataError, match="stripes: the images are not those that this run was started with"):
        run(tiny("diffusion", "loop.steps=4", "loop.save_every=1"), two_steps["diffusion"], dataset=Stripes(noise=21.0))


def test_a_changed_rate_is_applied(two_steps, tmp_path: Path) -> None:
    out = shutil.copytree(two_steps["diffusion"], tmp_path / "run")
    seen = []
    run(tiny("diffusion", "loop.steps=3", "optimizer.lr=0.5"), out, on_progress=lambda p: seen.append(p.result))
    assert [result.lr for result in seen if result] == [0.5]


# ---- the directory --------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once_and_changes_nothing(two_steps, monkeypatch) -> None:
    before = contents(two_steps["classifier"])
    monkeypatch.setattr(training_run.Trainer, "advance", lambda *_: pytest.fail("a step was taken"))
    newest = run(tiny("classifier", "loop.steps=2", "loop.save_every=1"), two_steps["classifier"])
    assert newest == two_steps["classifier"] / "checkpoints" / "step-00000002"
    assert run(tiny("classifier", "loop.steps=1", "loop.save_every=1"), two_steps["classifier"]) == newest
    assert contents(two_steps["classifier"]) == before


def test_a_run_directory_holds_what_the_design_says(two_steps) -> None:
    names = {path.name for path in two_steps["diffusion"].iterdir()}
    assert names == {"config.json", "checkpoints", "log.jsonl", "tensorboard", "samples"}
    assert {p.name for p in (two_steps["diffusion"] / "checkpoints" / "step-00000002").iterdir()} == {
        "MANIFEST.json", "config.json", "model.json", "state.json",
        "ema.safetensors", "model.safetensors", "optimizer.safetensors", "timesteps.safetensors",
    }  # fmt: skip
    assert [p.name for p in (two_steps["diffusion"] / "samples").iterdir()] == ["step-00000002.png"]
    assert read_config(two_steps["diffusion"]) == tiny("diffusion", "loop.steps=2", "loop.save_every=1")
    assert b"pickle" not in b"".join(contents(two_steps["diffusion"] / "checkpoints").values())


def test_a_log_line_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    results = []
    run(tiny("classifier", "loop.log_every=3", "loop.steps=8", "loop.save_every=100"), tmp_path / "run",
        on_progress=lambda p: results.append(p.result))  # fmt: skip
    results = [result for result in results if result]
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 8]
    for line, first, last in zip(lines, (0, 3, 6), (3, 6, 8), strict=True):
        part = results[first:last]
        assert line["loss"] == pytest.approx(sum(r.loss for r in part) / len(part))
        assert line["accuracy"] == pytest.approx(sum(r.terms["accuracy"] for r in part) / len(part))
        assert line["lr"] == part[-1].lr


def test_images_per_second_count_training_alone(tmp_path: Path, monkeypatch) -> None:
    """Of a clock on which a step takes 1 s, and a grid or a checkpoint 1000 s."""
    now = [0.0]
    monkeypatch.setattr("adm.training.runlog.time.monotonic", lambda: now[0])

    def taking(seconds: float, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return function(*args, **kwargs)

        return timed

    monkeypatch.setattr(training_run.Trainer, "advance", taking(1, training_run.Trainer.advance))
    monkeypatch.setattr(training_loop, "preview", taking(1000, training_loop.preview))
    monkeypatch.setattr(training_run.checkpoint_format, "save", taking(1000, training_run.checkpoint_format.save))
    run(tiny("diffusion", "loop.steps=7", "loop.log_every=3", "loop.sample_every=2", "loop.save_every=4"), tmp_path)
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["images_per_second"]) for line in lines] == [(3, 5), (4, 5), (6, 5), (7, 5)]


def test_a_grid_is_made_in_blocks_that_change_nothing_and_its_progress_is_told(monkeypatch) -> None:
    model = new_model(tiny("diffusion", "network.num_classes=none"))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    weights = dict(model.network.state_dict())
    told: list[tuple[int, int]] = []
    whole = training_loop.preview(model, weights, num=9)
    sizes = []
    monkeypatch.setattr("adm.training.preview.PIXELS_AT_ONCE", 4 * 64)
    model.network.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    blocks = training_loop.preview(model, weights, num=9, on_progress=lambda done, total: told.append((done, total)))
    assert np.abs(blocks.astype(int) - whole).max() <= 1 and blocks.shape == (9, 8, 8, 1)
    assert told == sorted(told) and told[-1] == (9, 9) and len({done for done, _ in told}) >= 9
    assert sizes == [4] * 10 + [4] * 10 + [1] * 10


@pytest.mark.parametrize(("classes", "num", "columns"), [(2, 36, 6), (4, 36, 4), (10, 36, 10), (10, 4, 4), (40, 36, 6)])
def test_a_grid_says_the_class_of_each_image_and_few_classes_have_columns(classes: int, num: int, columns: int) -> None:
    """Image k is of class k % classes."""
    model = new_model(tiny("diffusion", f"network.num_classes={classes}"), tuple(f"c{k}" for k in range(classes)))
    images = np.arange(num * 64, dtype=np.uint32).astype(np.uint8).reshape(num, 8, 8, 1)
    picture = with_classes(images, model)
    assert picture.shape[1] == 2 + columns * (64 + 2)
    for k, image in enumerate(images):
        top, left = 2 + k // columns * (64 + STRIP + 2), 2 + k % columns * (64 + 2)
        cell = picture[top : top + 64 + STRIP, left : left + 64]
        np.testing.assert_array_equal(cell[:64:8, ::8], image)
        alone = overview(image[None], [f"c{k % classes}"])
        np.testing.assert_array_equal(cell[64:], alone[-2 - STRIP : -2, 2:-2])
    assert columns % classes == 0 or num < classes or classes > 12


def test_a_grid_of_a_model_without_classes_has_no_captions() -> None:
    model = new_model(tiny("diffusion", "network.num_classes=none"))
    assert with_classes(np.zeros((36, 8, 8, 1), np.uint8), model).shape == (2 + 6 * 66, 2 + 6 * 66, 1)


def test_the_scale_that_a_classifiers_run_advises_comes_with_the_name_of_the_run(tmp_path: Path, monkeypatch) -> None:
    lines = {"lines": ["start with --guidance classifier:classifier=RUN,scale=2 on a model"]}
    measure = Validation.__call__
    monkeypatch.setattr(Validation, "__call__", lambda *args, **kwargs: measure(*args, **kwargs) | lines)
    notes: list[str] = []
    run(tiny("classifier", "loop.steps=1"), tmp_path / "clf", on_progress=lambda progress: notes.extend(progress.notes))
    assert notes == [f"start with --guidance classifier:classifier={tmp_path / 'clf'},scale=2 on a model"]


def test_a_stop_does_not_wait_for_the_grid_which_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    config = tiny("diffusion", "loop.steps=4", "loop.sample_every=2")
    run(config, tmp_path / "whole")
    told: list[int] = []
    with pytest.raises(StoppedError, match="stopped at step 2"):
        train(config, tmp_path / "run", stop_requested=lambda: len(told) >= 3, dataset=Stripes(),
              on_aside=lambda what, done, total: told.append(done))  # fmt: skip
    assert len(told) == 3 and not (tmp_path / "run" / "samples").exists()
    run(config, tmp_path / "run")
    assert contents(tmp_path / "run" / "samples") == contents(tmp_path / "whole" / "samples")


def test_a_large_network_on_a_cpu_makes_a_small_grid() -> None:
    with torch.device("meta"):
        small, large = (
            adm.nn.UNet(adm.nn.UNetConfig(image_size=32, model_channels=width, channel_mult=(1, 2, 2)))
            for width in (64, 192)
        )
    shape = (3, 32, 32)
    for network, num in ((small, 36), (large, 4)):
        model = adm.DiffusionModel(network, adm.cosine(10))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adm.DiffusionModel, "device", torch.device("cpu"))
            assert num_shown(model, shape) == num
            patch.setattr(adm.DiffusionModel, "device", torch.device("cuda"))
            assert num_shown(model, shape) == 36


@pytest.mark.parametrize("then", ["nothing", "a new run"])
def test_a_run_that_is_deleted_under_it_stops_and_writes_nothing_more(then: str, tmp_path: Path) -> None:
    """Also into a directory that somebody has made anew in its place."""
    out = tmp_path / "run"
    after: dict[str, bytes] = {}

    def remove(progress: Any) -> None:
        if progress.step == 3:
            shutil.rmtree(out)
            if then == "a new run":
                run(tiny("classifier", "loop.steps=2", "loop.save_every=1"), out)
            after.update(contents(out))

    with pytest.raises(ResourceError, match=r"run '.*run' was deleted or replaced while pid \d+ was writing to it"):
        run(tiny("diffusion", "loop.steps=9", "loop.save_every=100"), out, on_progress=remove)
    assert contents(out) == after


def test_a_run_whose_place_another_run_holds_names_it(tmp_path: Path) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    started: list[Any] = []

    def replace_it(progress: Any) -> None:
        if progress.step == 1:
            shutil.rmtree(out)
            started.append(start_process(hold, out, marker))
            while not marker.exists():
                assert started[0].is_alive()
                time.sleep(0.01)

    try:
        with pytest.raises(ResourceError) as info:
            run(tiny("diffusion", "loop.steps=9", "loop.log_every=2"), out, on_progress=replace_it)
        assert f"is in use by pid {started[0].pid} on" in str(info.value) and not (out / "log.jsonl").exists()
    finally:
        started[0].kill()
        started[0].join()


@pytest.mark.parametrize("there", ["notes.txt", "config.json"])
def test_a_directory_that_holds_something_else_is_refused_and_left_alone(there: str, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / there).write_text('{"architectures": ["Other"]}')
    with pytest.raises(UsageError, match=r"mine is not empty and holds no run. Choose another --out"):
        run(tiny("diffusion"), out)
    assert contents(out) == {there: b'{"architectures": ["Other"]}'}


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match=r"out is a file. Choose another --out"):
        run(tiny("diffusion"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_directory_or_one_that_only_began_is_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(to_dict(tiny("diffusion", "loop.seed=7"))))
    (tmp_path / "run" / ".lock").write_text("")
    run(tiny("diffusion", "loop.steps=1"), tmp_path / "run")
    assert read_config(tmp_path / "run").loop.seed == 0


def hold(out: Path, marker: Path) -> None:
    """A run that never ends."""

    def wait(progress) -> None:
        marker.touch()
        time.sleep(60)

    run(tiny("classifier"), out, on_progress=wait)


def test_a_second_writer_is_refused_at_once_and_may_write_once_the_first_is_dead(tmp_path: Path) -> None:
    process = start_process(hold, tmp_path / "run", tmp_path / "marker")
    try:
        while not (tmp_path / "marker").exists():
            assert process.is_alive()
            time.sleep(0.01)
        start = time.monotonic()
        with pytest.raises(ResourceError, match=rf"is in use by pid {process.pid} on .* since"):
            run(tiny("classifier"), tmp_path / "run")
        assert time.monotonic() - start < 5
    finally:
        process.kill()
        process.join()
    run(tiny("classifier", "loop.steps=1"), tmp_path / "run")


def test_a_moved_run_loads_and_goes_on(tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=2"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    moved = (tmp_path / "a").rename(tmp_path / "b" / "renamed")
    adm.load(moved)
    run(tiny("diffusion", "loop.steps=3"), moved)
    whole = run(tiny("diffusion", "loop.steps=3"), tmp_path / "whole")
    assert contents(moved / "checkpoints" / "step-00000003") == contents(whole)


# ---- what data a run takes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("channels", 3, "images have 3 channel.s., the network takes 1"),
        ("class_names", (), "no classes; put the images of each class into a folder of its own"),
        ("class_names", ("a", "b", "c"), "3 classes, but network.num_classes is 2"),
        ("labels", np.ones(24, int), "all images are of one class, 'vertical', and leave a classifier nothing"),
    ],
)
def test_data_that_the_network_is_not_made_for_are_refused_before_anything_is_written(
    attribute: str, value: Any, said: str, tmp_path: Path
) -> None:
    data = Stripes()
    setattr(data, attribute, value)
    with pytest.raises(DataError, match=said):
        run(tiny("classifier"), tmp_path / "run", dataset=data)
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="24 images but batch 25"):
        run(tiny("diffusion", "loop.batch_size=25"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the whole run and the world around it --------------------------------------------------------


def test_a_run_leaves_the_global_generators_as_they_were(tmp_path: Path) -> None:
    random.seed(3)
    torch.manual_seed(3)
    before = global_states()
    run(tiny("diffusion", "loop.steps=2", "network.dropout=0.3", "data.workers=1"), tmp_path / "run")
    assert global_states() == before


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 5), ("b", 5), ("c", 2**32 + 5)):
        settings = ("loop.steps=2", f"loop.seed={seed}")
        assert in_new_process(run, tiny("classifier", *settings), tmp_path / name) == 0
        ends.append(contents(tmp_path / name / "checkpoints" / "step-00000002"))
    assert ends[0] == ends[1]
    assert ends[0]["model.safetensors"] != ends[2]["model.safetensors"]


def test_settings_that_cannot_be_are_refused() -> None:
    for setting in ("loop.steps=0", "loop.microbatch=0", "loop.keep=1", "loop.seed=-1", "loop.save_every=0"):
        with pytest.raises(UsageError, match=setting.split("=")[0].split(".")[1]):
            tiny("diffusion", setting)


# ---- what is due besides the checkpoint -----------------------------------------------------------


def measured(out: Path) -> list[tuple[int, bool]]:
    return [(line["step"], line["held_out"]) for line in read_log(out / "validation.jsonl")]


def test_a_stop_during_the_last_measurement_is_no_end_and_the_same_command_makes_it(tmp_path: Path) -> None:
    config = tiny("classifier", "loop.steps=4")
    with pytest.raises(StoppedError, match="step 4, the last, was saved; run the same command for the validation"):
        train(
            config,
            tmp_path,
            stop_requested=lambda: checkpoint_format.steps(tmp_path / "checkpoints") != [],
            dataset=Stripes(),
        )
    assert measured(tmp_path) == []
    train(config, tmp_path, dataset=Stripes())
    assert measured(tmp_path) == [(4, False)]
    before = contents(tmp_path)
    train(config, tmp_path, dataset=Stripes())
    assert contents(tmp_path) == before


def test_held_out_images_named_afterwards_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("classifier", "loop.steps=2")
    run(config, tmp_path)
    monkeypatch.setattr(training_run, "open_held_out", lambda data, channels: Stripes(10) if data.validation else None)
    later = override(config, ["data.validation=others"])
    run(later, tmp_path)
    assert measured(tmp_path) == [(2, False), (2, True)]
    assert read_config(tmp_path) == later


def test_a_picture_that_fails_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("diffusion", "loop.steps=10", "loop.sample_every=5", "loop.save_every=5")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "preview", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    run(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]


@pytest.mark.parametrize("setting", [
    "ema.rate=0.5", "optimizer.anneal_from=0.5", "weight.k=2", "weight.gamma=3", "log_normal.std=2", "data.workers=-1",
    "loop.on_nan=-1", "time_scale=0.5 mean=flow", "weight.kind=p2 loss=vlb", "ema.kind=constant ema.gamma=2",
])  # fmt: skip
def test_a_setting_that_would_do_nothing_or_cannot_be_is_refused(setting: str) -> None:
    name = setting.split("=")[0].replace(".", "|")  # the group, or the setting in it
    with pytest.raises(UsageError, match=name):
        tiny("diffusion", *setting.split())


# ---- steps that are not finite, and the clock -----------------------------------------------------


def with_bad_gradients(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The gradient of these steps, counted from 1, is NaN in one element."""
    original = training_run.Trainer._backward

    def backward(self, *args):
        results = original(self, *args)
        if self.step + 1 in steps:
            next(self.model.network.parameters()).grad.view(-1)[0] = float("nan")
        return results

    monkeypatch.setattr(training_run.Trainer, "_backward", backward)


def test_steps_that_are_not_finite_are_left_out_and_said_when_that_is_allowed(tmp_path, monkeypatch) -> None:
    with_bad_gradients(monkeypatch, {3, 4, 9})
    notes: list[str] = []
    config = tiny("diffusion", "loop.on_nan=2", "loop.steps=12", "loop.log_every=12")
    out = run(config, tmp_path, on_progress=lambda progress: notes.extend(progress.notes))
    state = json.loads((out / "state.json").read_text())
    assert (state["step"], state["skipped"], state["skipped_in_a_row"], state["ema_updates"]) == (12, 3, 0, 9)
    assert [note.split(":")[0] for note in notes if "skipped" in note] == ["step 3", "step 4", "step 9"]
    lines = read_log(tmp_path / "log.jsonl")
    assert sum(line.get("skipped", 0) for line in lines) == 3 and all(math.isfinite(line["loss"]) for line in lines)


def test_one_too_many_in_a_row_ends_the_run(tmp_path, monkeypatch) -> None:
    with_bad_gradients(monkeypatch, {6, 7, 8})
    with pytest.raises(DivergedError, match=r"step 8: not finite.*2 steps before it.*checkpoint is step 5"):
        run(tiny("diffusion", "loop.on_nan=2"), tmp_path)


def test_minutes_end_a_run_and_its_rate_follows_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which each step takes 12 s."""
    now = [0.0]
    original = training_run.Trainer._backward

    def backward(self, *args):
        now[0] += 12
        return original(self, *args)

    monkeypatch.setattr(training_run.Trainer, "_backward", backward)
    monkeypatch.setattr("adm.training.trainer.time.monotonic", lambda: now[0])
    config = tiny("diffusion", "loop.minutes=1", "loop.steps=1000", "loop.log_every=1", "optimizer.anneal=linear")
    with pytest.raises(StoppedError):
        run(config, tmp_path, stop_at=2)
    out = run(config, tmp_path)
    assert out.name == "step-00000005"
    rates = [line["lr"] / config.optimizer.lr for line in read_log(tmp_path / "log.jsonl")]
    assert rates == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    notes: list[str] = []
    assert run(config, tmp_path, on_progress=lambda progress: notes.extend(progress.notes)) == out
    assert notes == ["done: loop.minutes=1 are over, at step 5; more of them train on"]


def test_out_of_memory_names_a_microbatch_and_the_same_command_goes_on_with_it(tmp_path, monkeypatch) -> None:
    whole = run(tiny("diffusion", "loop.steps=4"), tmp_path / "whole")
    config = tiny("diffusion", "loop.steps=4", "loop.save_every=2")
    original = training_run.Trainer.advance

    def advance(self, batch):
        if self.step >= 2 and self.config.loop.microbatch is None:
            raise MemoryError("no more")
        return original(self, batch)

    monkeypatch.setattr(training_run.Trainer, "advance", advance)
    with pytest.raises(ResourceError, match=r"in step 3, with 5 images at once.*loop.microbatch=\d") as info:
        run(config, tmp_path / "run")
    microbatch = re.search(r"loop.microbatch=(\d)", str(info.value))
    assert microbatch is not None and 1 <= int(microbatch[1]) < 5
    out = run(override(config, [microbatch[0]]), tmp_path / "run")
    ours, theirs = (checkpoint_format.load(path).tensors["ema"] for path in (out, whole))
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-3) for name in theirs)  # its biases move by rounding


# ---- what a start does not take for granted -------------------------------------------------------

KEPT = ("ema.snapshot_every=2", "loop.sample_every=none")


@pytest.mark.parametrize("then", ["removed", "emptied"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_left_as_it_is(then: str, tmp_path: Path) -> None:
    config = tiny("diffusion", "loop.steps=4", "loop.save_every=2", *KEPT)
    run(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    if then == "emptied":
        (tmp_path / "checkpoints").mkdir()
    before = contents(tmp_path)
    with pytest.raises(
        DamagedError, match=r"came to step 4 and has no checkpoint. Bring .*checkpoints back, or choose"
    ):
        run(config, tmp_path)
    assert contents(tmp_path) == before and any(name.startswith("snapshots/") for name in before)


def test_a_run_of_one_save_whose_checkpoints_are_gone_is_refused(tmp_path: Path) -> None:
    """What came after that save is there still."""
    run(tiny("diffusion", "loop.steps=2"), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(DamagedError, match="came to step 2 and has no checkpoint"):
        run(tiny("diffusion", "loop.steps=2"), tmp_path)


@pytest.mark.parametrize("at", [3, 4])
def test_a_run_killed_before_or_in_its_first_save_begins_anew(at: int, tmp_path, monkeypatch) -> None:
    """Copies of steps 2 and 4, no checkpoint: killed when the checkpoint of step 4 was to be written, or before."""
    config = tiny("diffusion", "loop.steps=6", "loop.save_every=4", "loop.log_every=1", *KEPT)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        save = training_loop.RunLoop.save if at == 4 else training_loop.RunLoop.advance
        name = save.__name__

        def killed(self, *args):
            if self.trainer.step == at:
                raise KeyboardInterrupt
            return save(self, *args)

        patch.setattr(training_loop.RunLoop, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert checkpoint_format.steps(tmp_path / "run" / "snapshots")[-1] == at // 2 * 2
    notes: list[str] = []
    run(config, tmp_path / "run", on_progress=lambda progress: notes.extend(progress.notes))
    assert notes == [
        f"no checkpoint is there, and none was saved as far as can be seen: its {at} steps are trained anew"
    ]
    for folder in ("checkpoints", "snapshots"):
        assert contents(tmp_path / "run" / folder) == contents(tmp_path / "whole" / folder)


def test_a_start_deletes_no_checkpoint_that_the_newest_one_was_saved_to_keep(tmp_path: Path) -> None:
    """config.json, which says 2 now, has no checksum; the next save, of which a line tells, is early enough."""
    run(tiny("diffusion", "loop.steps=4", "loop.save_every=1", "loop.keep=4"), tmp_path)
    assert checkpoint_format.steps(tmp_path / "checkpoints") == [1, 2, 3, 4]
    run(tiny("diffusion", "loop.steps=4", "loop.save_every=1", "loop.keep=2"), tmp_path)
    assert checkpoint_format.steps(tmp_path / "checkpoints") == [1, 2, 3, 4]
    run(tiny("diffusion", "loop.steps=5", "loop.save_every=1", "loop.keep=2"), tmp_path)
    assert checkpoint_format.steps(tmp_path / "checkpoints") == [4, 5]


def test_a_save_that_reads_back_damaged_says_where_the_same_command_goes_on(tmp_path, monkeypatch) -> None:
    config, save = tiny("diffusion", "loop.steps=4", "loop.save_every=1"), checkpoint_format.save

    def spoiled(directory, **parts):
        save(directory, **parts)
        if directory.name == "step-00000003":
            path = directory / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-1] + b"x")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "save", spoiled)
        with pytest.raises(
            DamagedError, match=r"reads back damaged \(model.safe.*same command again: it goes on from st"
        ):
            run(config, tmp_path)
    notes: list[str] = []
    run(config, tmp_path, on_progress=lambda progress: notes.extend(progress.notes))
    assert "continuing from step 2" in notes


def test_a_disk_of_the_events_alone_that_fails_is_a_note_and_costs_nothing(tmp_path, monkeypatch) -> None:
    """No writer's thread is there to die of it, and the run ends as without."""
    config, open_file, write = tiny("classifier", "loop.steps=4", "loop.log_every=1"), _disk.open_file, _disk.write
    run(config, tmp_path / "whole")
    of_events: list[int] = []

    def opened(path: Path, flags: int) -> int:
        fd = open_file(path, flags)
        of_events[:] = [fd] if "tfevents" in path.name else [other for other in of_events if other != fd]
        return fd

    def full(fd: int, data: Any) -> int:
        if fd in of_events and b"loss" in bytes(data):
            write(fd, bytes(data)[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    counts: list[int] = []
    before = threading.active_count()
    with monkeypatch.context() as patch, pytest.warns(UserWarning) as warned:
        patch.setattr(_disk, "open_file", opened)
        patch.setattr(_disk, "write", full)
        run(config, tmp_path / "run", on_progress=lambda progress: counts.append(threading.active_count()))
    said = [str(warning.message) for warning in warned]
    assert len(said) == 1 and "TensorBoard gets no more of this run" in said[0] and "No space left on device" in said[0]
    assert contents(tmp_path / "run" / "checkpoints") == contents(tmp_path / "whole" / "checkpoints")
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 4
    assert max(counts) <= before + 1  # the one that watches the images


def test_the_events_hold_the_lines_of_the_log(tmp_path: Path) -> None:
    """As TensorBoard's own reader reads them; those of steps done again are hidden."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(StoppedError):
        run(tiny("classifier", "loop.log_every=1"), tmp_path, stop_at=5)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000005")
    (tmp_path / "checkpoints").rmdir()
    for name in ("log.jsonl",):
        (tmp_path / name).unlink()
    run(tiny("classifier", "loop.log_every=1", "loop.steps=7"), tmp_path)
    lines = read_log(tmp_path / "log.jsonl")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [line["step"] for line in lines] == list(range(1, 8))
    assert [event.value for event in events] == pytest.approx([line["loss"] for line in lines])


def test_the_image_that_is_waited_for_is_the_phase_and_nothing_else(tmp_path: Path) -> None:
    said: list[str] = []
    world = type("Said", (), {"phase": lambda self, text: said.append(text), "rank": 1})()
    loop = object.__new__(training_loop.RunLoop)
    loop.world = world
    deep = "/".join(["a folder of many"] * 9)
    for path in ("cat/1.png", f"{deep}/1.png"):
        loop.named(f"image '{path}' of 'photos' has not been read for 120 s, and is waited for: is its disk there?")
    assert said[0] == "image 'cat/1.png'"
    assert len(said[1]) <= 60 and said[1].startswith("image …") and said[1].endswith("many/1.png'")
