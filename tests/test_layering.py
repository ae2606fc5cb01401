"""Imports point down, or sideways without a cycle; some neighbours do not know each other at all."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import adm

SOURCE = Path(adm.__file__).parent
LAYERS = [
    {"diffusion", "nn", "runtime"},
    {"guidance", "sampling"},
    {"training", "metrics", "data", "checkpoints"},
    {"studies"},
    {"cli", "explorer"},  # may import everything, also the public names
]
LAYER = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}
FORBIDDEN = {
    ("guidance", "sampling"),
    ("sampling", "guidance"),
    ("guidance", "nn"),
    ("sampling", "nn"),
    ("diffusion", "nn"),
}
Edge = tuple[str, str]


def imports(source: Path) -> dict[Edge, str]:
    """(importing room, imported room) -> a file that does it. ``adm/__init__`` lends names and is exempt."""
    edges: dict[Edge, str] = {}
    for file in sorted(source.rglob("*.py")):
        package = ["adm", *file.relative_to(source).parts[:-1]]
        if len(package) == 1:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in imported_names(node, package):
                parts = name.split(".")
                if parts[0] == "adm" and parts[1:2] != package[1:2]:
                    edges.setdefault((package[1], parts[1] if len(parts) > 1 else "adm"), str(file))
    return edges


def imported_names(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) + 1 - node.level] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names] if module == "adm" else [module]


def violations(edges: dict[Edge, str]) -> list[str]:
    found = [f"{a} imports {b}: {edges[a, b]}" for a, b in sorted(edges) if not allowed(a, b)]
    neighbours: dict[str, set[str]] = {room: set() for room in LAYER}
    for a, b in edges:
        if LAYER.get(a) == LAYER.get(b):
            neighbours.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(neighbours).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' -> '.join(error.args[1])}")
    return found


def allowed(a: str, b: str) -> bool:
    if LAYER.get(a) == len(LAYERS) - 1:
        return True
    return a in LAYER and b in LAYER and a != "nn" and LAYER[b] <= LAYER[a] and (a, b) not in FORBIDDEN


def test_imports_point_down() -> None:
    edges = imports(SOURCE)
    assert ("runtime", "checkpoints") not in edges and (
        "checkpoints",
        "runtime",
    ) in edges  # it does see imports
    assert violations(edges) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("nn", "import adm.runtime.files"),
        ("diffusion", "from adm.nn.unet import UNet"),
        ("diffusion", "from ..nn import unet"),
        ("guidance", "from adm.sampling import sample"),
        ("sampling", "def f():\n    from adm.guidance import guide"),
        ("sampling", "from adm import nn"),
        ("runtime", "from adm.training import trainer"),
        ("metrics", "from adm import sample"),
        ("studies", "import adm"),
        ("data", "from adm.metrics import fid\n#"),
    ],
)
def test_each_kind_of_violation_is_seen(room: str, line: str, tmp_path: Path) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "new.py").write_text(line)
    (tmp_path / "metrics").mkdir(exist_ok=True)
    (tmp_path / "metrics" / "back.py").write_text("import adm.data")  # with data -> metrics: a cycle
    assert violations(imports(tmp_path)), line
    (tmp_path / room / "new.py").write_text("import torch")
    assert violations(imports(tmp_path)) == []
