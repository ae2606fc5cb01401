"""The flags of the released code, and its constructors' keywords, as our configs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from adm.checkpoints.openai_tables import (
    CLASSIFIER,
    DIFFUSION,
    KEYWORDS,
    MODEL,
    MULTIPLIERS,
    NUM_CLASSES,
    UPSAMPLER,
    UPSAMPLER_MULTIPLIERS,
    check_names,
    read,
    split,
)
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import UsageError

__all__ = ["CLASSIFYING", "Kind", "Spec", "check_flags", "read_flags"]

Kind = Literal["diffusion", "classifier", "upsampler"]
Given = Mapping[str, Any]
Multipliers = tuple[int | float, ...]
CLASSIFYING = {"pool", *CLASSIFIER}


@dataclass(frozen=True)
class Spec:
    """What flags say about a released checkpoint.

    noise_schedule, diffusion_steps: None if unknown (classifiers alone, and then both). mean and variance say
    nothing of a classifier. time_scale: what t is multiplied by before the network sees it
    (rescale_timesteps), None for nothing. new_attention_order: how the file lays out qkv (our networks have
    one order).
    """

    kind: Kind
    network: UNetConfig | ClassifierConfig
    noise_schedule: str | None = "linear"
    diffusion_steps: int | None = 1000
    mean: Literal["eps", "x0"] = "eps"
    variance: Literal["learned", "small", "large"] = "large"
    time_scale: float | None = None
    new_attention_order: bool = False


def read_flags(
    flags: str | Given, kind: Kind | Literal["unet"] | None = None, channel_mult: Multipliers | None = None
) -> Spec:
    """The released flags, or a constructor's keywords, as our configs.

    flags: "--image_size 64 --class_cond True ...", a mapping of the same names, or a mapping of the keywords
    of UNetModel, SuperResModel or EncoderUNetModel (known by names such as model_channels), beside which the
    diffusion flags may stand. What is not given takes the released default; a classifier's schedule has none.
    attention_resolutions are pixels in flags, down-sampling factors in keywords. kind: which network is meant
    if a command line has flags of several; "unet" is any but the classifier. Not given, `pool` or
    `classifier_*` mean a classifier, large_size an upsampler. channel_mult: a classifier's, when its file tells
    them; its flags have no name for them. Flags of training and sampling are ignored. Raises UsageError for what
    is unknown or cannot be.
    """
    given = split(flags) if isinstance(flags, str) else {k: v for k, v in flags.items() if v is not None}
    keywords = any(name in KEYWORDS and name not in MODEL for name in given)
    check_names(given, (KEYWORDS if keywords else MODEL | CLASSIFIER) | UPSAMPLER | DIFFUSION)
    chosen = choose_kind(given, kind)
    try:
        if chosen == "classifier":
            return classifier_from_keywords(given) if keywords else classifier_from_flags(given, channel_mult)
        return unet_from_keywords(given, chosen) if keywords else unet_from_flags(given, chosen)
    except ValueError as error:
        raise UsageError(f"the flags describe no network: {error}") from error


def check_flags(flags: str | Given) -> dict[str, Any]:
    """The flags as a mapping. Raises UsageError for an unknown name or a value that is none of its kind."""
    given = dict(split(flags)) if isinstance(flags, str) else dict(flags)
    keywords = any(name in KEYWORDS and name not in MODEL for name in given)
    known = (KEYWORDS if keywords else MODEL | CLASSIFIER) | UPSAMPLER | DIFFUSION
    check_names(given, known)
    said = {name: value for name, value in given.items() if name in known and value is not None}
    read(said, {name: known[name] for name in said})
    return given


def unet_from_flags(given: Given, kind: Kind) -> Spec:
    model, diffusion = read(given, MODEL), read(given, DIFFUSION)
    upsampler = kind == "upsampler"
    size = read(given, UPSAMPLER)["large_size"] if upsampler else model["image_size"]
    mult = model["channel_mult"] or released_multipliers(size, UPSAMPLER_MULTIPLIERS if upsampler else MULTIPLIERS)
    factors = tuple(size // pixels for pixels in model["attention_resolutions"] if pixels > 0)
    network = UNetConfig(
        image_size=size,
        out_channels=6 if diffusion["learn_sigma"] else 3,
        model_channels=model["num_channels"],
        num_classes=NUM_CLASSES if model["class_cond"] else None,
        low_res_channels=3 if upsampler else 0,
        **common(model, size, mult, factors),
    )
    return with_diffusion(Spec(kind, network, new_attention_order=model["use_new_attention_order"]), diffusion)


def unet_from_keywords(given: Given, kind: Kind) -> Spec:
    if "image_size" not in given and "large_size" in given:
        given = {**given, "image_size": given["large_size"]}
    model, diffusion = read(given, KEYWORDS), read(given, DIFFUSION)
    size, channels = model["image_size"], model["in_channels"]
    learned = model["out_channels"] == 2 * channels
    contradicted = "learn_sigma" in given and learned != diffusion["learn_sigma"]
    if model["out_channels"] not in (channels, 2 * channels) or contradicted:
        raise ValueError(
            f"out_channels is {model['out_channels']}: must be {channels}, or with learn_sigma {2 * channels}"
        )
    network = UNetConfig(
        image_size=size,
        in_channels=channels,
        out_channels=model["out_channels"],
        model_channels=model["model_channels"],
        num_classes=model["num_classes"],
        low_res_channels=channels if kind == "upsampler" else 0,
        resample_conv=model["conv_resample"],
        **common(model, size, model["channel_mult"], model["attention_resolutions"]),
    )
    spec = Spec(kind, network, new_attention_order=model["use_new_attention_order"])
    return with_diffusion(spec, diffusion | {"learn_sigma": learned})


def classifier_from_flags(given: Given, channel_mult: Multipliers | None = None) -> Spec:
    model, size = read(given, CLASSIFIER), read(given, MODEL)["image_size"]
    mult = channel_mult or released_multipliers(size, MULTIPLIERS)
    factors = tuple(size // pixels for pixels in model["classifier_attention_resolutions"] if pixels > 0)
    network = ClassifierConfig(
        image_size=size,
        model_channels=model["classifier_width"],
        channel_mult=mult,
        num_res_blocks=model["classifier_depth"],
        attention_resolutions=pixels_of(factors, size, len(mult)),
        scale_shift_norm=model["classifier_use_scale_shift_norm"],
        resblock_updown=model["classifier_resblock_updown"],
        num_classes=NUM_CLASSES,
        pool=model["classifier_pool"],
    )
    return with_known_schedule(Spec("classifier", network), given)


def classifier_from_keywords(given: Given) -> Spec:
    model = read(given, KEYWORDS)
    network = ClassifierConfig(
        image_size=model["image_size"],
        in_channels=model["in_channels"],
        model_channels=model["model_channels"],
        num_classes=model["out_channels"],
        resample_conv=model["conv_resample"],
        pool=model["pool"],
        **common(model, model["image_size"], model["channel_mult"], model["attention_resolutions"]),
    )
    return with_known_schedule(Spec("classifier", network, new_attention_order=model["use_new_attention_order"]), given)


def common(model: Given, size: int, mult: tuple[int | float, ...], factors: tuple[int, ...]) -> dict[str, Any]:
    """The fields that flags and keywords call alike."""
    head_channels = None if model["num_head_channels"] == -1 else model["num_head_channels"]
    if head_channels is None and model["num_heads_upsample"] not in (-1, model["num_heads"]):
        heads = model["num_heads_upsample"]
        raise ValueError(f"num_heads_upsample is {heads}: must be -1 or {model['num_heads']}, num_heads")
    if model.get("dims", 2) != 2:
        raise ValueError(f"dims is {model['dims']}: must be 2, images")
    return {
        "channel_mult": mult,
        "num_res_blocks": model["num_res_blocks"],
        "attention_resolutions": pixels_of(factors, size, len(mult)),
        "num_heads": model["num_heads"],
        "num_head_channels": head_channels,
        "dropout": model["dropout"],
        "scale_shift_norm": model["use_scale_shift_norm"],
        "resblock_updown": model["resblock_updown"],
    }


def pixels_of(factors: tuple[int, ...], size: int, num_levels: int) -> tuple[int, ...]:
    """Down-sampling factors as pixels of the feature maps; those of no level are dropped, as released."""
    return tuple(size // factor for factor in factors if factor in [2**level for level in range(num_levels)])


def released_multipliers(size: int, table: dict[int, tuple[int | float, ...]]) -> tuple[int | float, ...]:
    if size not in table:
        raise ValueError(
            f"image size {size} has no released channel_mult (but {', '.join(map(str, sorted(table)))}); "
            "add channel_mult, or for a classifier give the constructor's keywords"
        )
    return table[size]


def with_diffusion(spec: Spec, diffusion: Given) -> Spec:
    """The spec with what the diffusion flags say."""
    if diffusion["diffusion_steps"] < 1:
        raise ValueError(f"diffusion_steps is {diffusion['diffusion_steps']}: must be at least 1")
    return replace(
        spec,
        noise_schedule=diffusion["noise_schedule"],
        diffusion_steps=diffusion["diffusion_steps"],
        mean="x0" if diffusion["predict_xstart"] else "eps",
        variance="learned" if diffusion["learn_sigma"] else "small" if diffusion["sigma_small"] else "large",
        time_scale=1000 / diffusion["diffusion_steps"] if diffusion["rescale_timesteps"] else None,
    )


def with_known_schedule(spec: Spec, given: Given) -> Spec:
    """A classifier's spec with its schedule and steps, if both were given."""
    if not {"noise_schedule", "diffusion_steps"} <= given.keys():
        return replace(spec, noise_schedule=None, diffusion_steps=None)
    return replace(with_diffusion(spec, read(given, DIFFUSION)), mean=spec.mean, variance=spec.variance)


def choose_kind(given: Given, kind: str | None) -> Kind:
    if kind not in (None, "unet", *get_args(Kind)):
        raise UsageError(f"kind is {kind!r}: must be diffusion, classifier, upsampler or unet")
    if kind == "classifier" or (kind is None and not CLASSIFYING.isdisjoint(given)):
        return "classifier"
    if kind == "upsampler" or (kind != "diffusion" and "large_size" in given):
        return "upsampler"
    return "diffusion"
