"""Many processes share the work without a gap, and a single one knows nothing of it."""

from __future__ import annotations

import pytest
import torch

from adm.runtime.distributed import World, join
from adm.runtime.errors import UsageError
from processes import run_ranks


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
        assert world.gather(rows, [3]) is not None


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "1"},
    ],
)
def test_an_environment_that_cannot_be_is_one_line(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun") as caught, join():
        pass
    assert "\n" not in str(caught.value)


PROGRAM = """
import sys, torch
from adm.runtime.distributed import join
from adm.runtime.errors import PeerLostError
with join() as world:
    share = world.share(10, 3)
    if "gone" in sys.argv and world.rank == 1:
        sys.exit(0)
    rows = torch.tensor([[i, i * i] for i in share], dtype=torch.float64).reshape(-1, 2)
    try:
        whole = world.gather(rows, [len(part) for part in world.shares(10, 3)])
    except PeerLostError as error:
        print("LOST", error)
        sys.exit(7)
    if world.rank == 0:
        print(whole[:, 1].tolist())
    else:
        assert whole is None
"""


def test_rows_of_three_processes_arrive_in_order() -> None:
    first, *others = run_ranks(PROGRAM, 3)
    assert first.stdout.strip() == str([float(i * i) for i in range(10)]), first.stderr
    assert all(p.returncode == 0 for p in (first, *others)), [p.stderr for p in others]


def test_a_process_that_left_is_named() -> None:
    first = run_ranks(PROGRAM, 2, "gone")[0]
    assert first.returncode == 7 and "LOST process 1 of 2 is gone" in first.stdout, first.stdout + first.stderr
