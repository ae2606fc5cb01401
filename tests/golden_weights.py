"""The weights with which the values in golden/diffusion were recorded: one frozen stream, by sorted names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adm.checkpoints.openai import Spec, to_openai, to_ours
from adm.nn import EncoderClassifier, UNet, UNetConfig

DIFFUSION = Path(__file__).parent / "golden" / "diffusion"


def recorded_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A released-layout state dict: matrices z / sqrt(fan in), norms 1 + z / 10, the rest z / 10."""
    rng = np.random.RandomState(seed)
    weights = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        z = rng.standard_normal(shape)
        if not name.endswith(".weight"):
            z = 0.1 * z
        elif len(shape) >= 2:
            z = z / math.sqrt(math.prod(shape[1:]))
        else:
            z = 1 + 0.1 * z
        weights[name] = torch.from_numpy(z.astype(np.float32))
    return weights


def meta_network(spec: Spec) -> UNet | EncoderClassifier:
    with torch.device("meta"):
        return UNet(spec.network) if isinstance(spec.network, UNetConfig) else EncoderClassifier(spec.network)


def released_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the released state dict of a network."""
    state_dict = meta_network(spec).state_dict()
    released = to_openai(state_dict, spec.network, new_attention_order=spec.new_attention_order)
    return {name: tuple(tensor.shape) for name, tensor in released.items()}


def recorded_network(spec: Spec, seed: int) -> Any:
    """The network of a recorded case, with its weights, in eval mode."""
    released = recorded_weights(released_shapes(spec), seed)
    network = meta_network(spec)
    ours = to_ours(released, spec.network, new_attention_order=spec.new_attention_order)
    network.load_state_dict(ours, assign=True)
    return network.eval()


def recorded_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The flags and the arrays of a recorded case."""
    with np.load(DIFFUSION / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].ndim}
    return json.loads((DIFFUSION / f"{name}.json").read_text()), tensors
