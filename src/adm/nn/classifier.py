"""The noisy classifier of ADM: the descending half of the UNet with a pooling head."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import attend, split_heads
from .encoder import Encoder, TimeEmbedding, TrunkConfig, check_input
from .layers import GroupNorm, full_precision, zeroed

__all__ = ["ClassifierConfig", "EncoderClassifier"]

Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]
SPATIAL_WIDTH = 2048


@dataclass(frozen=True)
class ClassifierConfig(TrunkConfig):
    """The sizes of a noisy classifier.

    num_classes: how many logits. pool: how the features become one vector. "attention" is as released,
    "adaptive" their mean, "spatial" and "spatial_v2" the means of every block, then two linear layers. The other
    fields: see TrunkConfig.
    """

    num_head_channels: int | None = 64
    num_classes: int = 1000
    pool: Pool = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}: must be at least 1")
        if self.pool not in HEADS:
            raise ValueError(f"pool is {self.pool!r}: must be one of {', '.join(HEADS)}")


class EncoderClassifier(nn.Module):
    """(x, t) -> logits (N, num_classes).

    x: (N, in_channels, H, W); with pool "attention" H and W are the config's, which the positions are for; t:
    (N,), whole or real. Computes in the dtype of its weights; the embedding and the head stay out of
    autocast, so that the logits are float32 there too. Raises ValueError for what does not fit. Source:
    ADM section 4.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config)
        self.encoder = Encoder(config, config.in_channels)
        self.out: PoolHead = HEADS[config.pool](config, self.encoder)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the network was made for."""
        return (self.config.in_channels, *self.config.size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        check_input(x, t, self.config)
        if self.config.pool == "attention" and x.shape[2:] != self.config.size:
            raise ValueError(
                f"x is {x.shape[2]}x{x.shape[3]}: the attention pool has positions for "
                f"{self.config.size[0]}x{self.config.size[1]} alone; resize x to that"
            )
        h, skips = self.encoder(x, F.silu(self.time_embed(t)))
        with full_precision(x.device):
            return self.out(h, skips)


class PoolHead(nn.Module):
    """(h, what each block gave) -> logits, in the dtype of its weights."""

    def __init__(self, config: ClassifierConfig, encoder: Encoder):
        super().__init__()


class AdaptiveHead(PoolHead):
    """The mean over all pixels, then a zero linear layer."""

    def __init__(self, config: ClassifierConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.norm = GroupNorm(encoder.channels)
        self.linear = zeroed(nn.Linear(encoder.channels, config.num_classes))

    def forward(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        h = F.silu(self.norm(h.to(self.linear.weight.dtype)))
        return self.linear(h.mean(dim=(2, 3)))


class AttentionHead(PoolHead):
    """Attention of the mean pixel over itself and all pixels, which know their places."""

    def __init__(self, config: ClassifierConfig, encoder: Encoder):
        super().__init__(config, encoder)
        channels = encoder.channels
        height, width = (side // 2 ** (config.num_levels - 1) for side in config.size)
        self.num_heads = config.heads(channels)
        self.norm = GroupNorm(channels)
        self.positions = nn.Parameter(torch.randn(height * width + 1, channels) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, config.num_classes)

    def forward(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        tokens = F.silu(self.norm(h.to(self.proj.weight.dtype))).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        q, k, v = split_heads(self.qkv(tokens), self.num_heads)
        return self.proj(attend(q[:, :, :1], k, v)[:, 0])


class SpatialHead(PoolHead):
    """The means of every block and of the middle side by side, then two linear layers."""

    def __init__(self, config: ClassifierConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.linear1 = nn.Linear(sum(encoder.skip_channels) + encoder.channels, SPATIAL_WIDTH)
        self.norm = GroupNorm(SPATIAL_WIDTH) if config.pool == "spatial_v2" else None
        self.linear2 = nn.Linear(SPATIAL_WIDTH, config.num_classes)

    def forward(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        dtype = self.linear1.weight.dtype
        means = torch.cat([block.to(dtype).mean(dim=(2, 3)) for block in (*skips, h)], dim=1)
        hidden = self.linear1(means)
        hidden = F.relu(hidden) if self.norm is None else F.silu(self.norm(hidden))
        return self.linear2(hidden)


HEADS: dict[str, type[PoolHead]] = {
    "attention": AttentionHead,
    "adaptive": AdaptiveHead,
    "spatial": SpatialHead,
    "spatial_v2": SpatialHead,
}
