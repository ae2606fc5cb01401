"""Many processes share the work without a gap, and a single one knows nothing of it."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch

from adm.runtime._launch import find_launch
from adm.runtime.distributed import World, join
from processes import Job, run_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("num", [0, 1, 31, 32, 33, 1000])
@pytest.mark.parametrize("block", [1, 32])
def test_shares_are_the_whole_once_in_order_and_cut_at_blocks(size: int, num: int, block: int) -> None:
    shares = [World(rank, size).share(num, block) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(num))
    assert all(share.start % block == 0 for share in shares if len(share))
    assert shares == World(0, size).shares(num, block)
    blocks = [-(-len(share) // block) for share in shares]
    assert max(blocks) - min(blocks) <= 1  # nobody waits for one who has more


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_single_process_never_touches_torch_distributed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join() as world:
        assert world == World(0, 1) and not torch.distributed.is_initialized()
        rows = torch.arange(6.0).reshape(3, 2)
        assert world.gather(rows, [3]) is not None and torch.equal(world.all_gather(rows), rows)
        world.phase("step 1")
        world.wait("nobody")
        world.agree("data", "a")
        assert world.any(True) and not world.any(False) and world.from_first("a") == "a"
        network = torch.nn.Linear(1, 1)
        assert world.replicate(network, torch.device("cpu")) is network
        with world.microbatch(network, last=False):
            network(torch.ones(1, 1)).backward()
        assert not torch.distributed.is_initialized()


GATHERING = """
import torch
from adm.runtime.distributed import join
with join() as world:
    share = world.share(10, 3)
    rows = torch.tensor([[i, i * i] for i in share], dtype=torch.float64).reshape(-1, 2)
    whole = world.gather(rows, [len(part) for part in world.shares(10, 3)])
    if world.rank == 0:
        print(whole[:, 1].tolist())
    else:
        assert whole is None
    for dtype in (torch.float64, torch.float32, torch.int64, torch.uint8):
        own = torch.arange(6).reshape(2, 3).to(dtype) + 10 * world.rank
        alone = [torch.arange(6).reshape(2, 3).to(dtype) + 10 * rank for rank in range(world.size)]
        assert torch.equal(world.all_gather(own), torch.cat(alone))
    assert world.any(world.rank == 1) and not world.any(False)
    for text in ("", "step 77, naïve", "x" * 100_000):
        assert world.from_first(text if world.rank == 0 else None) == text
    world.agree("data", "the same")
    assert world.lines()[1].startswith("process 1 of 3 on ") and world.lines()[1].endswith(", cpu")
    world.wait("all")
"""


def test_what_three_processes_give_arrives_in_order() -> None:
    first, *others = run_ranks(GATHERING, 3)
    assert first.stdout.strip() == str([float(i * i) for i in range(10)]), first.stderr
    assert all(p.returncode == 0 and not p.stderr for p in (first, *others)), [p.stderr for p in others]


UNCHANGED = """
import os
before = dict(os.environ)
from adm.runtime.distributed import join
with join() as world:
    print(sum(world.all_gather(__import__("torch").tensor([1, world.rank])).tolist()), world.local_rank)
assert dict(os.environ) == before
"""


def slurm_environments(size: int) -> list[dict[str, str]]:
    """What srun sets, as far as it is needed, by rank; the job's number is one that nobody else has at the moment."""
    with socket.socket() as unique:
        unique.bind(("127.0.0.1", 0))
        job = str(unique.getsockname()[1])
    shared = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(size), "SLURM_JOB_NODELIST": "localhost"}
    return [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(size)]


def test_torchrun_and_srun_start_the_same_program_and_its_environment_stays_as_it_was() -> None:
    for environments in (None, slurm_environments(2)):
        done = run_ranks(UNCHANGED, 2, environments=environments)
        assert [p.stdout.split() for p in done] == [["3", "0"], ["3", "1"]], [p.stderr for p in done]
        assert [p.returncode for p in done] == [0, 0]


def test_a_slurm_job_goes_to_its_next_port_when_another_program_has_the_first() -> None:
    environments = slurm_environments(2)
    launch = find_launch(environments[0])
    assert launch is not None
    with socket.create_server(("127.0.0.1", launch.ports[0])):
        done = run_ranks(UNCHANGED, 2, environments=environments)
    assert [p.returncode for p in done] == [0, 0], [p.stderr for p in done]


TRAINING = """
import json, sys, torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from adm.runtime import _replica
from adm.runtime.distributed import join
from adm.runtime.randomness import fork

precision = getattr(torch, sys.argv[1])
microbatches = int(sys.argv[2])
exchanges = []
whole = _replica.all_reduce
_replica.all_reduce = lambda *args, **options: exchanges.append(1) or whole(*args, **options)

class Network(nn.Module):
    config = "the network's"
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.last = nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x):
        h = self.first(x)
        return self.last(h + checkpoint(self.middle, h, use_reentrant=False))

with join() as world:
    generator = torch.Generator().manual_seed(1 if world.rank == 0 else 2)  # process 0's weights are those of all
    network = Network()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
    begin = {name: p.detach().clone() for name, p in network.named_parameters()}
    replica = world.replicate(network, torch.device("cpu"))
    assert replica.config == "the network's" and replica.state_dict().keys() == network.state_dict().keys()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # unlike Adam's, its steps know the scale
    for step in range(20):
        world.phase(f"step {step}")
        data = torch.randn(8, 2, 1, 6, 6, generator=torch.Generator().manual_seed(step))
        own = data[world.share(8).start:world.share(8).stop]
        parts = own.tensor_split(microbatches)
        for i, part in enumerate(parts):
            with world.microbatch(replica, last=i == len(parts) - 1):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                    out = replica(part[:, 0])
                ((out.float() - part[:, 1]) ** 2).sum().div(8 * 36).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert len(exchanges) == (20 if world.size > 1 else 0)  # one all-reduce a step, whatever the microbatches
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert (world.all_gather(flat[None]) == flat).all()  # all processes have the same weights
    if world.rank == 0:
        print(json.dumps({"begin": torch.cat([p.flatten() for p in begin.values()]).tolist(), "end": flat.tolist()}))
"""


def trained(size: int, precision: str, microbatches: int) -> tuple[np.ndarray, np.ndarray]:
    done = run_ranks(TRAINING, size, precision, str(microbatches))
    assert all(p.returncode == 0 for p in done), [p.stderr for p in done]
    weights = json.loads(done[0].stdout)
    return np.array(weights["begin"]), np.array(weights["end"])


# Under autocast a microbatch's weight gradient is rounded to bfloat16, whose unit is 2^-8, before it is summed.
@pytest.mark.parametrize(("precision", "microbatches", "tolerance"), [("float32", 2, 1e-3), ("bfloat16", 1, 2**-8)])
def test_1_2_and_4_processes_train_to_the_same_weights(precision: str, microbatches: int, tolerance: float) -> None:
    begin, end = trained(1, precision, microbatches)
    moved = np.linalg.norm(end - begin)
    assert moved > 0.1 and np.isfinite(end).all()
    for size in (2, 4):
        _, other = trained(size, precision, microbatches)
        assert np.linalg.norm(other - end) <= tolerance * moved
        if size == 2:
            assert (trained(size, precision, microbatches)[1] == other).all()  # byte-equal for the same size


DISAGREEING = """
import sys
from adm.runtime.distributed import join
from adm.runtime.errors import AdmError
try:
    with join() as world:
        images = 999 if world.rank in (1, 3) else 1000
        world.agree("data", f"{'the same, ' * 20}\\n{images:,} images\\nand the same")
except AdmError as error:
    print(f"adm: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_processes_that_see_different_data_are_named_in_one_line_which_shows_what_differs_alone() -> None:
    with Job(DISAGREEING, 5) as job:
        codes = job.codes()
        # Where the machine is so busy that some have not left when the first is gone, those leave as after a loss.
        assert codes[0] == 3 and set(codes) <= {3, 7}
        assert job.lines == [
            "adm: processes see different data: process 0 has 1,000 images, process 1 has 999 images (and 3 not "
            "either). Give all 5 the same."
        ]
