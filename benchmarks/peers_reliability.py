"""What is left of a checkpoint after a kill, a flipped bit, a cut, a full disk: here and in two other trainers.

    python benchmarks/peers_reliability.py --guided-diffusion CHECKOUT --edm2 CHECKOUT --trials 100

Each trainer's own code saves and loads: TrainLoop of openai/guided-diffusion (with a process group of one, without
MPI), CheckpointIO of NVlabs/edm2, adm.checkpoints.format here. The state is the same: 24 float32 tensors of
--megabytes in all as model, as average and as each of Adam's two moments; step s has the value s everywhere, so that
what comes back says of itself what it is. What is counted after each fault, when the next start loads what there is:

    right     the newest state that was saved in full, or the one before it
    refused   an error: somebody has to find the intact files by hand
    silent    it loads, and is neither: other numbers, or without its average or its moments

guided-diffusion resumes from the file that it is given: here, that of the highest step; it needs blobfile. EDM2 stores
a dnnlib.EasyDict, which torch.load refuses by default since 2.6, and is read with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adm.checkpoints import format as checkpoint_format

TENSORS = 24


class Trainer(Protocol):
    """A trainer's own way to save and to find what to go on from."""

    name: str

    def save(self, run: Path, step: int, value: float | None = None) -> None: ...

    def resume(self, run: Path) -> list[Tensor]: ...


class Model(nn.Module):
    def __init__(self, numel: int, value: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.full((numel,), value) for _ in range(TENSORS))


def with_state(model: nn.Module, optimizer: torch.optim.Optimizer, value: float) -> None:
    """Adam's moments as if they were those of that step."""
    for p in model.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(value),
            "exp_avg": p.detach().clone(),
            "exp_avg_sq": p.detach().clone(),
        }


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = list(optimizer.state.values()) or [{}]
    return [state.get(key, torch.zeros(1)) for state in states for key in ("exp_avg", "exp_avg_sq")]


# ---- the trainers ---------------------------------------------------------------------------------


class Adm:
    name = "adm"

    def __init__(self, numel: int) -> None:
        self.numel = numel

    def save(self, run: Path, step: int, value: float | None = None) -> None:
        value = float(step if value is None else value)
        group = {f"weights.{i}": torch.full((self.numel,), value) for i in range(TENSORS)}
        adam = {f"{name}.{key}": tensor for name, tensor in group.items() for key in ("exp_avg", "exp_avg_sq")}
        directory = run / checkpoint_format.step_name(step)
        tensors = {"model": group, "ema": group, "optimizer": adam}
        checkpoint_format.save(directory, tensors=tensors, documents={"state": {"step": step}})
        checkpoint_format.retain(run, 2)

    def resume(self, run: Path) -> list[Tensor]:
        newest, _ = checkpoint_format.newest_intact(run)
        if newest is None:
            raise FileNotFoundError("no intact checkpoint")
        loaded = checkpoint_format.load(newest).tensors
        return [tensor for group in ("model", "ema", "optimizer") for tensor in loaded[group].values()]


class GuidedDiffusion:
    name = "guided-diffusion"

    def __init__(self, numel: int, checkout: Path) -> None:
        self.numel = numel
        sys.modules.setdefault("mpi4py", types.ModuleType("mpi4py")).MPI = types.SimpleNamespace(  # type: ignore[attr-defined]
            COMM_WORLD=types.SimpleNamespace(Get_rank=lambda: 0, bcast=lambda value: value, rank=0, size=1)
        )
        if importlib.util.find_spec("blobfile") is None:
            raise SystemExit("guided-diffusion needs blobfile: pip install blobfile")
        sys.path.insert(0, str(checkout))
        from guided_diffusion import dist_util, logger, train_util  # type: ignore[import-not-found]

        alone = types.SimpleNamespace(
            get_world_size=lambda: 1, get_rank=lambda: 0, barrier=lambda: None, broadcast=lambda tensor, rank: None
        )
        train_util.dist = dist_util.dist = alone
        self.logger, self.train_util = logger, train_util

    def loop(self, run: Path, value: float, source: str = "") -> Any:
        self.logger.configure(dir=str(run), format_strs=[])
        return self.train_util.TrainLoop(
            model=Model(self.numel, value), diffusion=types.SimpleNamespace(num_timesteps=10), data=None, batch_size=1,
            microbatch=-1, lr=1e-4, ema_rate="0.9999", log_interval=10, save_interval=10, resume_checkpoint=source,
            schedule_sampler=object(),
        )  # fmt: skip

    def save(self, run: Path, step: int, value: float | None = None) -> None:
        loop = self.loop(run, float(step if value is None else value))
        with_state(loop.model, loop.opt, float(step))
        loop.step = step
        loop.save()

    def resume(self, run: Path) -> list[Tensor]:
        newest = max(run.glob("model*.pt"))
        loop = self.loop(run, 0.0, str(newest))
        return [*loop.model.parameters(), *loop.ema_params[0], *moments(loop.opt)]


class EDM2:
    name = "EDM2"

    def __init__(self, numel: int, checkout: Path) -> None:
        self.numel = numel
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        if importlib.util.find_spec("requests") is None:
            sys.modules["requests"] = types.ModuleType("requests")
        sys.path.insert(0, str(checkout))
        import dnnlib  # type: ignore[import-not-found]
        from torch_utils import distributed  # type: ignore[import-not-found]

        self.dnnlib, self.distributed = dnnlib, distributed

    def parts(self, value: float) -> dict[str, Any]:
        net = Model(self.numel, value)
        optimizer = torch.optim.Adam(net.parameters())
        if value:
            with_state(net, optimizer, value)
        state = self.dnnlib.EasyDict(cur_nimg=int(value) if value == value else 0, total_elapsed_time=0)
        return {"state": state, "net": net, "optimizer": optimizer, "ema": copy.deepcopy(net)}

    def save(self, run: Path, step: int, value: float | None = None) -> None:
        io_ = self.distributed.CheckpointIO(**self.parts(float(step if value is None else value)))
        io_.save(str(run / f"training-state-{step:07d}.pt"), verbose=False)

    def resume(self, run: Path) -> list[Tensor]:
        parts = self.parts(0.0)
        self.distributed.CheckpointIO(**parts).load_latest(str(run), verbose=False)
        return [*parts["net"].parameters(), *parts["ema"].parameters(), *moments(parts["optimizer"])]


# ---- the faults -----------------------------------------------------------------------------------


def outcome(trainer: Trainer, run: Path, may_be: tuple[int, ...] = (1, 2)) -> str:
    """What the next start makes of the directory."""
    try:
        tensors = trainer.resume(run)
    except (Exception, SystemExit):
        return "refused"
    first = tensors[0].flatten()[0].item()
    whole = first in may_be and all(bool((tensor == first).all()) for tensor in tensors)
    return "right" if whole else "silent"


def child(work: Callable[[], object], kill_after: float | None = None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stderr(io.StringIO()):
            work()
            status = 0
        os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def saved(trainer: Trainer, root: Path, *steps: int) -> Iterator[Path]:
    run = Path(tempfile.mkdtemp(dir=root))
    for step in steps:
        assert child(lambda step=step: trainer.save(run, step)) == 0, f"{trainer.name} cannot save"  # type: ignore[misc]
    yield run
    shutil.rmtree(run)


def killed(trainer: Trainer, root: Path, trials: int, rng: random.Random) -> Counter[str]:
    """kill -9 at a random moment of the second save."""
    found: Counter[str] = Counter()
    with saved(trainer, root, 1) as run:
        start = time.monotonic()
        assert child(lambda: trainer.save(run, 2)) == 0
        whole = time.monotonic() - start
    for _ in range(trials):
        with saved(trainer, root, 1) as run:
            child(lambda run=run: trainer.save(run, 2), rng.uniform(0, whole))  # type: ignore[misc]
            found[outcome(trainer, run)] += 1
    return found


def harmed(trainer: Trainer, root: Path, trials: int, rng: random.Random, cut: bool) -> Counter[str]:
    """A flipped bit, or a missing end, in a file of the newest of two checkpoints."""
    found: Counter[str] = Counter()
    with saved(trainer, root, 1) as run:
        older = {path for path in run.rglob("*")}
        assert child(lambda: trainer.save(run, 2)) == 0
        files = sorted(path for path in run.rglob("*") if path.is_file() and path not in older and path.stat().st_size)
        files = [path for path in files if path.suffix in (".pt", ".safetensors", ".json")]
        for _ in range(trials):
            path = rng.choice(files)
            original = path.read_bytes()
            data = bytearray(original)
            if cut:
                del data[rng.randrange(len(data)) :]
            else:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            found[outcome(trainer, run)] += 1
            path.write_bytes(original)
    return found


def disk_full(trainer: Trainer, root: Path, trials: int, rng: random.Random) -> Counter[str]:
    """The second save may write files of so many bytes."""
    found: Counter[str] = Counter()
    for i in range(trials):
        with saved(trainer, root, 1) as run:
            largest = max(path.stat().st_size for path in run.rglob("*") if path.is_file())

            def limited(run: Path = run, size: int = i * largest // trials) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
                trainer.save(run, 2)

            child(limited)
            found[outcome(trainer, run)] += 1
    return found


def not_finite(trainer: Trainer, root: Path, trials: int, rng: random.Random) -> Counter[str]:
    """Weights that are NaN are to be saved: right when they are not on the disk."""
    with saved(trainer, root, 1) as run:
        child(lambda: trainer.save(run, 2, float("nan")))
        return Counter({outcome(trainer, run): 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guided-diffusion", type=Path, metavar="CHECKOUT")
    parser.add_argument("--edm2", type=Path, metavar="CHECKOUT")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=2.0, help="of a model; a checkpoint has four times as much")
    parser.add_argument("--only", help="one of the trainers: what is imported for one cannot be in the way of another")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    numel = int(flags.megabytes * 1e6 / 4 / TENSORS)
    makers: dict[str, Callable[[], Trainer]] = {"adm": lambda: Adm(numel)}
    if flags.guided_diffusion:
        makers["guided-diffusion"] = lambda: GuidedDiffusion(numel, flags.guided_diffusion.resolve())
    if flags.edm2:
        makers["EDM2"] = lambda: EDM2(numel, flags.edm2.resolve())
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {flags.trials} trials")
    faults: dict[str, Callable[..., Counter[str]]] = {
        "killed while saving": killed,
        "a flipped bit": lambda *given: harmed(*given, cut=False),
        "a missing end": lambda *given: harmed(*given, cut=True),
        "files may not grow": disk_full,
        "NaN to be saved": not_finite,
    }
    for name, make in makers.items():
        if flags.only not in (None, name):
            continue
        trainer = make()
        with tempfile.TemporaryDirectory() as root:
            for fault, tried in faults.items():
                found = tried(trainer, Path(root), flags.trials, random.Random(0))
                print(json.dumps({"trainer": name, "fault": fault, **found}), flush=True)


if __name__ == "__main__":
    main()
