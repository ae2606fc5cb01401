"""What torchrun and Slurm say in the environment, and what only looks like it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adm.runtime._launch import find_launch, first_host, local_rank
from adm.runtime.device import pick_device
from adm.runtime.distributed import join
from adm.runtime.errors import UsageError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-05,7]",
}


def test_torchrun_says_rank_size_and_where_process_0_is() -> None:
    launch = find_launch(TORCHRUN)
    assert launch is not None
    assert (launch.rank, launch.size, launch.local_rank) == (3, 4, 1)
    assert (launch.address, launch.ports) == ("node1", (29500,))


def test_slurm_says_the_same_and_the_first_node_is_where_process_0_is() -> None:
    launch = find_launch(SLURM)
    assert launch is not None
    assert (launch.rank, launch.size, launch.local_rank, launch.address) == (5, 8, 1, "gpu03")
    assert launch.by == "srun"


def test_the_ports_of_a_slurm_step_are_the_same_for_its_processes_and_others_for_another_step() -> None:
    def ports(**changes: str) -> tuple[int, ...]:
        launch = find_launch(SLURM | changes)
        assert launch is not None
        return launch.ports

    assert ports() == ports(SLURM_PROCID="0", SLURM_LOCALID="0")
    assert len({ports(SLURM_JOB_ID=job, SLURM_STEP_ID=step) for job in ("1", "2", "3") for step in ("0", "1")}) == 6
    assert all(1024 < port < 32768 for port in ports())  # from there on systems choose for outgoing connections


def test_an_address_that_was_set_goes_before_that_of_the_list_of_nodes() -> None:
    launch = find_launch(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "12345"})
    assert launch is not None
    assert (launch.rank, launch.address, launch.ports) == (5, "10.0.0.1", (12345,))


def test_torchrun_inside_a_slurm_task_is_torchrun() -> None:
    launch = find_launch(SLURM | TORCHRUN)
    assert launch is not None
    assert launch.rank == 3


def test_a_job_script_may_export_the_size_and_the_place_and_leave_the_ranks_to_srun() -> None:
    exported = {"WORLD_SIZE": "8", "MASTER_ADDR": "gpu03", "MASTER_PORT": "12345"}
    launch = find_launch(SLURM | exported)
    assert launch is not None
    assert (launch.rank, launch.size, launch.by, launch.ports) == (5, 8, "srun", (12345,))


CONTRADICTIONS = {
    "another size than srun's": (SLURM | {"WORLD_SIZE": "1"}, "WORLD_SIZE=1, and srun started 8"),
    "the job script's rank in each task": (SLURM | TORCHRUN | {"RANK": "0", "WORLD_SIZE": "8"}, "SLURM_PROCID=5"),
    "a number without a size": ({"RANK": "3"}, "RANK=3 and WORLD_SIZE=unset"),
    "a number beyond the size": (TORCHRUN | {"WORLD_SIZE": "1"}, "RANK=3 and WORLD_SIZE=1"),
    "no port": (SLURM | {"MASTER_PORT": "http"}, "MASTER_PORT=http"),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "mpirun started 4"),
    "MPICH": ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "mpirun started 4"),
}


@pytest.mark.parametrize(("environment", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_no_process_takes_itself_for_one_that_it_is_not(environment: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        find_launch(environment)
    assert "unset" in str(caught.value).lower() and "\n" not in str(caught.value)


def test_one_process_of_mpirun_is_alone_and_torchrun_s_agree_whoever_started_them() -> None:
    assert find_launch({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    # torchrun, one to a node of as many tasks, numbers its processes as its own rendezvous says.
    launch = find_launch(SLURM | TORCHRUN | {"WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "1"})
    assert launch is not None and launch.rank == 3


WITHOUT_SRUN: dict[str, dict[str, Any]] = {
    "the shell of salloc": {"SLURM_STEP_ID": None, "SLURM_PROCID": None, "SLURM_LOCALID": None},
    "an interactive step": {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"},
    "a batch script": {"SLURM_STEP_ID": None, "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},
    "one task of a larger job": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    "a job of one task": {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
}


@pytest.mark.parametrize("changes", WITHOUT_SRUN.values(), ids=WITHOUT_SRUN)
def test_in_an_allocation_without_srun_a_process_is_alone(changes: dict[str, str | None]) -> None:
    assert find_launch({name: text for name, text in (SLURM | changes).items() if text is not None}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node1,node2", "node1"),
        ("node[03-05,7]", "node03"),
        ("node[7,3-5],other", "node7"),
        ("a[1-2]b[001-128]-ib", "a1b001-ib"),
        ("gpu-a-[12]", "gpu-a-12"),
        ("n1.site.org,n[2-3]", "n1.site.org"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "node[", "node[]", ",x", "node[1-2"])
def test_what_is_no_list_of_hosts_is_one_line(nodes: str) -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        first_host(nodes)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "70000"},
        SLURM | {"SLURM_PROCID": "8"},
        SLURM | {"SLURM_JOB_NODELIST": ""},
        SLURM | {"SLURM_NTASKS": "many"},
    ],
)
def test_an_environment_that_cannot_be_is_one_line(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"torchrun|srun") as caught, join():
        pass
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_cannot_be_is_one_line(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"ADM_TIMEOUT": seconds}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="ADM_TIMEOUT"), join():
        pass


def test_each_process_of_a_machine_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    assert pick_device() == torch.device("cuda")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert pick_device() == pick_device("cuda") == torch.device("cuda:1")
    assert pick_device("cuda:3") == torch.device("cuda:3") and pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device() == torch.device("cuda:2")
    assert local_rank({"SLURM_LOCALID": "3"}) is None  # not a task of srun
