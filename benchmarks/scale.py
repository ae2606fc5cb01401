"""What many processes cost where this runs, and how memory and time grow from 1 GPU to 256, on paper.

    python benchmarks/scale.py measure --rounds 5    # steps, exchanges and bytes on this machine
    python benchmarks/scale.py paper                 # memory and time of the paper's models, worked out
    python benchmarks/scale.py paper --tflops 94 --within 200 --between 20 --memory 80 --hop 5e-5

`measure`: the step of one process against its batch, with the line a + b * images through the medians; an all-reduce by
gloo between 2 and 4 processes against its bytes; a training step of 1, 2 and 4 processes, as DDP and exact, with the
bytes that all of them send. On a CPU the processes share its cores, so their steps are no faster. `paper` measures
nothing: its formulas are in docs/scale.md, its constants are the options.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adm.data import Batch
from adm.runtime.config import override
from adm.runtime.device import pick_device
from adm.runtime.distributed import World, join
from adm.training.build import new_model
from adm.training.config import TrainConfig
from adm.training.cost import TrainingCost, largest_batch, training_cost
from adm.training.presets import preset_without_data
from adm.training.trainer import Trainer

MEASURED = "small16"
BATCHES = (2, 4, 8, 16, 32, 64)
MEGABYTES = (0.001, 1, 4, 16, 64)
SIZES = (1, 2, 4)
STEPS = 5
MODELS = (
    *((f"imagenet{size}", job) for size in (64, 128, 256, 512) for job in ("diffusion", "classifier")),
    ("imagenet64-to-256", "upsampler"),
    ("imagenet128-to-512", "upsampler"),
)
TIMED = (MODELS[0], MODELS[4], MODELS[6])
GPUS = (1, 8, 16, 64, 256)
PARTS = ("steps", "exchanges", "training")
USABLE = 0.9
"""Of a GPU's memory."""
BACKWARD = 2 / 3
"""The share of a pass behind which gradients are exchanged."""
MESSAGES = 2
"""Small gathers in a step, of the losses and of whether somebody asked to stop."""
BUCKET = 25 * 2**20
"""Bytes that DistributedDataParallel exchanges at once: the last one has nothing left to hide behind."""
UPDATE = 10
"""How often an update reads or writes a number of each weight: AdamW 7 times, an average 3 times."""


# ---- what is measured ------------------------------------------------------------------------------------------------


def config_of(name: str, batch: int, *settings: str) -> TrainConfig:
    config = preset_without_data(name, "diffusion")
    return override(replace(config, loop=replace(config.loop, batch_size=batch, precision="float32")), settings)


def stepper(config: TrainConfig, device: torch.device, world: World = World()) -> Callable[[], None]:
    """What takes one training step on noise, until the device is done."""
    trainer = Trainer(new_model(config, (), device), config, world)
    share = config.loop.batch_size // world.size
    images = torch.rand(share, config.network.in_channels, *config.network.size) * 2 - 1
    label = torch.arange(share) % (config.network.num_classes or 1)

    def step() -> None:
        trainer.advance(Batch(images, label, torch.arange(share), trainer.position))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def seconds_of(work: Callable[[], Any], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of so many."""
    durations = []
    for _ in range(times):
        started = clock()
        work()
        durations.append(clock() - started)
    return statistics.median(durations)


def measure_steps(name: str, device: torch.device, rounds: int) -> None:
    steppers = {batch: stepper(config_of(name, batch), device) for batch in BATCHES}
    found: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for step in steppers.values():
        step()
    for _ in range(rounds):  # in turns, as machines drift
        for batch, step in steppers.items():
            # On a CPU the time of the processor, of which other work on the machine takes none away.
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            found[batch].append(seconds_of(step, STEPS, clock))
    medians = [statistics.median(found[batch]) for batch in BATCHES]
    slope, start = np.polyfit(BATCHES, medians, 1)
    cost = training_cost(config_of(name, 2))
    print(f"\n| {name}, images a step | " + " | ".join(map(str, BATCHES)) + " |\n|" + "---|" * (len(BATCHES) + 1))
    print("| ms a step | " + " | ".join(f"{1e3 * m:.1f}" for m in medians) + " |")
    print("| of the rounds | " + " | ".join(f"{1e3 * min(v):.1f} to {1e3 * max(v):.1f}" for v in found.values()) + " |")
    print(f"\nline: {1e3 * start:.1f} ms + {1e3 * slope:.2f} ms an image: {cost.step_flops / slope / 1e9:.1f} GFLOP/s")


def measure_exchanges(rounds: int) -> None:
    print("\n| all-reduce by gloo | " + " | ".join(f"{m:g} MB" for m in MEGABYTES) + " | line |")
    print("|" + "---|" * (len(MEGABYTES) + 2))
    for size in SIZES[1:]:
        answers = [run_ranks(size, "exchange")["seconds"] for _ in range(rounds)]
        medians = [statistics.median(column) for column in zip(*answers, strict=True)]
        moved = [2 * (size - 1) / size * 1e6 * m for m in MEGABYTES]  # bytes that each process sends, in a ring
        per_byte, start = np.polyfit(moved, medians, 1)
        cells = " | ".join(f"{1e3 * m:.3g} ms" for m in medians)
        print(f"| {size} processes | {cells} | {1e3 * start:.2g} ms + bytes sent / {1e-9 / per_byte:.2f} GB/s |")


def measure_training(name: str, batch: int, rounds: int) -> None:
    num = training_cost(config_of(name, batch)).num_parameters
    print(f"\n{name}: {num:,} parameters, {4 * num / 1e6:.2f} MB of gradients, {batch} images a step over all\n")
    print("| processes | ms a step, DDP | exact | MB sent a step, DDP | by the formula | exact | by the formula |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        found: dict[str, list[dict[str, float]]] = {"ddp": [], "exact": []}
        for _ in range(rounds):
            for kind, answers in found.items():
                answers.append(run_ranks(size, "train", name, str(batch), kind))
        ms = [f"{1e3 * statistics.median(a['seconds'] for a in answers):.1f}" for answers in found.values()]
        sent = [f"{min(a['bytes'] for a in answers) / 1e6:.2f}" for answers in found.values()]
        formula = [f"{2 * (size - 1) * 4e-6 * num:.2f}", f"{size * (size - 1) * 4e-6 * num:.2f}"]
        print(f"| {size} | {ms[0]} | {ms[1]} | {sent[0]} | {formula[0]} | {sent[1]} | {formula[1]} |")


def run_ranks(size: int, *words: str) -> Any:
    """What process 0 of so many answers; each is this script again, started as torchrun would."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "rank", str(Path(folder) / "answer"), *words]
        ranks = [
            subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)
        ]
        if any([rank.wait() for rank in ranks]):
            sys.exit("a process failed: read what it said")
        return json.loads((Path(folder) / "answer").read_text())


def rank_main(answer: str, what: str, *words: str) -> None:
    """What one of several processes does."""
    torch.set_num_threads(1)
    with join() as world:
        measured = exchange(world) if what == "exchange" else train(world, words[0], int(words[1]), words[2] == "exact")
        if world.rank == 0:
            Path(answer).write_text(json.dumps(measured))


def exchange(world: World) -> dict[str, list[float]]:
    from torch import distributed

    seconds = []
    for megabytes in MEGABYTES:
        tensor = torch.zeros(max(1, round(megabytes * 1e6 / 4)))

        def all_reduce(tensor: torch.Tensor = tensor) -> None:
            distributed.all_reduce(tensor)

        all_reduce()
        world.wait("the others")
        seconds.append(seconds_of(all_reduce, 10 if megabytes > 1 else 50))
    return {"seconds": seconds}


def train(world: World, name: str, batch: int, exact: bool) -> dict[str, float]:
    settings = ("loop.exact=true", f"loop.microbatch={batch // max(SIZES)}") if exact else ()
    step = stepper(config_of(name, batch, *settings), torch.device("cpu"), world)
    step()
    world.wait("the others")
    before = written_bytes()
    seconds = seconds_of(step, STEPS)
    own = torch.tensor([written_bytes() - before], dtype=torch.int64)
    return {"seconds": seconds, "bytes": int(world.all_gather(own).sum()) / STEPS}


def written_bytes() -> int:
    """By this process, to sockets and files; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


# ---- what is worked out ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """tflops: that a GPU sustains in training; memory: bytes of one; hbm, within, between: bytes a second of its
    memory, and of a ring of GPUs in a machine of `per_machine` and through more of them; hop: seconds of a message.
    """

    tflops: float
    memory: float
    hbm: float
    within: float
    between: float
    hop: float
    per_machine: int

    def ring(self, gpus: int) -> float:
        return self.within if gpus <= self.per_machine else self.between


def print_memory(machine: Machine) -> None:
    usable = int(USABLE * machine.memory)
    print(
        "\n| GB on each GPU | M parameters | weights | gradients | AdamW | EMA | sum | an image more |",
        end="",
    )
    print(f" images at once in {machine.memory / 1e9:.0f} GB | with recomputing | checkpoint |\n|" + "---|" * 11)
    for name, job in MODELS:
        config = preset_without_data(name, job)
        again = override(config, ["network.checkpoint_blocks=true"])
        cost = cost_of(config, 1)
        parts = (cost.weights, cost.gradients, cost.optimizer, cost.ema)
        cells = [f"{cost.num_parameters / 1e6:.0f}", *(f"{part / 1e9:.2f}" for part in (*parts, sum(parts)))]
        cells.append(f"{(cost_of(config, 16).peak - cost_of(config, 8).peak) / 8e9:.2f}")
        cells += [f"{largest_batch(each, usable):,}" for each in (config, again)]
        print(f"| {name} {job} | {' | '.join(cells)} | {cost.checkpoint / 1e9:.1f} |", flush=True)


def cost_of(config: TrainConfig, images: int) -> TrainingCost:
    return training_cost(override(config, [f"loop.batch_size={images}", "loop.microbatch=none"]))


def print_time(machine: Machine, name: str, job: str) -> None:
    config = preset_without_data(name, job)
    batch, cost = config.loop.batch_size, cost_of(config, 1)
    at_once = largest_batch(config, int(USABLE * machine.memory))
    print(f"\n{name} {job}: batch {batch}, {config.loop.steps:,} steps, {cost.step_flops / 1e12:.2f} TFLOPs an image\n")
    print("| GPUs | images each | passes | compute | exchange | of it not hidden | update | messages | step |", end="")
    print(" without overlap | efficiency | days |\n|" + "---|" * 12)
    alone = 0.0
    for gpus in (n for n in GPUS if batch % n == 0):
        share = batch // gpus
        passes = -(-share // at_once)
        compute = share * cost.step_flops / (1e12 * machine.tflops)
        exchange = 2 * (gpus - 1) / gpus * cost.gradients / machine.ring(gpus)
        hidden = compute / passes * BACKWARD
        exposed = 0.0 if gpus == 1 else max(exchange - hidden, exchange * min(1.0, BUCKET / cost.gradients))
        update = UPDATE * cost.weights / machine.hbm
        messages = MESSAGES * (gpus - 1) * machine.hop
        step = compute + exposed + update + messages
        alone = alone or step * gpus
        times = (compute, exchange, exposed, update, messages, step, step - exposed + exchange)
        cells = [*map(str, (gpus, share, passes)), *map(ms, times)]
        cells += [f"{alone / (gpus * step):.0%}", f"{step * config.loop.steps / 86400:,.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def ms(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.0f} ms"
        if seconds >= 0.01
        else f"{1e3 * seconds:.1f} ms"
    )


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        rank_main(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="How training grows with the number of processes")
    parser.add_argument("what", choices=["measure", "paper"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure: which")
    parser.add_argument("--device", default="cpu", help="of the steps of one process")
    parser.add_argument("--model", default=MEASURED, help="measure: the preset")
    parser.add_argument("--tflops", type=float, default=94, help="paper: that a GPU sustains")
    parser.add_argument("--memory", type=float, default=80, help="paper: GB of a GPU")
    parser.add_argument("--hbm", type=float, default=1500, help="paper: GB/s of its memory")
    parser.add_argument("--within", type=float, default=200, help="paper: GB/s of a ring within a machine")
    parser.add_argument("--between", type=float, default=20, help="paper: GB/s of a ring through machines")
    parser.add_argument("--hop", type=float, default=5e-5, help="paper: seconds of a small message to the next process")
    parser.add_argument("--per-machine", type=int, default=8)
    given = parser.parse_args()
    if given.what == "paper":
        rates = (1e9 * given.memory, 1e9 * given.hbm, 1e9 * given.within, 1e9 * given.between)
        machine = Machine(given.tflops, *rates, given.hop, given.per_machine)
        print_memory(machine)
        for name, job in TIMED:
            print_time(machine, name, job)
        return
    device = pick_device(given.device)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread a process")
    if "steps" in given.parts:
        measure_steps(given.model, device, given.rounds)
    if "exchanges" in given.parts:
        measure_exchanges(given.rounds)
    if "training" in given.parts:
        measure_training(given.model, 32, given.rounds)


if __name__ == "__main__":
    main()
