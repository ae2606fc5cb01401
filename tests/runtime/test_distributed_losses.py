"""Whatever happens to one process, all are gone in time, and one line names it."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from processes import Job, torchrun, torchrun_environments

PROGRAM = """
import os, signal, sys, time, torch
from torch import nn
from adm.runtime import _watch
from adm.runtime.distributed import join
from adm.runtime.errors import AdmError, StoppedError
fault, number, phase = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if fault == "unwatched":
    _watch.Watch.start = lambda self: None

def happen(world, here):
    world.phase(here)
    if phase != here:
        return
    time.sleep(0.5)  # the others are in their next collective by now, and have heard of this phase
    if world.rank == number or fault == "stopped":
        if fault in ("killed", "frozen", "unwatched"):
            os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        if fault == "leaves":
            sys.exit(0)
        if fault == "raises":
            raise ValueError("the fault is here")
        if fault == "fails":
            raise RuntimeError("the fault is here")
        if fault == "stopped":
            time.sleep(0.3 * world.rank)
            raise StoppedError(f"stopped at {here}.")
        if fault == "busy":
            print("BUSY", flush=True)
            time.sleep(5)

try:
    with join(meeting=20) as world:
        happen(world, "reading")
        world.agree("data", "the same")
        replica = world.replicate(nn.Linear(8, 8), torch.device("cpu"))
        for step in range(int(sys.argv[4])):
            happen(world, f"step {step}")
            replica(torch.ones(2, 8)).sum().backward()
            print("STEP", step, flush=True)
            time.sleep(0.02)
        happen(world, "saving")
        world.wait("the checkpoint")
        print("DONE", flush=True)
except AdmError as error:
    print(f"adm: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
except (ValueError, RuntimeError) as error:
    print(f"adm: {error}", file=sys.stderr)
    sys.exit(2)
"""
LOST = 7


def job(fault: str, number: int, phase: str, *, size: int = 3, steps: int = 5, timeout: str = "60") -> Job:
    environments = [each | {"ADM_TIMEOUT": timeout} for each in torchrun_environments(size)]
    return Job(PROGRAM, size, fault, str(number), phase, str(steps), environments=environments)


def test_without_a_fault_all_come_to_the_end() -> None:
    with job("none", 0, "") as done:
        assert done.codes() == [0, 0, 0] and not done.lines
        assert all("DONE" in rank.out for rank in done.ranks)


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("phase", ["reading", "step 3", "saving"])
def test_a_process_that_is_killed_ends_all_and_is_named(number: int, phase: str) -> None:
    with job("killed", number, phase) as done:
        assert done.ranks[number].wait() == -signal.SIGKILL
        others = [rank for i, rank in enumerate(done.ranks) if i != number]
        ended = time.monotonic()
        assert [rank.wait(10) for rank in others] == [LOST, LOST]
        assert time.monotonic() - ended < 10
        pid = done.ranks[number].pid
        assert len(done.lines) == 1
        assert done.lines[0].startswith(f"adm: process {number} of 3 (pid {pid} on {socket.gethostname()}; last seen: ")
        assert f"last seen: {phase}) died" in done.lines[0] and len(done.lines[0]) < 300


def ignores_sigterm(pid: int) -> bool:
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signals that are ignored are looked up in /proc")
def test_a_launcher_that_stops_the_others_as_soon_as_one_dies_does_not_keep_them_from_saying_which() -> None:
    """torchrun looks ten times a second; the line comes after SETTLE, which is made long here."""
    program = "from adm.runtime import _watch_center\n_watch_center.SETTLE = 0.9\n" + PROGRAM
    with Job(program, 2, "killed", "1", "step 3", "5") as done:
        assert done.ranks[1].wait() == -signal.SIGKILL
        first, deadline = done.ranks[0], time.monotonic() + 2
        while first.process.is_alive() and not ignores_sigterm(first.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if first.process.is_alive():
            os.kill(first.pid, signal.SIGTERM)
        assert first.wait(15) == LOST
        assert len(done.lines) == 1 and "process 1 of 2" in done.lines[0] and "died without a word" in done.lines[0]


def test_without_that_protection_the_launcher_would_keep_it_from_saying_so() -> None:
    program = "from adm.runtime import _watch_center\n_watch_center.SETTLE = 0.9\n" + PROGRAM
    program = "import contextlib\nfrom adm.runtime import distributed\n" + program
    program = program.replace("\ntry:\n", "\ndistributed._unhurried = contextlib.nullcontext\ntry:\n", 1)
    with Job(program, 2, "killed", "1", "step 3", "5") as done:
        assert done.ranks[1].wait() == -signal.SIGKILL
        os.kill(done.ranks[0].pid, signal.SIGTERM)
        assert done.ranks[0].wait(15) == -signal.SIGTERM and not done.lines


@pytest.mark.parametrize("number", [0, 2])
def test_a_process_that_is_frozen_ends_all_after_the_timeout_and_is_named(number: int) -> None:
    with job("frozen", number, "step 3", timeout="2") as done:
        done.wait_for("STEP 2")
        began = time.monotonic()
        codes = done.codes(2 + 0.5 + 5)
        assert codes == [LOST if i != number else -signal.SIGKILL for i in range(3)]
        assert time.monotonic() - began > 1.5  # nobody is given up early
        assert len(done.lines) == 1
        assert f"process {number} of 3 (pid {done.ranks[number].pid} on " in done.lines[0]
        assert "last seen: step 3) froze: nothing was heard for 2 s" in done.lines[0]


@pytest.mark.slow
def test_without_the_watch_a_frozen_process_would_freeze_all() -> None:
    with job("unwatched", 2, "step 3", timeout="2") as done:
        done.wait_for("STEP 2")
        assert done.codes(2 + 0.5 + 5) == [None] * 3


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("fault", ["raises", "fails"])
def test_a_process_that_raises_is_the_one_that_says_so(fault: str, number: int) -> None:
    with job(fault, number, "step 3") as done:
        assert done.codes(15) == [2 if i == number else LOST for i in range(3)]
        assert done.lines == ["adm: the fault is here"]


def test_what_all_raise_is_said_once() -> None:
    program = PROGRAM.replace("world.rank == number", "True")
    program = program.replace("time.sleep(0.5)", "time.sleep(0.5 if world.rank else 0.8)")  # process 0 is not the first
    with Job(program, 4, "raises", "0", "reading", "5") as done:
        codes = done.codes(15)
        assert 2 in codes and set(codes) <= {2, LOST}  # one that had no time to raise it was ended
        assert done.lines == ["adm: the fault is here"]


def test_a_process_that_leaves_before_the_end_is_named() -> None:
    with job("leaves", 1, "step 3") as done:
        assert done.codes(15) == [LOST, 0, LOST]
        assert len(done.lines) == 1 and "process 1 of 3" in done.lines[0] and "step 3" in done.lines[0]


def test_a_stop_on_request_is_said_once_and_waits_for_the_last() -> None:
    with job("stopped", 0, "step 3") as done:
        assert done.codes(15) == [75] * 3
        assert done.lines == ["adm: stopped at step 3."]


@pytest.mark.slow
def test_a_process_that_is_only_busy_is_waited_for() -> None:
    program = "from adm.runtime import _watch_center\n_watch_center.PATIENCE = 1.2\n" + PROGRAM
    environments = [each | {"ADM_TIMEOUT": "1"} for each in torchrun_environments(3)]
    with Job(program, 3, "busy", "2", "saving", "2", environments=environments) as done:
        assert done.codes() == [0, 0, 0]
        assert done.lines, "process 0 says for whom it waits"
        assert all(line.startswith("adm: note: no news for ") for line in done.lines)
        assert any("process 0 is at: waiting for the checkpoint, process 2 at: saving." in line for line in done.lines)


def test_a_job_that_sleeps_longer_than_the_timeout_goes_on() -> None:
    with job("none", 0, "", steps=60, timeout="1") as done:
        done.wait_for("STEP 5")
        for rank in done.ranks:
            os.kill(rank.pid, signal.SIGSTOP)
        time.sleep(4)
        assert [rank.process.exitcode for rank in done.ranks] == [None] * 3
        for rank in done.ranks:
            os.kill(rank.pid, signal.SIGCONT)
        assert done.codes() == [0, 0, 0] and not done.lines


MEETING = """
import sys
from adm.runtime.distributed import join
from adm.runtime.errors import AdmError
try:
    with join(meeting=1.5):
        pass
except AdmError as error:
    print(f"adm: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("there", "codes", "says"),
    [
        ([0, 2], [LOST] * 2, "processes 1, 3 of 4 did not come to 127.0.0.1 port {port} within 1.5 s"),
        ([3], [LOST], "process 0 of 4 was not found at 127.0.0.1 port {port} within 1.5 s"),
        ([0, 1, 1], [LOST] * 3, "two processes are number 1"),
    ],
)
def test_whoever_does_not_come_is_named_in_bounded_time(there: list[int], codes: list[int], says: str) -> None:
    environments = torchrun_environments(4)
    with Job(MEETING, len(there), environments=[environments[rank] for rank in there]) as done:
        began = time.monotonic()
        assert done.codes(15) == codes
        assert time.monotonic() - began < 10
        assert any(says.format(port=environments[0]["MASTER_PORT"]) in line for line in done.lines), done.lines
        assert all(line.startswith("adm: ") and line.endswith(".") for line in done.lines)


@pytest.mark.slow
def test_a_port_that_another_program_has_is_named() -> None:
    environments = torchrun_environments(2)
    port = environments[0]["MASTER_PORT"]
    with socket.create_server(("127.0.0.1", int(port))), Job(MEETING, 1, environments=environments[:1]) as done:
        assert done.codes(20) == [5]
        assert (
            f"cannot listen at port {port}: Address already in use" in done.lines[0] and "MASTER_PORT" in done.lines[0]
        )


def test_strangers_at_the_port_do_no_harm() -> None:
    environments = torchrun_environments(2)
    place = ("127.0.0.1", int(environments[0]["MASTER_PORT"]))
    with Job(MEETING.replace("1.5", "30"), 1, environments=environments[:1]) as first:
        deadline = time.monotonic() + 20
        sent = 0
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"hello": {"rank": 1}, "job": "x"}\n',
            b"\xff" * 9000 + b"\n",
            b"[" * 60000 + b"\n",
            b"",
        ):
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection(place) as stranger:
                        stranger.sendall(data)
                    sent += 1
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
        assert sent == 6
        with Job(MEETING.replace("1.5", "30"), 1, environments=environments[1:]) as second:
            assert first.codes(30) + second.codes(30) == [0, 0], first.lines + second.lines


IDLE = """
import os, sys, time
from adm.runtime.distributed import join
with join() as world:
    with open(f"{sys.argv[1]}/{world.rank}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(file.name, f"{sys.argv[1]}/{world.rank}")
    while True:
        time.sleep(0.1)
"""


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def seconds_until_gone(tmp_path: Path, stopped: bool) -> float:
    """How long the processes of torchrun live when it is killed."""
    program = tmp_path / "idle.py"
    program.write_text(IDLE)
    folder = tempfile.mkdtemp(dir=tmp_path)
    launcher = torchrun(program, folder, options=["--standalone", "--nproc-per-node", "2"])
    files = [Path(folder, str(rank)) for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    if stopped:
        os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    launcher.kill()
    launcher.communicate()
    while any(map(is_there, pids)) and time.monotonic() < began + 30:
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_nothing_is_left_when_torchrun_is_killed(tmp_path: Path) -> None:
    assert seconds_until_gone(tmp_path, stopped=True) < 5


@pytest.mark.slow
def test_nothing_is_left_when_torchrun_is_killed_ten_times(tmp_path: Path) -> None:
    assert max(seconds_until_gone(tmp_path, stopped=bool(i % 2)) for i in range(10)) < 5


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nif os.environ['TORCHELASTIC_RESTART_COUNT'] != '0':\n    sys.argv[1] = 'none'\n" + PROGRAM
    )
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = torchrun(program, "killed", "1", "step 3", "5", options=options)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    # Which of the two ends torchrun names, the killed one's or the other's with 7, is which it sees first.
    assert out.count("DONE") == 2 and "process 1 of 2" in err and "died without a word" in err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_at_fifty_points_all_are_gone_in_time_and_the_culprit_is_named(fault: str) -> None:
    timeout, meeting, seconds = 2.0, 4.0, []
    program = "print('BEGIN', flush=True)\n" + PROGRAM.replace("meeting=20", f"meeting={meeting}")
    environments = [each | {"ADM_TIMEOUT": str(timeout)} for each in torchrun_environments(3)]
    for point in range(50):
        number = point % 3
        with Job(program, 3, "none", "0", "", "100000", environments=environments) as done:
            done.wait_for("BEGIN" if point % 5 == 0 else "STEP 0")
            time.sleep(0.037 * point % 0.5)
            os.kill(done.ranks[number].pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            began = time.monotonic()
            codes = [rank.wait(20) for i, rank in enumerate(done.ranks) if i != number]
            seconds.append(time.monotonic() - began)
            # One that was lost before it came to the others cannot be told from one that never started.
            assert codes == [LOST, LOST], (point, codes, done.lines)
            assert all(f"process {number} of 3" in line for line in done.lines), (point, done.lines)
            assert 1 <= len(done.lines) <= (2 if point % 5 == 0 else 1), (point, done.lines)
    print(f"{fault}: {len(seconds)} points, {sorted(seconds)[25]:.2f} s in the middle, {max(seconds):.2f} s at most")
    assert max(seconds) < (10 if fault == "killed" else timeout + 5)
