"""What a network costs before it exists: parameters, operations and memory, counted on tensors without data."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .classifier import ClassifierConfig, EncoderClassifier
from .unet import UNet, UNetConfig

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """Of a network for images of its config's size.

    num_parameters: numbers, not bytes. forward_flops: of one image, a multiplication and an addition being two; only
    convolutions, linear layers and attention count. peak_bytes: of the tensors that are alive at once in a float32
    forward pass of one image that keeps nothing for a gradient, weights not included and attention fused; a device's
    libraries and its allocator need more.
    """

    num_parameters: int
    forward_flops: int
    peak_bytes: int


def cost(config: UNetConfig | ClassifierConfig) -> Cost:
    """The cost of the network of this config. No memory of its size is used."""
    with torch.device("meta"):
        network: nn.Module = UNet(config) if isinstance(config, UNetConfig) else EncoderClassifier(config)
        inputs = _inputs(config)
    network.eval()
    flops, memory, attention = FlopCounterMode(display=False), _LiveBytes([*network.parameters(), *inputs]), _Fused()
    with torch.no_grad(), flops, memory, attention:
        network(*inputs)
    num_parameters = sum(p.numel() for p in network.parameters())
    return Cost(num_parameters, flops.get_total_flops() + attention.flops, memory.peak)


def _inputs(config: UNetConfig | ClassifierConfig) -> list[Tensor]:
    """(x, t) of one image, for a UNet also (label, low_res) where it takes them."""
    inputs: list[Tensor] = [torch.empty(1, config.in_channels, *config.size), torch.empty(1)]
    if isinstance(config, UNetConfig):
        inputs.append(torch.empty(1, dtype=torch.long))
        if config.low_res_channels:
            inputs.append(torch.empty(1, config.low_res_channels, *config.size))
    return inputs


class _Fused(TorchFunctionMode):
    """Attention as devices compute it, without the matrix of all pairs, which tensors without data would make."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = args
        self.flops += 2 * q.numel() * k.shape[-2] + 2 * q[..., 0].numel() * v.shape[-2] * v.shape[-1]
        return q.new_empty(*q.shape[:-1], v.shape[-1])


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live."""

    def __init__(self, ignored: Sequence[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet[Any](tensor.untyped_storage() for tensor in ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, count: int) -> None:
        self.live -= count
