"""A run over several processes: the run of one process, shared out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from adm.checkpoints import format as checkpoint_format
from adm.runtime.distributed import World
from adm.runtime.errors import AdmError, DataError, UsageError
from adm.training.build import new_model
from adm.training.run import check_agreement
from conftest import TINY
from processes import run_ranks, torchrun
from tiny_runs import Stripes, contents, run, tiny

PROGRAM = """
import itertools
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from adm.checkpoints.format import steps
from tiny_runs import Stripes, run, tiny
from adm.runtime.distributed import join

job, out, stop, *settings = sys.argv[1:]

class Shorter(Stripes):
    def __init__(self, rank):
        super().__init__(24 - rank)

with join() as world:
    options = {"dataset": Shorter(world.rank)} if stop == "other data" else {}
    if stop.isdecimal() and world.rank == world.size - 1:  # it alone is asked, after each step; all have to stop
        asked = itertools.count(max(steps(Path(out) / "checkpoints"), default=0) + 1)
        options["stop_requested"] = lambda: next(asked) == int(stop)
    run(tiny(job, *settings), Path(out), world=world, **options)
"""
# With fewer channels each would be a GroupNorm group of its own, which takes a bias before it out again: its gradient
# is rounding alone, and Adam gives that the size of any other.
WIDE = "network.model_channels=64"
BATCH = ("loop.batch_size=8", "loop.steps=20", "loop.save_every=7")


def train(size: int, out: Path, *settings: str, job: str = "diffusion", stop: str = "-", code: int = 0) -> list[str]:
    results = run_ranks(PROGRAM, size, job, str(out), stop, *BATCH, *settings)
    errors = [r.stderr for r in results]
    assert all((r.returncode == 0) == (code == 0) for r in results), errors
    return errors


def weights(out: Path, step: int = 20) -> torch.Tensor:
    model = checkpoint_format.load(out / "checkpoints" / checkpoint_format.step_name(step)).tensors["model"]
    return torch.cat([value.flatten() for _, value in sorted(model.items())])


def files_of(out: Path, step: int = 20) -> dict[str, bytes]:
    """The checkpoint's files, all of them."""
    return contents(out / "checkpoints" / checkpoint_format.step_name(step))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[int, Path]:
    """Runs of 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("plain")
    for size in (1, 2, 4):
        train(size, folder / str(size), WIDE)
    return {size: folder / str(size) for size in (1, 2, 4)}


def test_the_weights_after_20_steps_agree_whatever_the_number_of_processes(plain) -> None:
    initial = new_model(tiny("diffusion", *BATCH, WIDE)).network.state_dict()
    start = torch.cat([value.flatten() for _, value in sorted(initial.items())])
    one = weights(plain[1])
    moved = (one - start).norm()
    assert moved > 0.1
    for size in (2, 4):
        assert (weights(plain[size]) - one).norm() <= 1e-3 * moved
    assert not torch.equal(weights(plain[4]), one)  # the twin of the exact runs below


def test_one_process_alone_writes_and_the_log_is_of_the_whole_batch(plain) -> None:
    for size in (2, 4):
        assert {path.split("/")[0] for path in contents(plain[size])} == {
            path.split("/")[0] for path in contents(plain[1])
        }
        one, many = ((plain[n] / "log.jsonl").read_text().splitlines() for n in (1, size))
        assert len(one) == len(many)
        for ours, theirs in zip(map(eval, one), map(eval, many), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_bytes(plain, tmp_path: Path) -> None:
    train(2, tmp_path / "again", WIDE)
    assert files_of(tmp_path / "again") == files_of(plain[2])


@pytest.mark.parametrize("job", ["diffusion", pytest.param("classifier", marks=pytest.mark.slow)])
def test_exact_runs_are_equal_to_the_byte_also_when_their_number_changes_on_the_way(job: str, tmp_path: Path) -> None:
    exact = ("loop.exact=true", "timesteps=loss-second-moment", "network.dropout=0.2")
    train(1, tmp_path / "one", *exact, job=job)
    changing = tmp_path / "changing"
    train(4, changing, *exact, job=job, stop="6", code=75)
    assert checkpoint_format.steps(changing / "checkpoints") == [6]
    train(2, changing, *exact, job=job, stop="13", code=75)
    train(1, changing, *exact, job=job)
    assert files_of(changing) == files_of(tmp_path / "one")


def test_processes_that_see_different_images_do_not_begin(tmp_path: Path) -> None:
    errors = train(2, tmp_path / "run", stop="other data", code=3)
    assert any("process 0 has 24 images in 2 classes" in text for text in errors), errors
    assert any("process 1 has 23 images in 2 classes" in text for text in errors)
    assert not (tmp_path / "run").exists()


class Recorded(World):
    """The first of three processes, which only notes what they are to agree on."""

    def agree(self, what: str, value: str, error: type[AdmError] = DataError) -> None:
        self.__dict__[what] = (value.splitlines(), error)


def test_processes_agree_on_every_setting_but_where_the_images_lie() -> None:
    def agreed(*settings: str) -> tuple[set[str], type[AdmError]]:
        world = Recorded(0, 3)
        check_agreement(tiny("diffusion", *settings), Stripes(), world)
        lines, error = world.__dict__["settings"]
        return set(lines), error

    plain, error = agreed()
    assert error is UsageError and len(plain) > 50
    assert not any(line.startswith("data.path") for line in plain)
    assert agreed("loop.seed=1")[0] ^ plain == {"loop.seed=0", "loop.seed=1"}
    assert agreed("network.dropout=0.5")[0] ^ plain == {"network.dropout=0.0", "network.dropout=0.5"}


def test_a_number_of_processes_that_does_not_divide_the_batch_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=2"), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="does not split over 3 processes"):
        run(tiny("diffusion", "loop.steps=9"), tmp_path, world=Recorded(0, 3))
    assert contents(tmp_path) == before


KILLED_ONCE = """
import os, signal, sys, time
from adm.cli.main import main
from adm.training.trainer import Trainer

when = int(sys.argv.pop(1))
advance = Trainer.advance

def advance_or_die(self, batch):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and self.step == when:
        time.sleep(0.5)  # process 0 has heard of this step by then
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self, batch)

Trainer.advance = advance_or_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shared_store", [True, False])
def test_torchrun_restarts_a_run_that_ends_with_the_bytes_of_the_undisturbed_one(
    shared_store: bool, tmp_path: Path
) -> None:
    """One of two processes is killed after step 8: the second start goes on at the checkpoint of step 5."""
    program = tmp_path / "program.py"
    program.write_text(KILLED_ONCE)
    environment = {} if shared_store else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def trained(when: int, out: Path) -> str:
        words = ["train", "diffusion", "--data", "digits", "--out", str(out), "--device", "cpu", "--batch", "4"]
        words += [*TINY, "--set", "loop.save_every=5", "--steps", "12", "--set", "loop.sample_every=none"]
        options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
        process = torchrun(program, str(when), *words, options=options, env=environment)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return err

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert "restart" not in trained(-1, undisturbed)
    said = trained(8, disturbed)
    assert re.search(r"^adm: process 1 of 2 \(pid \d+ on \S+; last seen: step 9\) died without a word", said, re.M), (
        said
    )
    assert "continuing from step 5" in said
    assert files_of(disturbed, 12) == files_of(undisturbed, 12)
    assert checkpoint_format.steps(disturbed / "checkpoints") == checkpoint_format.steps(undisturbed / "checkpoints")
