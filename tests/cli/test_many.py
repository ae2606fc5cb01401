"""What torchrun, srun or mpirun started several times is shared, or refused by each in one line that is said once."""

from __future__ import annotations

import time

import pytest
import torch

from adm.cli.main import commands
from conftest import Command

MANY = {
    "torchrun": {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "1",
    },
    "srun": {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_JOB_NODELIST": "n1",
    },
    "the environment": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}


@pytest.mark.parametrize("by", MANY)
def test_a_command_that_is_not_shared_refuses_to_be_one_of_many(
    by: str, adm_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in MANY[by].items():
        monkeypatch.setenv(name, value)
    for words in ("convert | a.pt b", "likelihood | run digits", "data check | digits", "evaluate | --selftest"):
        name, _, rest = words.partition(" | ")
        done = adm_command(*name.split(), *rest.split())
        assert done.code == 2
        assert done.problem.startswith(f"adm: {name} runs in one process, and {by} asks for 2. ")


def test_who_is_shared() -> None:
    shared = {name for name, command in commands().items() if getattr(command, "shared", False)}
    assert {"train diffusion", "train classifier", "train upsampler", "evaluate", "study"} <= shared
    assert not shared & {"plan train", "plan sample", "data check", "data pack", "reference", "convert", "demo"}


def test_of_what_all_say_before_they_have_met_the_first_speaks_first(
    adm_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)

    def wait_of(rank: str, met: bool = False) -> bool:
        waited.clear()
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: met)
        assert adm_command("train", "diffusion", "--steps", "many").code == 2
        return bool(waited)

    assert wait_of("1") and not wait_of("0") and not wait_of("1", met=True)
