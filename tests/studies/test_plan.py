"""The plan of a machine whose speed and memory are known, and of this one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import adm.studies.plan as planning
from adm.data import open_dataset
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import override
from adm.runtime.distributed import World
from adm.runtime.errors import DataError, UsageError
from adm.studies import _plan_probe, _plan_sampling
from adm.studies._plan_probe import Probe, ProbeFailed, probe_training
from adm.studies._plan_text import duration, sampling_text, training_text
from adm.studies._plan_time import evaluations
from adm.studies.plan import TrainingPlan, headline, plan_training
from adm.training.build import new_model
from adm.training.config import ClassifierTraining, DataConfig, DiffusionTraining, LoopConfig, TrainConfig
from adm.training.cost import training_cost
from adm.training.run import make_validation, train
from conftest import write_folder

CPU = torch.device("cpu")
CONFIG = DiffusionTraining(
    "diffusion",
    DataConfig("none"),
    UNetConfig(
        image_size=8,
        in_channels=1,
        out_channels=2,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=16,
    ),
    loop=LoopConfig(steps=100, batch_size=64, save_every=30, sample_every=50),
)


@dataclass
class Machine:
    """Takes base + slope bytes for what shapes say, and start + per_image seconds; has so much memory."""

    memory: int
    base: int = 200_000_000
    slope: float = 1.25
    start: float = 0.002
    per_image: float = 0.001

    def bytes_of(self, config: TrainConfig) -> int:
        return round(self.base + self.slope * training_cost(config).peak)

    def seconds_of(self, batch: int) -> float:
        return self.start + self.per_image * batch

    def probe(self, config: TrainConfig, device: Any, limit: float, out: Any = None, extras: bool = False) -> Probe:
        taken, batch = self.bytes_of(config), config.loop.batch_size
        if taken > self.memory:
            raise ProbeFailed("not enough", out_of_memory=True)
        beside = {"grid_seconds": 7.0, "save_seconds": 0.5, "validation_seconds": 0.125} if extras else {}
        return Probe(batch, self.seconds_of(batch), 5, taken, taken, 3.0, **beside)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(memory=10**10)
    monkeypatch.setattr(planning, "probe_training", found.probe)
    monkeypatch.setattr(planning, "memory_left", lambda device: found.memory)
    return found


def test_a_step_that_can_be_tried_whole_is_measured_whole(machine: Machine) -> None:
    plan = plan_training(CONFIG, CPU)
    assert plan.step_seconds == machine.seconds_of(64)
    assert plan.memory == machine.bytes_of(CONFIG)
    assert plan.images_per_second == pytest.approx(64 / 0.066)
    # 100 steps; checkpoints after 30, 60, 90, 100; grids after 50 and 100.
    assert plan.parts == pytest.approx(
        {"starting": 3.0, "steps": 6.6, "reading images": 0.0, "checkpoints": 2.0, "sample grids": 14.0}
    )


def test_the_largest_batch_is_the_last_that_the_machine_can_do(machine: Machine) -> None:
    machine.memory = 500_000_000
    plan = plan_training(CONFIG, CPU)
    assert plan.fits == 64 and plan.largest is not None

    def takes(batch: int) -> int:
        return machine.bytes_of(replace(CONFIG, loop=replace(CONFIG.loop, batch_size=batch)))

    usable = 0.9 * machine.memory
    assert takes(plan.largest) <= usable < takes(plan.largest + 1)


def test_a_batch_that_is_too_much_at_once_gets_the_microbatch_that_fits(machine: Machine) -> None:
    machine.base, machine.memory = 0, 100_000_000
    config = override(CONFIG, ["loop.batch_size=1000"])
    assert machine.bytes_of(config) > machine.memory
    plan = plan_training(config, CPU)
    assert plan.fits is not None and 1 < plan.fits < 1000
    apart = replace(config, loop=replace(config.loop, microbatch=plan.fits))
    assert machine.bytes_of(apart) <= 0.9 * machine.memory
    passes = -(-1000 // plan.fits)
    fewer = replace(config, loop=replace(config.loop, microbatch=-(-1000 // (passes - 1))))
    assert machine.bytes_of(fewer) > 0.9 * machine.memory
    assert plan.memory == pytest.approx(machine.bytes_of(apart), rel=0.01)
    assert f"--set loop.microbatch={plan.fits}" in training_text(plan)


def test_a_step_that_would_take_minutes_is_scaled_from_what_a_minute_allows(machine: Machine) -> None:
    machine.per_image = 0.5
    plan = plan_training(CONFIG, CPU)
    assert plan.step_seconds == pytest.approx(machine.seconds_of(64), rel=0.01)
    assert plan.memory == pytest.approx(machine.bytes_of(CONFIG), rel=0.01)
    assert plan.probe is not None and plan.probe.images < 64 and "scaled from steps" in plan.notes[0]


def test_no_step_is_tried_where_not_one_image_fits_and_without_probe_none_at_all(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Probe:
        raise AssertionError("a step was tried")

    monkeypatch.setattr(planning, "probe_training", never)
    assert plan_training(CONFIG, CPU, probe=False).step_seconds is None
    machine.memory = 100_000
    plan = plan_training(CONFIG, CPU)
    assert plan.fits is None and "no step was tried" in plan.notes[0] and "100 kB left" in plan.notes[0]
    assert "not even one image" in training_text(plan)


def test_training_by_the_clock_takes_the_clock(machine: Machine) -> None:
    plan = plan_training(override(CONFIG, ["loop.minutes=0.05", "loop.steps=100000"]), CPU)
    assert plan.parts["steps"] == pytest.approx(3.0, abs=0.066)


def test_of_several_processes_each_is_planned_with_its_share(machine: Machine) -> None:
    many, alone = plan_training(CONFIG, CPU, processes=4), plan_training(override(CONFIG, ["loop.batch_size=16"]), CPU)
    assert (many.memory, many.fits, many.largest) == (alone.memory, alone.fits, alone.largest) and many.fits == 16
    assert many.step_seconds == alone.step_seconds and many.parts == alone.parts
    assert many.images_per_second == pytest.approx(64 / machine.seconds_of(16))  # of all together
    assert many.cost == training_cost(CONFIG, 4) and many.disk == plan_training(CONFIG, CPU, probe=False).disk
    text = training_text(many)
    assert "4 processes" in text and "memory of each measured" in text and "batch 64" in text
    assert "each of 4 processes takes 16 image(s) of a step" in text and "memory of each" not in training_text(alone)
    for wrong in (0, 3, 128):
        with pytest.raises(UsageError, match=f"--processes {wrong}: a batch of 64 does not split"):
            plan_training(CONFIG, CPU, processes=wrong)


class Total(Exception):
    """Of the evaluations of a measurement that begins."""


CLASSIFIER = ClassifierTraining(
    "classifier",
    DataConfig("digits"),
    ClassifierConfig(
        image_size=8,
        in_channels=1,
        num_classes=10,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_head_channels=16,
    ),
    loop=CONFIG.loop,
)


@pytest.mark.parametrize(
    ("config", "validation", "times"),
    [
        (CONFIG, "digits:test", 4),  # held out, fewer than are measured at most
        (CONFIG, "digits:train", 4),  # the training images themselves
        (CLASSIFIER, "digits:test", 4),
        (CLASSIFIER, None, 1),  # a few training images, at the end
    ],
)
def test_the_images_of_a_validation_are_those_that_it_will_evaluate(
    config: TrainConfig, validation: str | None, times: int, machine: Machine
) -> None:
    config = override(config, ["loop.validate_every=25"])
    config = replace(config, data=DataConfig("digits", validation=validation))
    dataset = open_dataset("digits")
    measured = make_validation(config, dataset, World())
    assert measured is not None

    def report(done: int, total: int) -> None:
        raise Total(total)

    model = new_model(config, dataset.class_names)
    with pytest.raises(Total) as error:
        measured(model, dict(model.network.named_parameters()), report)
    parts = plan_training(config, CPU, dataset).parts
    assert parts["validation"] == pytest.approx(times * error.value.args[0] * 0.125)


def test_validation_data_that_are_not_there_or_do_not_fit_are_said_before_anything_is_tried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning, "probe_training", lambda *_, **__: pytest.fail("a step was tried"))
    with pytest.raises(DataError, match="no such folder"):
        plan_training(override(CONFIG, ["data.validation=gone"]), CPU, open_dataset("digits"))
    config = override(
        CONFIG, ["network.num_classes=10", f"data.validation={write_folder(tmp_path, (8, 8), ('zebra',))}"]
    )
    with pytest.raises(DataError, match="the model knows no class 'zebra'"):
        evaluations(config, open_dataset("digits"))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (["loop.batch_size=5000"], DataError, "images but batch 5000"),
        (["loop.exact=true", "loop.microbatch=3"], UsageError, "does not split into microbatches of 3"),
        (["network.in_channels=3", "network.out_channels=6"], DataError, "the network takes 3"),
    ],
)
def test_what_the_run_would_refuse_is_not_planned(settings: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        plan_training(override(CONFIG, settings), CPU, open_dataset("digits"), probe=False)


def test_disk_is_what_stays_one_being_written_and_the_snapshots() -> None:
    config = override(CONFIG, ["loop.keep=2", "ema.snapshot_every=25", "ema.others=16.97"])
    plan = plan_training(config, CPU, probe=False)
    assert plan.disk == 3 * plan.cost.checkpoint + 4 * 2 * plan.cost.weights
    plan = plan_training(override(config, ["loop.steps=110"]), CPU, probe=False)  # the last step is one too
    assert plan.disk == 3 * plan.cost.checkpoint + 5 * 2 * plan.cost.weights


def test_the_headline_says_what_each_process_needs() -> None:
    config = override(CONFIG, ["network.num_classes=10"])
    first, second = headline(config, CPU, 2)
    cost = training_cost(config, 2)
    assert first == (
        f"diffusion: 8x8, 1 channel(s), 10 classes, {cost.num_parameters / 1e6:.2f}M parameters, batch 64, 100 steps, "
        "learning rate 0.0003, on cpu, 2 processes"
    )
    assert "with 32 image(s) at once" in second and "a checkpoint" in second
    dropping = override(config, ["label_dropout=0.1"])
    assert headline(dropping, CPU)[0].endswith("learning rate 0.0003, label dropout 0.1, on cpu")
    assert "dropout" not in headline(override(dropping, ["network.num_classes=none"]), CPU)[0]  # no labels to drop


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0123, "12.3 ms"), (3.44, "3.44 s"), (300, "5 min"), (7800, "2 h 10 min"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_probe_measures_this_machine_in_another_process(tmp_path: Path) -> None:
    config = override(CONFIG, ["loop.batch_size=8", "data.validation=some"])
    probe = probe_training(config, CPU, 3.0, tmp_path / "not yet" / "run", extras=True)
    assert probe.images == 8 and 1 <= probe.num_steps <= 5
    assert min(probe.step_seconds, probe.grid_seconds, probe.save_seconds, probe.validation_seconds) > 0
    assert probe.peak is not None and probe.peak > training_cost(config).peak
    assert list(tmp_path.iterdir()) == []
    of_classifier = probe_training(override(CLASSIFIER, ["loop.batch_size=100"]), CPU, 0.0, tmp_path, extras=True)
    assert of_classifier.validation_seconds > 0  # it is measured at its end whatever the data


def test_a_probe_that_dies_or_fails_is_told_from_one_that_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(program: str) -> ProbeFailed:
        def command(*_: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
            return real([sys.executable, "-c", program], **kwargs)

        real = subprocess.run
        with monkeypatch.context() as patch, pytest.raises(ProbeFailed) as caught:
            patch.setattr(_plan_probe.subprocess, "run", command)
            probe_training(CONFIG, CPU, 1.0)
        return caught.value

    killed = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.out_of_memory and "killed" in str(killed)
    short = run('print(\'{"failed": "OutOfMemoryError: no", "out_of_memory": true}\')')
    assert short.out_of_memory
    other = run("raise ValueError('something else')")
    assert not other.out_of_memory and str(other) == "ValueError: something else"


def test_a_sampling_plan_of_a_known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(words: Any, images: int, device: Any, limit: float) -> Probe:
        taken = 3_000_000_000 + 50_000_000 * images
        return Probe(images, 0.01 + 0.002 * images, 5, taken, taken, 4.0)

    monkeypatch.setattr(_plan_sampling, "probe_sampling", probe)
    monkeypatch.setattr(_plan_sampling, "memory_left", lambda device: 10_000_000_000)
    plan = _plan_sampling.plan_sampling("openai/imagenet64", 100, 25, "ddim", ["classifier"], CPU, 32)
    step = 0.01 + 0.002 * 32
    # 4 batches, the last filled up.
    assert plan.steps == 25 and plan.seconds == pytest.approx(4.0 + 4 * 25 * step)
    assert plan.largest == (9_000_000_000 - 3_000_000_000) // 50_000_000
    assert [cost.num_parameters for cost in plan.costs] == [295_904_454, 65_438_568]
    text = sampling_text(plan, "openai/imagenet64")
    assert "openai/imagenet64, openai/imagenet64-classifier not on this machine" in text and "up to about 120" in text


REAL = """
import json, sys, time
import torch
from pathlib import Path
from adm.runtime.memory import peak_bytes
from adm.training.config import parse_config
from adm.data import open_dataset
from adm.studies.plan import headline
from adm.training.run import train
config = parse_config(json.load(open(sys.argv[1])), "it")
headline(config, torch.device("cpu"))  # as the command does
ends = []
train(config, Path(sys.argv[2]), "cpu", lambda progress: ends.append((progress.step, time.monotonic())))
times = sorted(b[1] - a[1] for a, b in zip(ends[3:], ends[4:]))
print(json.dumps([peak_bytes(), times[len(times) // 2]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 64])
def test_what_then_happens_is_within_a_fifth(width: int, tmp_path: Path) -> None:
    """Plan and run in turns, since the speed of a shared machine drifts."""
    from adm.data import open_dataset
    from adm.runtime.config import to_dict

    config = override(CONFIG, [f"network.model_channels={width}", "loop.steps=12", "loop.sample_every=none"])
    config = replace(config, data=DataConfig("digits"))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    memory, speed = [], []
    for turn in range(3):
        plan = plan_training(config, CPU, open_dataset("digits"), tmp_path)
        words = [sys.executable, "-c", REAL, str(tmp_path / "config.json"), str(tmp_path / f"run-{turn}")]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
        peak, seconds = json.loads(done.stdout.splitlines()[-1])
        assert plan.memory is not None and plan.step_seconds is not None
        memory.append(plan.memory / peak)
        speed.append(plan.step_seconds / seconds)
    print(width, memory, speed)
    assert 0.8 < statistics.median(memory) < 1.2
    assert 0.8 < statistics.median(speed) < 1.25
    assert isinstance(plan, TrainingPlan) and callable(train)
