"""What the shapes of a released state dict say about its network, and what they cannot say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

from adm.checkpoints.openai_flags import Kind, Spec
from adm.checkpoints.openai_keys import is_classifier
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import DamagedError
from adm.runtime.text import one_line

__all__ = ["Resampling", "Shapes", "Structure", "infer", "structure_of"]

Shapes = Mapping[str, tuple[int, ...]]
Resampling = Literal["residual", "convolution", "fixed"]

LAYER = re.compile(r"(input_blocks|output_blocks)\.([0-9]{1,4})\.([0-9]{1,2})\.(.+)")
# A name that tells a layer from the others.
LAYERS = {"in_layers.2.weight": "residual", "qkv.weight": "attention", "op.weight": "down", "conv.weight": "up"}
# What other programs' names begin with.
STRANGERS = {
    "model.diffusion_model.": "of latent-diffusion",
    "down_blocks.": "of diffusers",
    "downs.": "of denoising-diffusion-pytorch",
    "model.enc.": "of EDM",
    "model.map_": "of EDM",
    "encoder.stem.": "of adm; give the checkpoint directory that the file lay in",
    "x_embedder.": "of a diffusion transformer",
}


@dataclass(frozen=True)
class Structure:
    """A network as far as the shapes of its weights tell.

    level_channels: of each level, full size first. attention_levels: those with attention; level l is at 1 / 2^l of
    the image. resampling: how the resolution changes, None with one level alone. in_channels: of the image, without
    an upsampler's low-resolution one. num_classes: None without labels. pool: of a classifier. image_size: of a
    classifier whose pool has a table of positions, else None.
    """

    kind: Kind
    model_channels: int
    level_channels: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    resampling: Resampling | None
    in_channels: int
    out_channels: int
    num_classes: int | None
    scale_shift_norm: bool
    pool: str | None = None
    image_size: int | None = None

    @property
    def channel_mult(self) -> tuple[int | float, ...]:
        """Multipliers of model_channels that give level_channels."""
        return tuple(multiplier(channels, self.model_channels) for channels in self.level_channels)

    @property
    def attention_factors(self) -> tuple[int, ...]:
        """By how much the image is smaller where there is attention."""
        return tuple(2**level for level in self.attention_levels)

    @property
    def learned_variance(self) -> bool:
        return self.kind != "classifier" and self.out_channels == 2 * self.in_channels

    def __str__(self) -> str:
        """In words, for a message."""
        attention = ",".join(f"1/{factor}" for factor in self.attention_factors) or "the middle alone"
        blocks = f"{self.num_res_blocks} block{'s'[: self.num_res_blocks != 1]} a level"
        parts = [f"{self.model_channels} channels x {','.join(map(str, self.channel_mult))}", blocks]
        parts += [f"attention at {attention}"]
        parts += [f"{self.num_classes} classes"] if self.num_classes is not None else ["no classes"]
        if self.kind == "classifier":
            return f"a classifier ({', '.join([*parts, f'{self.pool} pool'])})"
        parts += ["learned variance"] if self.learned_variance else ["no learned variance"]
        return f"{'an upsampler' if self.kind == 'upsampler' else 'a diffusion network'} ({', '.join(parts)})"


class Trunk(TypedDict):
    """The fields of a structure that the descending half tells."""

    level_channels: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]


@dataclass
class Block:
    """One entry of input_blocks or output_blocks: its layers, and what its residual block gives."""

    layers: dict[int, str] = field(default_factory=dict)
    channels: int = 0
    skip: bool = False

    @property
    def attends(self) -> bool:
        return "attention" in self.layers.values()

    @property
    def resampling(self) -> Resampling | None:
        """How an ascending block changes the resolution, if it does."""
        kinds = list(self.layers.values())
        return "convolution" if "up" in kinds else "residual" if kinds.count("residual") > 1 else None


def infer(shapes: Shapes) -> tuple[Structure, ...]:
    """The networks that a released state dict of these shapes can be, the likeliest first; nearly always one.

    More than one: classifiers that resample in residual blocks and look the same with other levels, and networks
    with twice as many channels in as out, whose further ones may be a low-resolution image. Raises DamagedError for
    what is no network of guided-diffusion or improved-diffusion.
    """
    try:
        return classifiers(shapes) if is_classifier(shapes) else unets(shapes)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise DamagedError(foreign(shapes)) from error


def unets(shapes: Shapes) -> tuple[Structure, ...]:
    encoder, decoder = blocks(shapes, "input_blocks"), blocks(shapes, "output_blocks")
    ups = [i for i, block in decoder.items() if block.resampling]
    gaps = sorted(set(range(max(encoder))) - encoder.keys())
    period = (ups[0] if ups else gaps[0] - 1 if gaps else max(decoder)) + 1  # blocks of a level in the decoder
    resampling = decoder[ups[0]].resampling if ups else "fixed" if gaps else None
    trunk = trunk_of(encoder, period, (max(decoder) + 1) // period)
    inputs, outputs = stem(shapes)[1], shapes["out.2.weight"][0]
    unet = Structure(
        kind="diffusion",
        resampling=resampling,
        in_channels=inputs,
        out_channels=outputs,
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        model_channels=width(shapes),
        scale_shift_norm=scale_shift(shapes),
        **trunk,
    )
    upsampler = replace(unet, kind="upsampler", in_channels=inputs // 2)
    if inputs == 2 * outputs:
        return (upsampler,)
    # The variance learned with a low-resolution image beside x, or twice the channels and a fixed variance.
    return (upsampler, unet) if inputs == outputs and inputs % 2 == 0 else (unet,)


def classifiers(shapes: Shapes) -> tuple[Structure, ...]:
    encoder = blocks(shapes, "input_blocks")
    count = max(encoder) + 1
    downs = [i for i, block in encoder.items() if "down" in block.layers.values()]
    gaps = sorted(set(range(count)) - encoder.keys())
    if downs or gaps:
        periods, resampling = [(downs or gaps)[0]], "convolution" if downs else "fixed"
    else:
        periods = [d for d in range(2, count + 1) if count % d == 0 and is_residual(encoder, d)]
        resampling = "residual"
    pool, num_classes, positions = pool_of(shapes)
    side = round((positions - 1) ** 0.5) if positions else 0
    found = []
    for period in periods:
        levels = count // period
        found.append(
            Structure(
                kind="classifier",
                resampling=resampling if levels > 1 else None,  # type: ignore[arg-type]
                in_channels=stem(shapes)[1],
                out_channels=num_classes,
                num_classes=num_classes,
                model_channels=width(shapes),
                scale_shift_norm=scale_shift(shapes),
                pool=pool,
                image_size=side * 2 ** (levels - 1) if side and side**2 + 1 == positions else None,
                **trunk_of(encoder, period, levels),
            )
        )
    if not found:
        raise KeyError("levels")
    return tuple(found)


def blocks(shapes: Shapes, half: str) -> dict[int, Block]:
    """The blocks of a half by their index, in order."""
    found: dict[int, Block] = {}
    for name, shape in shapes.items():
        match = LAYER.fullmatch(name)
        if match is None or match[1] != half:
            continue
        block = found.setdefault(int(match[2]), Block())
        if match[4] in LAYERS:
            block.layers[int(match[3])] = LAYERS[match[4]]
        if match[4] == "in_layers.2.weight" and match[3] == "0":
            block.channels = shape[0]
        block.skip |= match[4] == "skip_connection.weight"
    return dict(sorted(found.items()))


def trunk_of(encoder: Mapping[int, Block], period: int, levels: int) -> Trunk:
    """What the first block of each level says; level l begins after the block l * period, which leads there."""
    first = [encoder[level * period + 1] for level in range(levels)]
    if levels < 1 or period < 2 or not all(block.channels for block in first):
        raise KeyError("levels")
    return {
        "level_channels": tuple(block.channels for block in first),
        "num_res_blocks": period - 1,
        "attention_levels": tuple(level for level, block in enumerate(first) if block.attends),
    }


def is_residual(encoder: Mapping[int, Block], period: int) -> bool:
    """Whether the blocks can be those of levels this long, to each of which a residual block leads."""
    for i, block in encoder.items():
        leads = i > 0 and i % period == 0
        if leads and (block.attends or block.skip):
            return False
        if i > 0 and not leads:
            first = encoder[i // period * period + 1]
            if (block.channels, block.attends) != (first.channels, first.attends):
                return False
        if leads and block.channels != encoder[i - 1].channels:
            return False
    return True


def stem(shapes: Shapes) -> tuple[int, ...]:
    return shapes["input_blocks.0.0.weight"]


def width(shapes: Shapes) -> int:
    if shapes["time_embed.0.weight"][1] < 1:
        raise ValueError("no channels")
    return shapes["time_embed.0.weight"][1]


def scale_shift(shapes: Shapes) -> bool:
    return shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * shapes["input_blocks.1.0.in_layers.2.weight"][0]


def pool_of(shapes: Shapes) -> tuple[str, int, int | None]:
    """(pool, number of classes, positions of the attention pool)."""
    if "out.2.positional_embedding" in shapes:
        return "attention", shapes["out.2.c_proj.weight"][0], shapes["out.2.positional_embedding"][1]
    if "out.3.weight" in shapes:
        last = shapes["out.3.weight"]
        return "adaptive" if len(last) == 4 else "spatial_v2", last[0], None
    return "spatial", shapes["out.2.weight"][0], None


def multiplier(channels: int, of: int) -> int | float:
    """m with int(m * of) == channels; whole where it can be."""
    exact = channels / of
    rounded = (value / 1000 for value in (round(exact * 1000), round(exact * 1000) + 1))
    return next(
        (int(m) if float(m).is_integer() else m for m in (*rounded, exact) if int(m * of) == channels),
        (channels + 0.5) / of,
    )


def structure_of(spec: Spec) -> Structure:
    """What `infer` finds in a file of this spec."""
    network = spec.network
    size = min(network.size)
    resampling: Resampling = "residual" if network.resblock_updown else "convolution"
    if resampling == "convolution" and not network.resample_conv:
        resampling = "fixed"
    classifier = isinstance(network, ClassifierConfig)
    return Structure(
        kind=spec.kind,
        model_channels=network.model_channels,
        level_channels=network.level_channels,
        num_res_blocks=network.num_res_blocks,
        attention_levels=tuple(level for level in range(network.num_levels) if network.attends(level)),
        resampling=resampling if network.num_levels > 1 else None,
        in_channels=network.in_channels,
        out_channels=network.out_channels if isinstance(network, UNetConfig) else network.num_classes,
        num_classes=network.num_classes,
        scale_shift_norm=network.scale_shift_norm,
        pool=network.pool if isinstance(network, ClassifierConfig) else None,
        image_size=size if classifier and network.pool == "attention" else None,  # type: ignore[union-attr]
    )


def foreign(shapes: Shapes) -> str:
    """Why a state dict is none that this project reads."""
    whose = next((whose for start, whose in STRANGERS.items() if any(name.startswith(start) for name in shapes)), None)
    first = one_line(next(iter(shapes), "nothing"), 60)
    return (
        f"holds no network of guided-diffusion or improved-diffusion: "
        f"{f'its names are those {whose}' if whose else 'parts that every one has are not there'} "
        f"(the first of {len(shapes)} is {first}); give a file of that code, or the flags if it is one"
    )
