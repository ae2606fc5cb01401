"""A second network on the same weights, with some of its self-attention switched to the identity."""

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from .blocks import Attention

__all__ = ["identity_attention"]

Network = TypeVar("Network", bound=nn.Module)
ALIASES = {"middle": "encoder.middle"}


def identity_attention(network: Network, layers: Sequence[str]) -> Network:
    """The network with the attention maps of these layers replaced by the identity: there each pixel attends to itself
    alone (Ahn et al. 2024, section 4).

    Parameters and buffers are the very tensors of the network: they are on the device once, and a change of either is
    one of both. layers: "middle", or modules by their paths, such as decoder.blocks.3; all attention in a module is
    meant. Raises ValueError for a name without any.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, Attention)]
    chosen = [path for name in layers for path in _below(name, paths)]
    if not chosen:
        raise ValueError(f"no layer was named: give some of {_offered(paths)}")
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    perturbed = copy.deepcopy(network, shared)
    for path in chosen:
        module = perturbed.get_submodule(path)
        assert isinstance(module, Attention)
        module.identity = True
    return perturbed


def _below(name: str, paths: Sequence[str]) -> list[str]:
    """The attentions that the name means: itself, or those in the module."""
    module = ALIASES.get(name, name)
    found = [path for path in paths if f"{path}.".startswith(f"{module}.")]
    if not found:
        raise ValueError(f"there is no self-attention in layer {name[:60]!r}: give some of {_offered(paths)}")
    return found


def _offered(paths: Sequence[str]) -> str:
    aliases = [alias for alias, module in ALIASES.items() if any(path.startswith(f"{module}.") for path in paths)]
    return ", ".join([*aliases, *paths]) or "those of a network that has self-attention"
