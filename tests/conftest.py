"""The command line in this process, and small runs made by it, for every room's tests."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adm.cli.main import main
from adm.training import run as training_run

TINY = [
    word
    for setting in (
        "network.model_channels=8",
        "network.channel_mult=1,2",
        "network.num_res_blocks=1",
        "network.attention_resolutions=4",
        "network.num_head_channels=8",
        "loop.save_every=2",
    )
    for word in ("--set", setting)
]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The one line of an error, which is all that there is on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return self.last

    @property
    def last(self) -> str:
        """The line of an error that may come after notes and progress."""
        line = self.err.splitlines()[-1]
        assert line.startswith("adm: ") and "Traceback" not in self.err and len(line) < 620
        assert line.endswith((".", "?"))
        return line


Command = Callable[..., Result]


@pytest.fixture
def adm_command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def write_folder(root: Path, size: tuple[int, int], classes: tuple[str, ...] = ("",), mode: str = "RGB") -> Path:
    """Three noise PNGs in each class folder; the class "" is the folder itself."""
    rng = np.random.RandomState(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            shape = (*size, 3) if mode == "RGB" else size
            Image.fromarray(rng.randint(0, 256, shape, np.uint8)).save(root / name / f"{k}.png")
    return root


def make_runs(root: Path) -> None:
    data = write_folder(root / "photos", (8, 12), ("a b", "ü"))
    write_folder(root / "flat", (8, 12))
    jobs = {
        "model": ["diffusion", "--data", "digits", "--steps", "4"],
        "unconditional": ["diffusion", "--data", "digits", "--steps", "2", "--set", "network.num_classes=none"],
        "guide": ["classifier", "--data", "digits", "--steps", "2"],
        "linear-guide": ["classifier", "--data", "digits", "--steps", "2", "--set", "schedule.name=linear"],
        "photo-model": ["diffusion", "--data", str(data), "--steps", "2"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "FEW", 8)  # images that a classifier is measured on at its end
        for name, words in jobs.items():
            code = main(["train", *words, "--out", str(root / name), "--batch", "4", "--device", "cpu", *TINY])
            assert code == 0, name


@pytest.fixture(scope="session")
def _runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the first of pytest-xdist's processes that asks, and copied by the others."""
    place = tmp_path_factory.getbasetemp()
    shared = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "made"
    with open(shared.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            making = shared.with_name("making")
            make_runs(making)
            making.rename(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("copy") / "runs")


@pytest.fixture
def runs(_runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with tiny runs in it (model, unconditional, guide, linear-guide, photo-model) and images
    (photos with two classes, flat without). Tests leave it as it was; their own things go to tmp_path."""
    monkeypatch.chdir(_runs)
    before = sorted(path.name for path in _runs.iterdir())
    yield _runs
    assert sorted(path.name for path in _runs.iterdir()) == before
