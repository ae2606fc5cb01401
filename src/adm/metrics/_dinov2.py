"""The vision transformers of DINOv2, by the names of their released weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line

__all__ = ["VisionTransformer", "vision_transformer"]

HEAD_CHANNELS = 64
PATCH = 14
# The released networks without registers stretch their positions by (n + 0.1) / n0, not by n / n0.
OFFSET = 0.1


class VisionTransformer(nn.Module):
    """x (N, 3, H, W), sides multiples of the patch -> the class token behind the last norm, (N, width).

    Positions are for a square of patches and are stretched to the image's by cubic interpolation. Source: Oquab et
    al. 2024 (DINOv2); Dosovitskiy et al. 2021; Darcet et al. 2024 for the registers.
    """

    def __init__(self, width: int, depth: int, patch: int, positions: int, registers: int, hidden: int, gated: bool):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList(Block(width, hidden, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](x)
        positions = self._positions(*patches.shape[2:])
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + positions
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(x), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.register_tokens is None:
            scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        else:
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """Attention and two layers, each behind its norm and scaled channel by channel before it is added."""

    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.mlp: nn.Module = GatedLayers(width, hidden) if gated else Layers(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, -1, HEAD_CHANNELS)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Layers(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedLayers(nn.Module):
    """SwiGLU, as the largest of the networks has."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def vision_transformer(state: Mapping[str, Tensor], where: str) -> VisionTransformer:
    """The network that the weights of a file say, in eval mode and float32; ``where`` names it in errors.

    ``state`` has the released names (``blocks.0.attn.qkv.weight``); the sizes are read from it. Raises DamagedError,
    in one line, for tensors that are no such network's.
    """
    try:
        network = _empty(state)
        expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, not {shape}")
    except (KeyError, IndexError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DamagedError(
            f"{where}: not the weights of a DINOv2 network: {one_line(problem)}. "
            "Give a released file such as dinov2_vitl14_pretrain.pth."
        ) from error
    network.load_state_dict({name: state[name].detach().to(torch.float32) for name in expected}, assign=True)
    return network.requires_grad_(False).eval()


def _empty(state: Mapping[str, Tensor]) -> VisionTransformer:
    """The network without weights, in the sizes that the tensors have."""
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    positions = state["pos_embed"].shape[1] - 1
    if math.isqrt(positions) ** 2 != positions or width % HEAD_CHANNELS or (channels, patch) != (3, PATCH):
        raise ValueError(f"{positions} positions, width {width}, {channels} channels, patches of {patch}")
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    gated = "blocks.0.mlp.w3.weight" in state
    hidden = state["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1]
    with torch.device("meta"):
        return VisionTransformer(width, depth, patch, positions, registers, hidden, gated)
