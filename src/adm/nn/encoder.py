"""What UNet and noisy classifier share: the description of a trunk, and its descending half."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from .blocks import Attention, ResBlock, Stage
from .layers import Downsample, Upsample, full_precision, timestep_embedding

__all__ = ["Encoder", "TimeEmbedding", "TrunkConfig", "check_input"]


@dataclass(frozen=True)
class TrunkConfig:
    """The sizes of a trunk; not used by itself.

    image_size: pixels, one number or (height, width). in_channels: of the images, 1 grey, 3 RGB. model_channels:
    the width that channel_mult multiplies, even. channel_mult: level l has int(channel_mult[l] * model_channels)
    channels. num_res_blocks: residual blocks of each level. attention_resolutions: pixels of the feature maps
    that get attention, the shorter side if not square; sizes that do not occur are ignored. num_heads: attention
    heads, where num_head_channels is None. num_head_channels: channels of each head. dropout: in residual blocks,
    0 to below 1. scale_shift_norm: embeddings scale and shift the norm (ADM's AdaGN), else they are added.
    resblock_updown: change resolution in residual blocks (ADM). resample_conv: else change it by a convolution,
    not by repeating and averaging pixels. checkpoint_blocks: recompute activations in the backward pass instead
    of keeping them. rescale_skips: divide residual sums by sqrt(2) (ADM Table 1; no released model does).
    """

    image_size: int | tuple[int, int]
    in_channels: int = 3
    model_channels: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    num_head_channels: int | None = None
    dropout: float = 0.0
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    resample_conv: bool = True
    checkpoint_blocks: bool = False
    rescale_skips: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "model_channels", "num_res_blocks", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: must be at least 1")
        if self.num_head_channels is not None and self.num_head_channels < 1:
            raise ValueError(f"num_head_channels is {self.num_head_channels}: give at least 1, or None for num_heads")
        if not self.channel_mult or min(self.level_channels) < 1:
            raise ValueError(f"channel_mult is {self.channel_mult} of {self.model_channels}: give each level a channel")
        if self.model_channels % 2:
            raise ValueError(
                f"model_channels is {self.model_channels}: must be even (half of the embedding is cosines)"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: must be at least 0 and below 1")
        check_size("image_size", self.size, self.num_levels)
        for level in range(self.num_levels):
            if self.attends(level) or level == self.num_levels - 1:
                self.heads(self.level_channels[level])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def num_levels(self) -> int:
        return len(self.channel_mult)

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def embed_channels(self) -> int:
        return 4 * self.model_channels

    def attends(self, level: int) -> bool:
        """Whether feature maps of this level (0: full size) get attention."""
        return min(self.size) // 2**level in self.attention_resolutions

    def heads(self, channels: int) -> int:
        """The number of attention heads for so many channels."""
        each = self.num_head_channels
        if channels % (each or self.num_heads):
            which = f"num_heads {self.num_heads}" if each is None else f"num_head_channels {each}"
            raise ValueError(f"{which} does not divide the {channels} channels of an attention: give a divisor")
        return self.num_heads if each is None else channels // each


class TimeEmbedding(nn.Sequential):
    """t (N,), whole or real -> (N, embed_channels), in the dtype of the weights also under autocast."""

    def __init__(self, config: TrunkConfig):
        dim, width = config.model_channels, config.embed_channels
        super().__init__(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        dtype = cast(nn.Linear, self[0]).weight.dtype
        with full_precision(t.device):
            return super().forward(timestep_embedding(t, self.dim, dtype).to(dtype))


class Encoder(nn.Module):
    """The descending half and the middle: (x, emb) -> (h, what each block gave, first to last).

    x: (N, in_channels, H, W); emb: (N, embed_channels) after its SiLU. Attributes: `channels` of h,
    `skip_channels` of each block. Source: ADM section 3.
    """

    def __init__(self, config: TrunkConfig, in_channels: int):
        super().__init__()
        channels = config.level_channels[0]
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        blocks = []
        skips = [channels]
        for level, out in enumerate(config.level_channels):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [res_block(config, channels, out)]
                if config.attends(level):
                    layers.append(attention(config, out))
                blocks.append(Stage(layers, config.checkpoint_blocks))
                channels = out
                skips.append(out)
            if level < config.num_levels - 1:
                down = (
                    res_block(config, out, out, Downsample(out, conv=False))
                    if config.resblock_updown
                    else Downsample(out, config.resample_conv)
                )
                blocks.append(Stage([down], config.checkpoint_blocks))
                skips.append(out)
        middle = [res_block(config, out, out), attention(config, out), res_block(config, out, out)]
        self.channels = out
        self.skip_channels = tuple(skips)
        self.blocks = nn.ModuleList(blocks)
        self.middle = Stage(middle, config.checkpoint_blocks)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.stem(x.to(self.stem.weight.dtype))
        skips = [h]
        for block in self.blocks:
            h = block(h, emb)
            skips.append(h)
        return self.middle(h, emb), skips


def res_block(
    config: TrunkConfig, in_channels: int, out_channels: int, resample: Downsample | Upsample | None = None
) -> ResBlock:
    """The residual block that this trunk is made of."""
    return ResBlock(
        in_channels,
        out_channels,
        config.embed_channels,
        dropout=config.dropout,
        scale_shift=config.scale_shift_norm,
        resample=resample,
        rescale=config.rescale_skips,
    )


def attention(config: TrunkConfig, channels: int) -> Attention:
    return Attention(channels, config.heads(channels), config.rescale_skips)


def check_size(what: str, size: tuple[int, int], num_levels: int) -> None:
    """Refuses a height or width that the levels cannot halve evenly, naming the nearest that they can."""
    multiple = 2 ** (num_levels - 1)
    if all(side > 0 and side % multiple == 0 for side in size):
        return
    lower = tuple(side // multiple * multiple for side in size)
    upper = tuple(-(-max(side, 1) // multiple) * multiple for side in size)
    nearest = " and ".join(f"{h}x{w}" for h, w in (lower, upper) if h and w)
    raise ValueError(
        f"{what} is {size[0]}x{size[1]}: {num_levels} levels need multiples of {multiple}, nearest {nearest}"
    )


def check_input(x: Tensor, t: Tensor, config: TrunkConfig) -> None:
    """Refuses an x or t that this trunk cannot take."""
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: this network takes (N, {config.in_channels}, H, W); "
            "give it images of that many channels"
        )
    check_size("x", (x.shape[2], x.shape[3]), config.num_levels)
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}: give one timestep per image, shape ({x.shape[0]},)")
