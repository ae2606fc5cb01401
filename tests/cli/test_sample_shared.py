"""`adm sample` by several processes: the images of one, each once, whatever happens on the way."""

import os
import signal
import time

import pytest

from adm.runtime.errors import StoppedError
from processes import Job, run_ranks

PROGRAM = """
import os, sys
from adm.cli.main import main

words = [word.replace("RANK", os.environ["RANK"]) for word in sys.argv[1:]]
sys.exit(main(words))
"""
WORDS = ["sample", "model", "--device", "cpu", "--set", "batch_size=2", "--out"]
FEW = ["--num", "7", "--steps", "2"]


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}


def test_a_set_is_that_of_one_process_and_continues_with_any_number_of_them(runs, tmp_path, adm_command):
    assert adm_command(*WORDS, tmp_path / "one", *FEW).code == 0
    one, out = contents(tmp_path / "one"), tmp_path / "many"
    first, *others = run_ranks(PROGRAM, 3, *WORDS, str(out), *FEW)
    assert [rank.returncode for rank in (first, *others)] == [0, 0, 0]
    assert first.stdout.startswith(str(out)) and all((rank.stdout, rank.stderr) == ("", "") for rank in others)
    assert contents(out) == one
    kept = {name: (out / name).stat().st_mtime_ns for name in one if name.endswith(".png")}
    for name in ("000001.png", "000004.png", "000005.png"):  # of two blocks: the third process has none
        (out / name).unlink()
        del kept[name]
    ranks = run_ranks(PROGRAM, 3, *WORDS, str(out), *FEW)
    assert ranks[0].stderr.startswith("4 of 7 images are there") and contents(out) == one
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_asked_to_stop_all_do_together_and_one_process_makes_the_rest(runs, tmp_path, adm_command):
    out, long = tmp_path / "s", ["--num", "40", "--steps", "20"]
    with Job(PROGRAM, 2, *WORDS, str(out), *long) as job:
        deadline = time.monotonic() + 60
        while not (out / "000002.png").exists():
            assert time.monotonic() < deadline, job.lines
            time.sleep(0.01)
        os.kill(job.ranks[1].pid, signal.SIGTERM)
        assert job.codes() == [StoppedError.exit_code] * 2
        (line,) = [line for line in job.lines if line.startswith("adm: ")]
    there = len(list(out.glob("*.png")))
    assert line == f"adm: stopped after {there} of 40 images; the same command continues." and 4 <= there < 40
    assert adm_command(*WORDS, out, *long).code == adm_command(*WORDS, tmp_path / "one", *long).code == 0
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.slow
def test_an_npz_is_that_of_one_process(runs, tmp_path, adm_command):
    assert adm_command(*WORDS, tmp_path / "one.npz", *FEW).code == 0
    ranks = run_ranks(PROGRAM, 3, *WORDS, str(tmp_path / "many.npz"), *FEW)
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert (tmp_path / "many.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


@pytest.mark.slow
def test_processes_with_other_requests_make_nothing(runs, tmp_path):
    ranks = run_ranks(PROGRAM, 2, *WORDS, str(tmp_path / "s"), *FEW, "--seed", "RANK")
    errors = "".join(rank.stderr for rank in ranks)
    assert "adm: processes see different requests: process 0 has seed=0, process 1 has seed=1" in errors
    assert not (tmp_path / "s").exists() and 2 in [rank.returncode for rank in ranks]
