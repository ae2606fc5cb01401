"""The denoising UNet of ADM: base models and upsamplers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import ResBlock, Stage
from .encoder import Encoder, TimeEmbedding, TrunkConfig, attention, check_input, res_block
from .layers import GroupNorm, Upsample, full_precision, zeroed
from .perturbed import identity_attention

__all__ = ["UNet", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig(TrunkConfig):
    """The sizes of a UNet.

    out_channels: what the network puts out, twice the image's channels with a learned variance. num_classes:
    rows of the label table, None for an unconditional network. low_res_channels: channels of the low-resolution
    image that an upsampler is given, 0 if it is none. The other fields: see TrunkConfig.
    """

    out_channels: int = 3
    num_classes: int | None = None
    low_res_channels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_channels < 1:
            raise ValueError(f"out_channels is {self.out_channels}: must be at least 1")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}: give 1 or more, or None for no labels")
        if self.low_res_channels < 0:
            raise ValueError(f"low_res_channels is {self.low_res_channels}: must be 0 (no upsampler) or more")


class UNet(nn.Module):
    """(x, t, label, low_res) -> (N, out_channels, H, W), the raw output of the denoising network.

    x: (N, in_channels, H, W), H and W multiples of 2^(levels - 1), also others than the config's; t: (N,),
    whole or real; label: (N,) whole numbers, -1 for no label, needed if the network is class-conditional and
    ignored if not; low_res: (N, low_res_channels, h, w), for upsamplers alone. Computes in the dtype of its
    weights; the embeddings and the head stay out of autocast, so that the result is float32 there too. Raises
    ValueError for what does not fit. Source: ADM section 3; guided-diffusion, unet.py.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config)
        classes = config.num_classes
        self.label_embed = nn.Embedding(classes, config.embed_channels) if classes else None
        self.encoder = Encoder(config, config.in_channels + config.low_res_channels)
        self.decoder = Decoder(config, self.encoder.channels, self.encoder.skip_channels)
        self.out = Head(config.level_channels[0], config.out_channels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the network was made for."""
        return (self.config.in_channels, *self.config.size)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, low_res: Tensor | None = None) -> Tensor:
        check_input(x, t, self.config)
        emb = self.time_embed(t)
        if self.label_embed is not None:
            label = checked_label(label, x.shape[0], self.label_embed.num_embeddings)
            # No label (-1) adds nothing.
            emb = emb + self.label_embed(label.clamp(min=0)) * (label >= 0)[:, None]
        emb = F.silu(emb)
        h, skips = self.encoder(self.with_low_res(x, low_res), emb)
        return self.out(self.decoder(h, skips, emb))

    def with_identity_attention(self, layers: Sequence[str]) -> "UNet":
        """This network, on the same weights, with some attention maps replaced by the identity, for perturbed-attention
        guidance. layers: see `nn.perturbed.identity_attention`."""
        return identity_attention(self, layers)

    def with_low_res(self, x: Tensor, low_res: Tensor | None) -> Tensor:
        """x; for an upsampler with the low-resolution image, brought to its size, as further channels."""
        channels = self.config.low_res_channels
        if not channels:
            if low_res is not None:
                raise ValueError("low_res was given to a network that is no upsampler: leave it out")
            return x
        if low_res is None:
            raise ValueError("an upsampler needs low_res, the image to upsample: give it in the condition")
        if low_res.ndim != 4 or low_res.shape[:2] != (x.shape[0], channels):
            raise ValueError(f"low_res is {tuple(low_res.shape)}: give it the shape ({x.shape[0]}, {channels}, h, w)")
        enlarged = F.interpolate(low_res.to(x.dtype), x.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([x, enlarged], dim=1)


class Decoder(nn.Module):
    """The ascending half, which takes what the encoder's blocks gave, last to first."""

    def __init__(self, config: UNetConfig, channels: int, skip_channels: tuple[int, ...]):
        super().__init__()
        skips = list(skip_channels)
        blocks = []
        for level, out in reversed(list(enumerate(config.level_channels))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [res_block(config, channels + skips.pop(), out)]
                if config.attends(level):
                    layers.append(attention(config, out))
                if level and i == config.num_res_blocks:
                    layers.append(upsampling(config, out))
                blocks.append(Stage(layers, config.checkpoint_blocks))
                channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), emb)
        return h


class Head(nn.Module):
    """Normalise, SiLU, zero 3x3 convolution; outside autocast."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm = GroupNorm(channels)
        self.conv = zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        with full_precision(h.device):
            return self.conv(F.silu(self.norm(h.to(self.conv.weight.dtype))))


def upsampling(config: UNetConfig, channels: int) -> ResBlock | Upsample:
    if config.resblock_updown:
        return res_block(config, channels, channels, Upsample(channels, conv=False))
    return Upsample(channels, config.resample_conv)


def checked_label(label: Tensor | None, n: int, num_classes: int) -> Tensor:
    """The labels, unless they cannot be used; values are looked at on the CPU alone."""
    if label is None:
        raise ValueError(f"a class-conditional network needs label: give 0 to {num_classes - 1}, or -1 for none")
    if label.shape != (n,) or label.is_floating_point():
        raise ValueError(f"label is {label.dtype} of shape {tuple(label.shape)}: give whole numbers, shape ({n},)")
    # Looking at values on another device would wait for it, and a compiled graph cannot branch on them.
    if label.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = label[(label < -1) | (label >= num_classes)].tolist()
        if wrong:
            raise ValueError(f"label {wrong[0]} is no class: give 0 to {num_classes - 1}, or -1 for no label")
    return label
