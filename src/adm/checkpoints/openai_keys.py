"""The names and layouts of the released state dicts, and ours: one map, walked off the network, both ways."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.nn.blocks import Attention, ResBlock
from adm.nn.classifier import AdaptiveHead, AttentionHead, SpatialHead
from adm.nn.layers import Downsample, Upsample
from adm.nn.unet import Head
from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line

__all__ = ["is_classifier", "key_map", "move_to_ours", "to_openai", "to_ours"]

NetworkConfig = UNetConfig | ClassifierConfig

# Our part -> the released one, within a layer.
PARTS: dict[type[nn.Module], dict[str, str]] = {
    ResBlock: {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "embed": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    Attention: {"norm": "norm", "qkv": "qkv", "proj": "proj_out"},
    Downsample: {"conv": "op"},
    Upsample: {"conv": "conv"},
    Head: {"norm": "0", "conv": "2"},
    AdaptiveHead: {"norm": "0", "linear": "3"},
    AttentionHead: {
        "norm": "0",
        "positions": "2.positional_embedding",
        "qkv": "2.qkv_proj",
        "proj": "2.c_proj",
    },
}
# Our linear layers that are convolutions there: how many axes of length 1 their weights have at the end.
CONVOLUTIONS: dict[type[nn.Module], dict[str, int]] = {
    Attention: {"qkv": 1, "proj": 1},
    AttentionHead: {"qkv": 1, "proj": 1},
    AdaptiveHead: {"linear": 2},
}


def to_ours(
    state_dict: Mapping[str, Tensor], config: NetworkConfig, *, new_attention_order: bool = False
) -> dict[str, Tensor]:
    """A released state dict as the state dict of our network of this config; an exact inverse of `to_openai`.

    new_attention_order: the file's trunk lays qkv out as (q, k, v) x heads (use_new_attention_order), as ours
    does, and not as heads x (q, k, v). Raises DamagedError if keys are missing or left over, or shapes
    differ.
    """
    return move_to_ours(dict(state_dict), config, new_attention_order=new_attention_order)


def move_to_ours(
    state_dict: dict[str, Tensor],
    config: NetworkConfig,
    *,
    new_attention_order: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """As `to_ours`, and takes each tensor out of the state dict, so that none is there twice for long.

    dtype: of what comes out, None for as it is.
    """
    keys = key_map(config, new_attention_order)
    require({key.released: key.released_shape for key in keys}, state_dict)
    ours = {}
    for key in keys:
        released = state_dict.pop(key.released)
        ours[key.ours] = key.load(released if dtype is None else released.to(dtype)).contiguous()
    return ours


def to_openai(
    state_dict: Mapping[str, Tensor], config: NetworkConfig, *, new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Our state dict under the released names, in the released layout and order; an exact inverse of
    `to_ours`.

    Raises DamagedError if keys are missing or left over, or shapes differ.
    """
    keys = key_map(config, new_attention_order)
    require({key.ours: key.shape for key in keys}, state_dict)
    return {key.released: key.save(state_dict[key.ours]) for key in keys}


def is_classifier(state_dict: Mapping[str, object]) -> bool:
    """Whether a released state dict is a classifier's: it has blocks that descend and none that ascend."""
    names = {name.partition(".")[0] for name in state_dict}
    return "input_blocks" in names and "output_blocks" not in names


@dataclass(frozen=True)
class Key:
    """One tensor under both names, and how its layout differs.

    shape: ours. heads: the released rows are heads x (q, k, v) x channels, ours (q, k, v) x heads x channels.
    singletons: axes of length 1 at the end of the released one. transposed: the released one has its axes
    swapped.
    """

    ours: str
    released: str
    shape: tuple[int, ...]
    heads: int | None = None
    singletons: int = 0
    transposed: bool = False

    @property
    def released_shape(self) -> tuple[int, ...]:
        return (self.shape[::-1] if self.transposed else self.shape) + (1,) * self.singletons

    def load(self, released: Tensor) -> Tensor:
        """The released tensor in our layout."""
        if self.transposed:
            return released.t().contiguous()
        if self.heads is None:
            return released.reshape(self.shape)
        return released.reshape(self.heads, 3, -1, *self.shape[1:]).transpose(0, 1).reshape(self.shape)

    def save(self, ours: Tensor) -> Tensor:
        """Our tensor in the released layout."""
        if self.transposed:
            return ours.t().contiguous()
        if self.heads is not None:
            ours = ours.reshape(3, self.heads, -1, *self.shape[1:]).transpose(0, 1)
        return ours.reshape(self.released_shape)


def key_map(config: NetworkConfig, new_attention_order: bool) -> list[Key]:
    """Every tensor of the network of this config, in the released order."""
    with torch.device("meta"):
        network = UNet(config) if isinstance(config, UNetConfig) else EncoderClassifier(config)
    keys = []
    for ours, released, layer in layers(network):
        parts = released_parts(layer)
        legacy = layer.num_heads if isinstance(layer, Attention) and not new_attention_order else None
        order = list(parts)
        # A parameter belongs to a part of the layer (conv1.weight) or to the layer itself (positions).
        named = [(name if name in parts else name.rpartition(".")[0], name) for name, _ in layer.named_parameters()]
        for part, name in sorted(named, key=lambda item: order.index(item[0])):
            tensor, leaf = layer.get_parameter(name), name.rpartition(".")[2]
            theirs = parts[part] if part == name else join(parts[part], leaf)
            keys.append(
                Key(
                    join(ours, name),
                    join(released, theirs),
                    tuple(tensor.shape),
                    heads=legacy if part == "qkv" else None,
                    singletons=CONVOLUTIONS.get(type(layer), {}).get(part, 0) if leaf == "weight" else 0,
                    transposed=name == "positions",
                )
            )
    return keys


def layers(network: UNet | EncoderClassifier) -> Iterator[tuple[str, str, nn.Module]]:
    """(our prefix, the released prefix, layer) in the order in which both are made."""
    for i in (0, 2):
        yield f"time_embed.{i}", f"time_embed.{i}", network.time_embed[i]
    if isinstance(network, UNet) and network.label_embed is not None:
        yield "label_embed", "label_emb", network.label_embed
    encoder = network.encoder
    yield "encoder.stem", "input_blocks.0.0", encoder.stem
    yield from stages("encoder.blocks", "input_blocks", encoder.blocks, first=1)
    for j, layer in enumerate(encoder.middle):
        yield f"encoder.middle.{j}", f"middle_block.{j}", layer
    if isinstance(network, UNet):
        yield from stages("decoder.blocks", "output_blocks", network.decoder.blocks)
    yield "out", "out", network.out


def stages(ours: str, released: str, blocks: nn.ModuleList, first: int = 0) -> Iterator[tuple[str, str, nn.Module]]:
    for i, stage in enumerate(blocks):
        assert isinstance(stage, nn.ModuleList)
        for j, layer in enumerate(stage):
            yield f"{ours}.{i}.{j}", f"{released}.{i + first}.{j}", layer


def released_parts(layer: nn.Module) -> dict[str, str]:
    """Our parts of a layer -> the released ones; a layer of one part is that part."""
    if isinstance(layer, SpatialHead):
        parts = {"linear1": "0", "linear2": "2"}
        return parts if layer.norm is None else {"linear1": "0", "norm": "1", "linear2": "3"}
    return PARTS.get(type(layer), {"": ""})


def join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def require(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Refuses a state dict that has other keys or shapes than expected, in one line."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(map(one_line, names[:3]))}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        count = len(missing) + len(unexpected) + len(misshapen)
        raise DamagedError(
            f"{count} of {len(expected)} tensors do not fit this network: {'; '.join(problems)}; "
            "give the flags with which the file was made, or the whole file"
        )
