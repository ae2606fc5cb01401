"""What `adm plan` says against what then happens: memory and time, of training and sampling, in turns.

    python benchmarks/plan.py --rounds 3 --device cpu

For each configuration and round a plan is made, and then a run of a few steps in a process of its own, whose memory at
its largest and whose median step are taken; of sampling, the memory, and the seconds of the whole set. Prints the
ratios plan / run: the median over the rounds and their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adm.checkpoints.load import save_model
from adm.data import open_dataset
from adm.runtime.config import override, to_dict
from adm.runtime.device import pick_device
from adm.studies._plan_sampling import plan_sampling
from adm.studies.plan import plan_training
from adm.training.build import new_model
from adm.training.config import TrainConfig
from adm.training.cost import training_cost
from adm.training.presets import preset_config, preset_without_data

CONFIGS = [
    ("digits8", "diffusion", 64, []),
    ("digits8", "classifier", 256, []),
    ("digits8", "diffusion", 32, ["network.model_channels=64", "network.checkpoint_blocks=true"]),
    ("grey28", "diffusion", 16, []),
    ("cifar32", "diffusion", 8, ["loop.precision=float32"]),
    ("cifar16-to-32", "upsampler", 16, ["loop.microbatch=4", "loop.precision=float32"]),
]
ON_CUDA = [
    ("cifar32", "diffusion", 512, []),
    ("imagenet64", "diffusion", 64, []),
    ("imagenet256", "diffusion", 16, ["network.checkpoint_blocks=true"]),
    ("imagenet256", "classifier", 64, []),
]
SAMPLING = [
    ("grey28", 48, ["--steps", "20", "--sampler", "ddim"]),
    ("cifar32", 8, ["--steps", "10", "--sampler", "ddpm"]),
]
SAMPLING_ON_CUDA = [("cifar32", 512, ["--steps", "100"]), ("imagenet256", 32, ["--steps", "50"])]
STEPS = 10
RUN = """
import json, sys, time
from pathlib import Path
import torch
from adm.runtime.memory import peak_bytes
from adm.training.config import parse_config
from adm.studies.plan import headline
from adm.training.run import train
config = parse_config(json.load(open(sys.argv[1])), "it")
device = torch.device(sys.argv[3])
headline(config, device)  # as the command does
ends = []
train(config, Path(sys.argv[2]), device, lambda progress: ends.append((progress.step, time.monotonic())))
times = sorted(after[1] - before[1] for before, after in zip(ends[3:], ends[4:]) if after[0] > before[0])
peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
print(json.dumps([peak, times[len(times) // 2]]))
"""


DRAW = """
import json, sys, time
import torch
import adm.studies.generate
from adm.cli.main import main
from adm.runtime.memory import peak_bytes
began = time.monotonic()
assert main(sys.argv[1:]) in (0, None)
cuda = "cuda" in sys.argv[sys.argv.index("--device") + 1]
print(json.dumps([torch.cuda.max_memory_allocated() if cuda else peak_bytes(), time.monotonic() - began]))
"""


def images(folder: Path, side: int, channels: int) -> str:
    """A folder of noise in two classes."""
    rng = np.random.RandomState(0)
    for k in range(600):
        path = folder / str(side) / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (side, side, 3) if channels == 3 else (side, side)
        Image.fromarray(rng.randint(0, 256, shape, np.uint8)).save(path)
    return str(folder / str(side))


def config_of(name: str, job: str, batch: int, settings: list[str], folder: Path) -> TrainConfig:
    side = preset_without_data(name, job).network.size[0]
    path = "digits" if name == "digits8" else images(folder, side, 1 if name == "grey28" else 3)
    config = preset_config(name, job, path, open_dataset(path))
    loop = replace(config.loop, steps=STEPS, batch_size=batch, sample_every=None)
    return override(replace(config, loop=loop), settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of configurations, from 0")
    given = parser.parse_args()
    device = pick_device(given.device)
    known = ON_CUDA if device.type == "cuda" else CONFIGS
    draws = SAMPLING_ON_CUDA if device.type == "cuda" else SAMPLING
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    print("| run | memory by shapes | planned | taken | ratio | step planned | taken | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(len(known)) if given.only is None else given.only:
        name, job, batch, settings = known[number]
        with tempfile.TemporaryDirectory() as folder:
            print(
                row(config_of(name, job, batch, settings, Path(folder)), device, given.rounds, Path(folder), name),
                flush=True,
            )
    print("\n| sampling | planned | taken | ratio | all planned | taken | ratio |\n|---|---|---|---|---|---|---|")
    for name, num, flags in draws:
        with tempfile.TemporaryDirectory() as folder:
            print(sampling_row(name, num, flags, device, given.rounds, Path(folder)), flush=True)


def sampling_row(name: str, num: int, flags: list[str], device: torch.device, rounds: int, folder: Path) -> str:
    """An untrained model of a preset, which costs what a trained one does."""
    save_model(new_model(preset_without_data(name, "diffusion"), (), torch.device("cpu")), folder / "model")
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    planned, taken = [], []
    for turn in range(rounds):
        plan = plan_sampling(
            str(folder / "model"), num, told["--steps"], told.get("--sampler", "ddpm"), (), device, batch_size=64
        )
        assert plan.memory is not None and plan.seconds is not None, plan.notes
        planned.append((plan.memory, plan.seconds))
        command = [sys.executable, "-c", DRAW, "sample", str(folder / "model"), "--out", str(folder / f"{turn}.npz")]
        command += ["--num", str(num), "--device", str(device), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken.append(json.loads(done.stdout.splitlines()[-1]))
    return cells([f"{name}, {num} images, {' '.join(flags)}"], planned, taken, "s", 1)


def row(config: TrainConfig, device: torch.device, rounds: int, folder: Path, name: str) -> str:
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    planned, taken = [], []
    for turn in range(rounds):
        plan = plan_training(config, device, open_dataset(config.data.path), folder)
        assert plan.memory is not None and plan.step_seconds is not None, plan.notes
        planned.append((plan.memory, plan.step_seconds))
        command = [sys.executable, "-c", RUN, str(folder / "config.json"), str(folder / f"run-{turn}"), str(device)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken.append(json.loads(done.stdout.splitlines()[-1]))
    first = [f"{name} {config.job}, batch {config.loop.batch_size}", f"{training_cost(config).peak / 1e6:.0f} MB"]
    return cells(first, planned, taken, "ms", 1e3)


def cells(first: list[str], planned: list[Any], taken: list[Any], time_unit: str, scale_of_time: float) -> str:
    """A row of the table: bytes and seconds, as planned and as taken, and their ratios."""
    found = list(first)
    for what, unit, scale in ((0, "MB", 1e-6), (1, time_unit, scale_of_time)):
        ratios = sorted(p[what] / t[what] for p, t in zip(planned, taken, strict=True))
        found += [f"{statistics.median(pair[what] for pair in side) * scale:.4g} {unit}" for side in (planned, taken)]
        found.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return f"| {' | '.join(found)} |"


if __name__ == "__main__":
    main()
