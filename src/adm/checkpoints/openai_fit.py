"""Flags held against the shapes of a file: what they leave open is read off the file, what contradicts it is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adm.checkpoints.openai_flags import CLASSIFYING, Spec, check_flags, read_flags
from adm.checkpoints.openai_keys import is_classifier
from adm.checkpoints.openai_shapes import Shapes, Structure, infer
from adm.checkpoints.openai_tables import (
    CLASSIFIER,
    DIFFUSION,
    KEYWORDS,
    MODEL,
    MULTIPLIERS,
    UPSAMPLER,
    UPSAMPLER_MULTIPLIERS,
    flag_text,
    read,
)
from adm.nn import UNetConfig
from adm.runtime.errors import DamagedError, UsageError

__all__ = ["fit", "silent_about"]

Flags = str | Mapping[str, Any]
SHOWN = 4


@dataclass(frozen=True)
class Misfit:
    """A flag that contradicts the file. given: None where it was not said and its default is what contradicts."""

    flag: str
    given: Any
    fitting: str
    default: Any = None

    def __str__(self) -> str:
        if self.given is None and self.default is None:
            return f"{self.flag} is not given: {self.fitting}"
        if self.given is None:
            return f"{self.flag} is not given, which means {flag_text(self.default)}: {self.fitting}"
        return f"{self.flag} is {flag_text(self.given)}: {self.fitting}"


def fit(flags: Flags, shapes: Shapes) -> Spec:
    """The spec of a file with these shapes, of which these flags are said.

    What the flags do not say and the shapes tell is taken from the shapes: also the number of classes and of image
    channels, which the released code has as constants. What neither says has the released default. Raises UsageError
    for flags that cannot be, and DamagedError, with each flag that contradicts the file and the value that would fit.
    """
    given = check_flags(flags)
    try:
        structures = infer(shapes)
    except DamagedError:
        if "time_embed.0.weight" not in shapes:
            raise
        # Parts are missing: which ones, the network of these flags will say.
        return read_flags(given, "classifier" if is_classifier(shapes) else "unet")
    attempts = [(structure, misfits(given, structure)) for structure in structures]
    structure, wrong = min(attempts, key=lambda attempt: len(attempt[1]))
    fitting = [other for other, misfits in attempts if not misfits]
    if len(fitting) > 1:
        raise UsageError(f"the file can be several networks: {undecided(given, fitting)}. Say which")
    if wrong:
        shown = "; ".join(map(str, wrong[:SHOWN])) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        raise DamagedError(f"{len(wrong)} flag{'s'[: len(wrong) != 1]} cannot be of this file: {shown}. Correct them")
    open_ones = {name: value for name, value in told(given, structure).items() if given.get(name) in (None, "")}
    spec = read_flags(given | open_ones, structure.kind, structure.channel_mult)
    return spec if by_keywords(given) else adopt(spec, structure)


def undecided(given: Mapping[str, Any], structures: list[Structure]) -> str:
    """The flags that tell networks of the same shapes apart, with the values that they can have."""
    values = [told(given, structure) for structure in structures]
    names = [name for name in values[0] if len({flag_text(value.get(name)) for value in values}) > 1]
    return ", ".join(f"{name} {' or '.join(flag_text(value.get(name)) for value in values)}" for name in names)


def silent_about(structure: Structure) -> tuple[str, ...]:
    """The flags of which the shapes of such a file say nothing though another value means another model, and what
    values they have."""
    size = "--large_size N" if structure.kind == "upsampler" else "--image_size N"
    process = ("--noise_schedule linear|cosine", "--diffusion_steps N", "--rescale_timesteps True|False")
    if structure.kind == "classifier":
        return (*(() if structure.image_size else (size,)), *process)
    order = () if structure.kind == "upsampler" else ("--use_new_attention_order True|False",)
    variance = () if structure.learned_variance else ("--sigma_small True|False",)
    heads = "--num_heads N (or --num_head_channels N)"
    return (size, heads, *order, *process, "--predict_xstart True|False", *variance)


def by_keywords(given: Mapping[str, Any]) -> bool:
    """Whether these are a constructor's keywords, and not flags."""
    return any(name in KEYWORDS and name not in MODEL for name in given)


def told(given: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """What the file says, under the names of the flags or keywords that were given."""
    if by_keywords(given):
        return keywords_told(structure)
    pixels = size_said(given, structure)[1]
    values: dict[str, Any] = {
        "num_channels": structure.model_channels,
        "num_res_blocks": structure.num_res_blocks,
        "attention_resolutions": tuple(pixels // factor for factor in structure.attention_factors),
        "use_scale_shift_norm": structure.scale_shift_norm,
        "resblock_updown": structure.resampling == "residual",
        "class_cond": structure.num_classes is not None,
        "learn_sigma": structure.learned_variance,
    }
    if structure.kind == "classifier":
        names = {"num_channels": "classifier_width", "num_res_blocks": "classifier_depth"}
        values = {names.get(name, f"classifier_{name}"): value for name, value in values.items()}
        values = {name: value for name, value in values.items() if name in CLASSIFIER}
        values |= {"classifier_pool": structure.pool}
        values |= {"image_size": structure.image_size} if structure.image_size else {}
    elif pixels not in table_of(structure):
        values["channel_mult"] = structure.channel_mult
    return values if structure.resampling else without(values, "resblock_updown", "classifier_resblock_updown")


def keywords_told(structure: Structure) -> dict[str, Any]:
    values: dict[str, Any] = {
        "in_channels": structure.in_channels,
        "model_channels": structure.model_channels,
        "out_channels": structure.out_channels,
        "num_res_blocks": structure.num_res_blocks,
        "attention_resolutions": structure.attention_factors,
        "channel_mult": structure.channel_mult,
        "use_scale_shift_norm": structure.scale_shift_norm,
        "resblock_updown": structure.resampling == "residual",
        "conv_resample": structure.resampling != "fixed",
    }
    if structure.kind != "classifier":
        values["num_classes"] = structure.num_classes
    else:
        values["pool"] = structure.pool
        values |= {"image_size": structure.image_size} if structure.image_size else {}
    if structure.resampling == "residual":
        return without(values, "conv_resample")  # without a say when residual blocks do it
    return values if structure.resampling else without(values, "resblock_updown", "conv_resample")


def misfits(given: Mapping[str, Any], structure: Structure) -> list[Misfit]:
    """What was said of the network and contradicts the file."""
    wrong = [*wrong_kind(given, structure), *wrong_size(given, structure)]
    for name, value in told(given, structure).items():
        nothing = name == "num_classes" and name in given and given[name] is None
        if name == "image_size" or (given.get(name) in (None, "") and not nothing):
            continue
        said = None if nothing else read_one(given, name)
        if not same(name, said, value, given, structure):
            wrong.append(Misfit(name, said if said is not None else "None", fitting(name, value)))
    if not by_keywords(given) and structure.kind != "classifier" and given.get("channel_mult"):
        said = read_one(given, "channel_mult")
        if not same_levels(said, structure):
            wrong.append(Misfit("channel_mult", said, f"{flag_text(structure.channel_mult)} fits"))
    return wrong


def fitting(name: str, value: Any) -> str:
    if isinstance(value, tuple) and not value:
        return "the file has attention in the middle alone"
    return f"{flag_text(value)} fits"


def wrong_kind(given: Mapping[str, Any], structure: Structure) -> list[Misfit]:
    if structure.kind == "classifier":
        if "large_size" in given and CLASSIFYING.isdisjoint(given):
            return [Misfit("large_size", given["large_size"], "the file is a classifier; give image_size")]
        return []
    others = given.keys() & ({*MODEL, *UPSAMPLER} - {"image_size"})
    if not CLASSIFYING.isdisjoint(given) and (by_keywords(given) or not others):
        name = sorted(CLASSIFYING & given.keys())[0]
        return [Misfit(name, given[name], f"the file is {kind_in_words(structure)}; give its flags")]
    if structure.kind == "upsampler" and "large_size" not in given:
        words = f"the file takes {2 * structure.in_channels} channels, an upsampler; add large_size and small_size"
        return [Misfit("large_size", None, words)]
    if structure.kind == "diffusion" and "large_size" in given:
        words = f"the file takes {structure.in_channels} channels and is no upsampler; leave it out and give image_size"
        return [Misfit("large_size", given["large_size"], words)]
    return []


def kind_in_words(structure: Structure) -> str:
    return {"diffusion": "a diffusion network", "classifier": "a classifier", "upsampler": "an upsampler"}[
        structure.kind
    ]


def wrong_size(given: Mapping[str, Any], structure: Structure) -> list[Misfit]:
    """The image size where the file contradicts it: by its multipliers, or by its positions."""
    if by_keywords(given):
        said = read_one(given, "image_size") if given.get("image_size") is not None else None
        wrong = structure.image_size is not None and said not in (None, structure.image_size)
        return [Misfit("image_size", said, f"{structure.image_size} fits")] if wrong else []
    name, _ = size_said(given, structure)
    size = read_one(given, name) if name in given else None
    default = (UPSAMPLER | MODEL)[name][1]
    if structure.image_size is not None:
        if size in (None, structure.image_size):
            return []
        return [Misfit(name, size, f"{structure.image_size} fits")]
    table = table_of(structure)
    if given.get("channel_mult") and structure.kind != "classifier":
        return []
    actual = size if size is not None else default
    if actual not in table or same_levels(table[actual], structure):
        return []
    sizes = fitting_sizes(structure)
    mult = f"channel_mult {flag_text(structure.channel_mult)}"
    if structure.kind == "classifier" and not sizes:
        words = f"the file has {mult}, of no released size; give the constructor's keywords"
    else:
        words = f"{' or '.join(map(str, sizes))} fits ({mult})" if sizes else f"add {mult}, which fits"
    return [Misfit(name, size, words, default)]


def size_said(given: Mapping[str, Any], structure: Structure) -> tuple[str, int]:
    """The flag of the image size, and the size in which attention is counted: the one said unless it cannot be."""
    name = "large_size" if structure.kind == "upsampler" else "image_size"
    size = structure.image_size or (read_one(given, name) if name in given else (UPSAMPLER | MODEL)[name][1])
    table = table_of(structure)
    wrong = not given.get("channel_mult") and size in table and not same_levels(table[size], structure)
    if wrong and structure.image_size is None:
        pixels = read_attention(given, structure)
        sizes = fitting_sizes(structure)
        close = [s for s in sizes if pixels is not None and same_attention(pixels, s, structure)]
        return name, (close or sizes or [size])[0]
    return name, size


def read_attention(given: Mapping[str, Any], structure: Structure) -> tuple[int, ...] | None:
    name = "classifier_attention_resolutions" if structure.kind == "classifier" else "attention_resolutions"
    return read_one(given, name) if given.get(name) not in (None, "") else None


def table_of(structure: Structure) -> Mapping[int, tuple[int | float, ...]]:
    return UPSAMPLER_MULTIPLIERS if structure.kind == "upsampler" else MULTIPLIERS


def fitting_sizes(structure: Structure) -> list[int]:
    return sorted(size for size, mult in table_of(structure).items() if same_levels(mult, structure))


def same_levels(mult: tuple[int | float, ...], structure: Structure) -> bool:
    return tuple(int(m * structure.model_channels) for m in mult) == structure.level_channels


def same_attention(pixels: tuple[int, ...], size: int, structure: Structure) -> bool:
    return same_factors(tuple(size // p for p in pixels if p > 0), structure)


def same_factors(factors: tuple[int, ...], structure: Structure) -> bool:
    levels = {2**level for level in range(len(structure.level_channels))}
    return set(factors) & levels == set(structure.attention_factors)


def same(name: str, said: Any, value: Any, given: Mapping[str, Any], structure: Structure) -> bool:
    """Whether what was said is what the file has."""
    if name == "channel_mult":
        return same_levels(said, structure)
    if name.endswith("attention_resolutions"):
        if by_keywords(given):
            return same_factors(said, structure)
        return same_attention(said, size_said(given, structure)[1], structure)
    return bool(said == value)


def adopt(spec: Spec, structure: Structure) -> Spec:
    """With the numbers that no flag says: the released code has 1000 classes and 3 channels."""
    network = spec.network
    if isinstance(network, UNetConfig):
        channels = structure.in_channels
        network = replace(
            network,
            in_channels=channels,
            out_channels=structure.out_channels,
            low_res_channels=channels if spec.kind == "upsampler" else 0,
            num_classes=structure.num_classes,
            resample_conv=structure.resampling != "fixed",
        )
    else:
        assert structure.num_classes is not None
        network = replace(
            network,
            in_channels=structure.in_channels,
            num_classes=structure.num_classes,
            resample_conv=structure.resampling != "fixed",
        )
    return replace(spec, network=network)


def read_one(given: Mapping[str, Any], name: str) -> Any:
    """One value as the tables read it."""
    table = (KEYWORDS if by_keywords(given) else MODEL | CLASSIFIER) | UPSAMPLER | DIFFUSION
    return read({name: given[name]}, {name: table[name]})[name]


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
