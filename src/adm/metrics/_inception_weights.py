"""The released weights of the Inception network, in either of their two namings, as ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adm.metrics._inception import Convolution, InceptionNetwork
from adm.metrics._inception_names import torchvision_names
from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line

__all__ = ["inception_network"]

EPSILON = 1e-3
"""Added to the variance of every batch norm of the released graph."""


def inception_network(state: Mapping[str, Tensor], where: str, dtype: torch.dtype = torch.float32) -> InceptionNetwork:
    """The network with the weights of a file, in eval mode, channels last; ``where`` names it in errors.

    ``state`` has torchvision's names (``Mixed_6d.branch1x1.conv.weight``, ``....bn.bias``) or those of OpenAI's port
    (``layers.mixed_6.conv.weight``, ``....beta``). Batch norms are folded in float64; a gamma that is not there is 1.
    The last layer stays float32 under a lower dtype. Raises DamagedError, in one line, for what is missing or has
    another shape.
    """
    if "output.weight" in state:
        names = torchvision_names()
        state = {names.get(name, name): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        network = InceptionNetwork()
    _require(state, expected_shapes(network), where)
    weights: dict[str, Tensor] = {}
    for prefix, (_, sources) in _convolutions(network).items():
        folded = [_folded(state, source) for source in sources]
        weight, bias = (torch.cat(column) for column in zip(*folded, strict=True))
        weights[f"{prefix}.weight"] = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        weights[f"{prefix}.bias"] = bias.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    weights["fc.weight"] = state["fc.weight"].detach().to("cpu", wide, copy=True)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval()


def expected_shapes(network: InceptionNetwork) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a released file must hold, by torchvision's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, sources in _convolutions(network).values():
        for source, width in zip(sources, layer.widths.values(), strict=True):
            shapes[f"{source}.conv.weight"] = (width, *layer.weight.shape[1:])
            shapes |= {f"{source}.bn.{name}": (width,) for name in ("bias", "running_mean", "running_var")}
    return {**shapes, "fc.weight": tuple(network.fc.weight.shape)}


def _convolutions(network: InceptionNetwork) -> dict[str, tuple[Convolution, list[str]]]:
    """By our name the layer, and the released names of the layers that it is made of."""
    found = {}
    for prefix, layer in network.named_modules():
        if isinstance(layer, Convolution):
            block = prefix.partition(".")[0]
            found[prefix] = layer, [name if block == "stem" else f"{block}.{name}" for name in layer.widths]
    return found


def _folded(state: Mapping[str, Tensor], source: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution with its batch norm: y = (conv(x) - mean) gamma / sqrt(var + eps) + beta."""

    def wide(name: str) -> Tensor:
        return state[f"{source}.{name}"].detach().to("cpu", torch.float64)

    scale = (wide("bn.running_var") + EPSILON).rsqrt()
    if f"{source}.bn.weight" in state:
        scale = scale * wide("bn.weight")
    return wide("conv.weight") * scale[:, None, None, None], wide("bn.bias") - wide("bn.running_mean") * scale


def _require(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    gammas = {name.replace("bn.bias", "bn.weight"): shape for name, shape in shapes.items() if name.endswith("bn.bias")}
    shapes = {**shapes, **{name: shape for name, shape in gammas.items() if name in state}}
    missing = [name for name in shapes if name not in state]
    misshapen = [name for name in shapes if name in state and tuple(state[name].shape) != shapes[name]]
    whole = [name for name in shapes if name in state and not state[name].is_floating_point()]
    for names, problem in ((missing, "missing"), (misshapen, "of another shape"), (whole, "not floating")):
        if names:
            first = names[0]
            found = f" {tuple(state[first].shape)} instead of {shapes[first]}" if names is misshapen else ""
            raise DamagedError(
                f"{where}: not the weights of the 2015-12-05 Inception network: {len(names)} of {len(shapes)} tensors "
                f"{problem}, such as {one_line(first)}{found}. Give the released file: adm models get inception."
            )
