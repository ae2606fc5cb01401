"""The parts with a residual: the block that is told the time, self-attention, and what stacks them."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .layers import Downsample, GroupNorm, Upsample, full_precision, zeroed

__all__ = ["Attention", "ResBlock", "Stage", "attend"]


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a residual, conditioned on an embedding; can change channels or resolution.

    x: (N, in_channels, H, W); emb: (N, embed_channels), already through its SiLU (the same for every block,
    so it is done once). The embedding scales and shifts the second normalisation, GN(h) * (1 + scale) + shift
    (AdaGN, ADM section 3.1), or with scale_shift=False is added before it. resample: Downsample or Upsample without
    convolution, applied to both branches. rescale: divide the residual sum by sqrt(2) (ADM Table 1). Source:
    ADM section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_channels: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Downsample | Upsample | None = None,
        rescale: bool = False,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.rescale = rescale
        self.resample = resample
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(embed_channels, out_channels * (2 if scale_shift else 1))
        self.norm2 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        with full_precision(emb.device):
            e = self.embed(emb)
        e = e.to(h.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        return residual(self.skip(x), h, self.rescale)


class Attention(nn.Module):
    """Self-attention over all pixels with a residual. x: (N, channels, H, W).

    The rows of the qkv weight are laid out (q, k, v) x heads x channels of a head. Attribute to set: identity, where
    every pixel attends to itself alone (Ahn et al. 2024, section 4), which leaves proj(v) of the branch.
    """

    def __init__(self, channels: int, num_heads: int, rescale: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.rescale = rescale
        self.identity = False
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        h = self.proj(self.values(tokens) if self.identity else attend(*split_heads(self.qkv(tokens), self.num_heads)))
        return residual(x, h.transpose(1, 2).reshape(x.shape), self.rescale)

    def values(self, tokens: Tensor) -> Tensor:
        """v of each token, all heads side by side: the last third of qkv's rows."""
        channels = self.proj.in_features
        return F.linear(tokens, self.qkv.weight[-channels:], self.qkv.bias[-channels:])


class Stage(nn.ModuleList):
    """Layers in a row; residual blocks are told the embedding. checkpoint: recompute their activations."""

    def __init__(self, layers: Iterable[nn.Module], checkpoint: bool = False):
        super().__init__(layers)
        self.checkpoint = checkpoint

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            inputs = (h, emb) if isinstance(layer, ResBlock) else (h,)
            if self.checkpoint and torch.is_grad_enabled() and isinstance(layer, ResBlock | Attention):
                h = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                h = layer(*inputs)
        return h


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L, 3 * C) -> q, k, v of (N, heads, L, C / heads) each."""
    n, length, width = qkv.shape
    q, k, v = qkv.view(n, length, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v with the heads put side by side: (N, L, heads * c)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def residual(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    return (x + h) * math.sqrt(0.5) if rescale else x + h
