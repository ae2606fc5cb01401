"""The notebook runs top to bottom, in small; what it shows is stored in it, and looked at by people."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "digits.ipynb"
SIZES = re.compile(r"STEPS, CLASSIFIER_STEPS, JUDGE_STEPS, PER_CLASS = [\d, ]+")


PATHS = re.compile(r"(?<![\w.])(/(tmp|work|home|root|usr|opt|mnt|var|Users)\b|[A-Z]:\\\\)|site-packages|ipykernel")


def cells_of_code() -> list[dict[str, Any]]:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in cells_of_code()]


@pytest.mark.slow
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


def test_its_outputs_are_those_of_one_run_from_top_to_bottom_and_each_picture_is_there() -> None:
    cells = cells_of_code()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    drawn = 0
    for cell in cells:
        outputs = cell["outputs"]
        assert outputs, f"cell {cell['id']} shows nothing: run the notebook, and store it"
        for output in outputs:
            assert output["output_type"] in ("display_data", "stream") and output.get("name") != "stderr"
            if output["output_type"] == "display_data":
                with Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))) as picture:
                    assert picture.width > 100 and len(picture.convert("L").getcolors(256) or ()) > 1
                drawn += 1
    assert drawn >= 10
    assert NOTEBOOK.stat().st_size < 1_500_000


def test_nothing_in_it_tells_on_whose_machine_it_ran() -> None:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in document["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    text = json.dumps(document, ensure_ascii=False)
    assert not PATHS.search(text), PATHS.search(text)
    assert document["metadata"]["language_info"] == {"name": "python"}
    assert PATHS.search("Path('/home/me/runs')") and PATHS.search("in /tmp/ipykernel_12/3.py")  # the twin
