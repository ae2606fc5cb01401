"""The independent classifier of a study, trained once and kept beside its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adm.checkpoints import format as checkpoint_format
from adm.data.digits import Digits
from adm.metrics import CleanClassifier
from adm.runtime import files
from adm.runtime.errors import DamagedError

__all__ = ["digits_judge"]


def digits_judge(
    out: Path, steps: int, seed: int, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> CleanClassifier:
    """A judge of digits that has seen clean training digits alone; read from `out` if it was trained before."""
    path = out / f"judge-{steps}-{seed}"
    if path.exists():
        try:
            return CleanClassifier.from_state(checkpoint_format.load(path).tensors["judge"])
        except (DamagedError, KeyError):
            files.remove(path)
    digits = Digits("train")
    judge = CleanClassifier.fit(digits.images, digits.labels, 10, seed=seed, steps=steps, on_progress=on_step)
    checkpoint_format.save(path, tensors={"judge": judge.state()}, documents={})
    return judge
