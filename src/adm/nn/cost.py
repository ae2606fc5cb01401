"""What a network costs before it exists: parameters, operations and memory, counted on tensors without data."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .blocks import ResBlock
from .classifier import ClassifierConfig, EncoderClassifier, PoolHead
from .encoder import TimeEmbedding
from .unet import Head, UNet, UNetConfig

__all__ = ["Cost", "PassCost", "cost", "pass_cost"]


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


@dataclass(frozen=True)
class PassCost:
    """Of one forward and backward pass of a batch.

    forward_flops and flops: of the forward pass and of both, counted as in Cost, what is computed again included.
    kept_bytes: of the tensors that are alive between the two, the weights not included. peak_bytes: of those that are
    alive at once, the gradients that the pass makes included. timeline: the bytes alive after each tensor that was
    made; two batches of one network have the same tensors, so each is a line in the number of images.
    """

    forward_flops: int
    flops: int
    kept_bytes: int
    peak_bytes: int
    timeline: tuple[int, ...] = field(repr=False)


def cost(config: UNetConfig | ClassifierConfig) -> Cost:
    """The cost of the network of this config. No memory of its size is used."""
    with torch.device("meta"):
        network: nn.Module = UNet(config) if isinstance(config, UNetConfig) else EncoderClassifier(config)
        inputs = _inputs(config)
    network.eval()
    with torch.no_grad(), _counting([*network.parameters(), *inputs]) as (tally, _):
        network(*inputs)
    return Cost(sum(p.numel() for p in network.parameters()), tally.flops, tally.peak)


def pass_cost(
    network: nn.Module, loss: Callable[[], Tensor], precision: torch.dtype | None = None, accumulate: bool = False
) -> PassCost:
    """The cost of loss() and its gradient.

    network: on the device "meta", in the mode it is trained in. loss: runs it on tensors of that device and returns a
    number; whatever else it makes counts too. precision: of autocast around the network, None for none. accumulate:
    the gradients are there already, from an earlier pass, and are added to. They are left behind.
    """
    ignored = [*network.parameters(), *network.buffers()]
    for p in network.parameters():
        p.grad = torch.empty_like(p) if accumulate and p.requires_grad else None
        ignored += [] if p.grad is None else [p.grad]
    with _counting(ignored, network, precision) as (tally, devices):
        value = loss()
        devices.forget()
        forward, kept = tally.flops, tally.live
        # torch.autograd.backward would take _Device off while it runs, and what is checkpointed runs again in it.
        _engine_run_backward((value,), (torch.ones_like(value),), False, False, (), True, accumulate_grad=True)
    return PassCost(forward, tally.flops, kept, tally.peak, tuple(tally.timeline))


def _inputs(config: UNetConfig | ClassifierConfig) -> list[Tensor]:
    """(x, t) of one image, for a UNet also (label, low_res) where it takes them."""
    inputs: list[Tensor] = [torch.empty(1, config.in_channels, *config.size), torch.empty(1)]
    if isinstance(config, UNetConfig):
        inputs.append(torch.empty(1, dtype=torch.long))
        if config.low_res_channels:
            inputs.append(torch.empty(1, config.low_res_channels, *config.size))
    return inputs


@contextmanager
def _counting(
    ignored: Sequence[Tensor], network: nn.Module | None = None, precision: torch.dtype | None = None
) -> Iterator[tuple["_Tally", "_Device"]]:
    tally = _Tally(ignored)
    device = _Device(tally, precision)
    with ExitStack() as stack:
        if network is not None and precision is not None:
            stack.callback(device.follow(network))
        stack.enter_context(tally)
        stack.enter_context(device)
        yield tally, device


class _Tally(TorchDispatchMode):
    """Counts floating-point operations, and the bytes of the tensors that operations make, while they live."""

    def __init__(self, ignored: Sequence[Tensor]):
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.timeline: list[int] = []
        self.known = weakref.WeakSet[Any](tensor.untyped_storage() for tensor in ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self.timeline.append(self.live)
        weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, count: int) -> None:
        self.live -= count


class _Device(TorchFunctionMode):
    """What devices do and tensors without data do not: fused attention, without the matrix of all pairs; autocast."""

    def __init__(self, tally: _Tally, precision: torch.dtype | None):
        super().__init__()
        self.tally = tally
        self.precision = precision
        self.casts: dict[int, Tensor] | None = {}
        self.excepted = 0

    def follow(self, network: nn.Module) -> Callable[[], None]:
        """Notice when the parts run that stay out of autocast; call what this returns when done."""
        parts: list[nn.Module] = [m for m in network.modules() if isinstance(m, TimeEmbedding | Head | PoolHead)]
        parts += [m.embed for m in network.modules() if isinstance(m, ResBlock)]

        def enter(*_: object) -> None:
            self.excepted += 1

        def leave(*_: object) -> None:
            self.excepted -= 1

        hooks = [part.register_forward_pre_hook(enter) for part in parts]
        hooks += [part.register_forward_hook(leave, always_call=True) for part in parts]

        def stop() -> None:
            for hook in hooks:
                hook.remove()

        return stop

    def forget(self) -> None:
        """The end of the forward pass: autocast keeps no copies of weights any more."""
        self.casts = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv2d, F.linear, F.scaled_dot_product_attention) and self.precision and not self.excepted:
            args = [self.cast(value) for value in args]
            kwargs = {name: self.cast(value) for name, value in kwargs.items()}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args
        pairs = q[..., 0].numel() * k.shape[-2]
        matmuls = 2 * pairs * q.shape[-1] + 2 * pairs * v.shape[-1]
        self.tally.flops += matmuls
        return _Attention.apply(q, k, v, self.tally, matmuls)

    def cast(self, value: Any) -> Any:
        """The value as autocast hands it on; a weight is copied once in a forward pass."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self.casts is None or not (value.is_leaf and value.requires_grad):
            return value.to(self.precision)
        if id(value) not in self.casts:
            self.casts[id(value)] = value.to(self.precision)
        return self.casts[id(value)]


class _Attention(torch.autograd.Function):
    """Fused attention: keeps its inputs, its result and a number for each query; five products of matrices back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tally: _Tally, matmuls: int) -> Tensor:
        n, heads, length, _ = q.shape
        out = q.new_empty(n, length, heads, v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(n, heads, length, dtype=torch.float32))
        ctx.tally, ctx.matmuls = tally, matmuls
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, _, _ = ctx.saved_tensors
        ctx.tally.flops += 5 * ctx.matmuls // 2  # the scores again, then the gradients of v, scores, q and k
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None
