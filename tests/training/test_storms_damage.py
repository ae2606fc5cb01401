"""A changed bit or a missing end, anywhere in a run directory, is seen and survived, or means nothing."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adm.checkpoints import format as checkpoint_format
from adm.runtime import files
from adm.runtime.errors import DamagedError
from storms import Runs, count, storm

DERIVED = ("log.jsonl", "samples/", "tensorboard/")
"""What is shown and never read back into training: a changed number in it changes no weight."""


def damage_storm(root: Path, flips: int, cuts: int, seconds_of_training: int) -> dict[str, Any]:
    """A run of 8 steps is stopped at 7, damaged, and continued by `adm train --data --out` alone."""
    runs = Runs(root)
    base = runs.stopped("base", 7)
    names = sorted(name for name in (p.relative_to(base) for p in base.rglob("*") if p.is_file()))
    rng = random.Random(3)
    harms = [("flip", name, place) for name, place in flip_places(base, names, flips, rng)]
    harms += [("cut", name, place) for name in names for place in cut_places((base / name).stat().st_size, cuts)]
    continued = set(rng.sample(range(len(harms)), min(seconds_of_training, len(harms))))
    outcomes: Counter[str] = Counter()
    problems = []
    for i, (kind, name, place) in enumerate(harms):
        original = (base / name).read_bytes()
        try:
            harm(base / name, kind, original, place)
            kept, problem = seen(runs, base, name)
            if problem is None and (i in continued or kept == "config"):
                problem = goes_on(runs, base, name, kept)
                outcomes["continued"] += 1
            outcomes[f"{kind} {kept}"] += 1
            if problem is not None:
                problems.append(f"{kind} of {name} at {place}: {problem}")
        finally:
            (base / name).write_bytes(original)
    wrong = {kind: sum(line.startswith(kind) for line in problems) for kind in ("flip", "cut")}
    return {"problems": problems[:20], "wrong": wrong, "outcomes": dict(outcomes), "files": len(names)}


def flip_places(base: Path, names: list[Path], num: int, rng: random.Random) -> list[tuple[Path, int]]:
    """Half of them in any bit with the same chance, the other half in any file with the same chance."""
    sizes = [(base / name).stat().st_size for name in names]
    chosen = rng.choices(names, weights=sizes, k=num // 2)
    chosen += rng.choices([name for name, size in zip(names, sizes, strict=True) if size], k=num - num // 2)
    return [(name, rng.randrange(8 * (base / name).stat().st_size)) for name in chosen]


def cut_places(size: int, num: int) -> list[int]:
    """Lengths from 0 to one byte less than all."""
    return sorted({round(i * (size - 1) / max(1, num - 1)) for i in range(num)}) if size else []


def harm(path: Path, kind: str, original: bytes, place: int) -> None:
    data = bytearray(original)
    if kind == "flip":
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
    else:
        path.write_bytes(data[:place])


def seen(runs: Runs, base: Path, name: Path) -> tuple[str, str | None]:
    """What kind of file it is, and what went wrong, if anything did: a checkpoint must name it and be passed over."""
    if str(name).startswith(DERIVED):
        return "derived", None
    if str(name) == "config.json":
        return "config", None
    directory = base / name.parts[0] / name.parts[1]
    try:
        checkpoint_format.load(directory)
    except DamagedError as error:
        if name.name not in str(error) or "\n" in str(error):
            return "checkpoint", f"the message does not name the file: {error}"
    else:
        return "checkpoint", "silent: it loads"
    if name.parts[0] == "snapshots":
        return "snapshot", None
    step, notes = runs.newest(base.name)
    newest = name.parts[1] == checkpoint_format.step_name(7)
    expected = (6, True) if newest else (7, False)
    if (step, bool(notes)) != expected:
        return "checkpoint", f"step {step} is used, {notes}"
    return "checkpoint", None


def goes_on(runs: Runs, base: Path, name: Path, kept: str) -> str | None:
    """The same command in a copy; what is different at the end."""
    out = runs.root / "copy"
    shutil.copytree(base, out)
    try:
        trial = runs.short("copy")
        status = trial.wait()
        if "Traceback" in trial.said or status is None:
            return trial.said[-500:]
        if status != 0:  # images in another place are not found
            known = kept == "config" and "Traceback" not in trial.said
            return None if known and len(trial.problem) < 620 else f"exit {status}: {trial.said[-300:]}"
        # A damaged snapshot stays, and is refused by whoever reads it, which `seen` has checked.
        mended = {"derived": (str(name), "log.jsonl"), "snapshot": (str(name),)}.get(kept, ())
        wrong = [n for n in runs.differences_of_end("copy") if n not in mended and ".damaged" not in n]
        if kept == "config" and wrong:  # what may change is taken as a change, and said
            return None if " -> " in trial.said else f"in silence: {wrong}"
        return f"ends differently: {wrong}" if wrong else None
    finally:
        shutil.rmtree(out)


def damage(root: Path, flips: int, cuts: int, continued: int) -> None:
    found = storm(damage_storm, root, flips, cuts, continued)
    outcomes, wrong, num = found["outcomes"], found["wrong"], found["files"]
    told = {kind: n for kind, n in outcomes.items() if kind.startswith("flip")}
    count("bit flips", flips - wrong["flip"], flips, **told, went_on_equal=outcomes.get("continued", 0))
    told = {kind: n for kind, n in outcomes.items() if kind.startswith("cut")}
    count("truncations", sum(told.values()) - wrong["cut"], sum(told.values()), files=num, **told)
    assert found["problems"] == []


def test_damage_anywhere_is_seen_or_means_nothing(tmp_path: Path) -> None:
    damage(tmp_path, 100, 2, 2)


@pytest.mark.slow
def test_two_thousand_flips_and_fifty_cuts_of_each_file_are_seen_or_mean_nothing(tmp_path: Path) -> None:
    damage(tmp_path, 2000, 50, 300)


# ---- the twin -------------------------------------------------------------------------------------


def test_the_twin_without_checksums_flips_are_loaded_in_silence(tmp_path: Path, monkeypatch) -> None:
    """The same flips in the same tensors, read by safetensors alone."""
    tensors = {"model": {"a": torch.arange(5000.0)}}
    saved = tmp_path / "step-00000001"
    checkpoint_format.save(saved, tensors=tensors, documents={"state": {"step": 1}})
    path, rng = saved / "model.safetensors", random.Random(4)
    original, silent, seen = path.read_bytes(), 0, 0
    for _ in range(200):
        harm(path, "flip", original, rng.randrange(8 * len(original)))
        try:
            files.verify_directory(saved)
        except DamagedError:
            seen += 1
        try:
            silent += not torch.equal(load_file(path)["a"], tensors["model"]["a"])
        except Exception:
            continue
    assert seen == 200 and silent > 150
    with monkeypatch.context() as patch:
        patch.setattr(files, "check_recorded", lambda directory, name, record: None)
        patch.setattr(files, "read_recorded", lambda directory, name, record: (directory / name).read_bytes())
        harm(path, "flip", original, 8 * (len(original) - 2))
        assert not torch.equal(checkpoint_format.load(saved).tensors["model"]["a"], tensors["model"]["a"])
