"""The notebook runs top to bottom, in small; what it shows is looked at by people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "digits.ipynb"
SIZES = re.compile(r"STEPS, CLASSIFIER_STEPS, JUDGE_STEPS, PER_CLASS = [\d, ]+")


def code_cells() -> list[str]:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in document["cells"] if cell["cell_type"] == "code"]


def test_the_cells_run_from_top_to_bottom_and_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    shown: list[Any] = []
    cells = code_cells()
    assert SIZES.search(cells[0])
    cells[0] = SIZES.sub("STEPS, CLASSIFIER_STEPS, JUDGE_STEPS, PER_CLASS = 2, 2, 2, 1", cells[0])
    namespace: dict[str, Any] = {"__name__": "notebook"}
    try:
        with torch.random.fork_rng(devices=[]):
            for number, cell in enumerate(cells):
                smaller = cell.replace("steps=50", "steps=5").replace("strided(1000, 50)", "strided(1000, 5)")
                exec(compile(smaller, f"cell {number}", "exec"), namespace)
    finally:
        plt.close("all")
    assert len(shown) >= 10
    assert [len(images) for images in namespace["made"].values()] == [10, 10, 10, 10]
