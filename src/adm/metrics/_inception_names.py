"""What the parts of the Inception network are called: by torchvision, and in the TensorFlow graph."""

from __future__ import annotations

__all__ = ["torchvision_names"]

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
PARTS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def _numbered(word: str, i: int) -> str:
    return f"{word}_{i}" if i else word


def _tower(tower: str, *names: str) -> dict[str, str]:
    return {f"{tower}{_numbered('conv', i)}": name for i, name in enumerate(names)}


SINGLE, AVERAGED = _tower("", "branch1x1"), _tower("tower_2.", "branch_pool")
MIXED35 = {
    **SINGLE,
    **_tower("tower.", "branch5x5_1", "branch5x5_2"),
    **_tower("tower_1.", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
    **AVERAGED,
}
REDUCE17 = {
    **_tower("", "branch3x3"),
    **_tower("tower.", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
}
MIXED17 = {
    **SINGLE,
    **_tower("tower.", *(f"branch7x7_{i}" for i in range(1, 4))),
    **_tower("tower_1.", *(f"branch7x7dbl_{i}" for i in range(1, 6))),
    **AVERAGED,
}
REDUCE8 = {
    **_tower("tower.", "branch3x3_1", "branch3x3_2"),
    **_tower("tower_1.", *(f"branch7x7x3_{i}" for i in range(1, 5))),
}
MIXED8 = {
    **SINGLE,
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
BLOCKS = {"5b": MIXED35, "5c": MIXED35, "5d": MIXED35, "6a": REDUCE17}
BLOCKS |= {"6b": MIXED17, "6c": MIXED17, "6d": MIXED17, "6e": MIXED17, "7a": REDUCE8, "7b": MIXED8, "7c": MIXED8}


def torchvision_names() -> dict[str, str]:
    """Name of each tensor in OpenAI's port, which keeps those of the TensorFlow graph -> torchvision's name of it."""
    layers = _tower("", *STEM)
    for i, (block, parts) in enumerate(BLOCKS.items()):
        layers |= {f"{_numbered('mixed', i)}.{graph}": f"Mixed_{block}.{name}" for graph, name in parts.items()}
    tensors = {f"layers.{graph}.{a}": f"{name}.{b}" for graph, name in layers.items() for a, b in PARTS.items()}
    return {**tensors, "output.weight": "fc.weight", "output.bias": "fc.bias"}
