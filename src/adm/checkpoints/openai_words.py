"""Our configs as the flags of the released code, or as its constructors' keywords."""

import shlex
from dataclasses import fields, replace
from typing import Any

from adm.checkpoints.openai_flags import Spec, read_flags
from adm.checkpoints.openai_tables import MULTIPLIERS, UPSAMPLER_MULTIPLIERS, flag_text
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import UsageError

__all__ = ["write_flags", "write_keywords"]

# The image sizes for which guided-diffusion has multipliers.
RELEASED_SIZES = {"diffusion": (64, 128, 256, 512), "classifier": (64, 128, 256, 512), "upsampler": (64, 256, 512)}


def write_flags(spec: Spec) -> str:
    """The released flag string of a spec: `read_flags` of it gives the spec back, but for checkpoint_blocks.

    Raises UsageError, naming what differs, if no flags express the spec.
    """
    absent = ", ".join(no_flag_for(spec))
    if absent:
        raise UsageError(f"no released flags express this network ({absent}); keep it in our format")
    values = classifier_flags(spec) if spec.kind == "classifier" else unet_flags(spec)
    if spec.noise_schedule is not None and spec.diffusion_steps is not None:
        values |= {"noise_schedule": spec.noise_schedule, "diffusion_steps": spec.diffusion_steps}
    values["rescale_timesteps"] = spec.time_scale is not None
    text = " ".join(f"--{name} {shlex.quote(flag_text(value))}" for name, value in values.items())
    _require_same(text, spec, "no released flags express this network")
    return text


def write_keywords(spec: Spec) -> dict[str, Any]:
    """The keywords of the original constructor, and the diffusion flags that differ from the released defaults.

    `read_flags` of them gives the spec back. Raises UsageError, naming what differs, if none express it.
    """
    network = spec.network
    classifier = isinstance(network, ClassifierConfig)
    size = max(network.size)
    values: dict[str, Any] = {
        "image_size": size,
        "in_channels": network.in_channels,
        "model_channels": network.model_channels,
        "out_channels": network.num_classes if isinstance(network, ClassifierConfig) else network.out_channels,
        "num_res_blocks": network.num_res_blocks,
        "attention_resolutions": tuple(2**level for level in range(network.num_levels) if network.attends(level)),
        "dropout": network.dropout,
        "channel_mult": network.channel_mult,
        "conv_resample": network.resample_conv,
        "num_heads": network.num_heads,
        "num_head_channels": -1 if network.num_head_channels is None else network.num_head_channels,
        "use_scale_shift_norm": network.scale_shift_norm,
        "resblock_updown": network.resblock_updown,
        "use_new_attention_order": spec.new_attention_order,
    }
    values |= {"pool": network.pool} if isinstance(network, ClassifierConfig) else {"num_classes": network.num_classes}
    values |= {"large_size": size} if spec.kind == "upsampler" else {}
    if spec.noise_schedule is not None and spec.diffusion_steps is not None:
        values |= {"noise_schedule": spec.noise_schedule, "diffusion_steps": spec.diffusion_steps}
    values |= {"rescale_timesteps": True} if spec.time_scale is not None else {}
    if not classifier:
        values |= {"sigma_small": True} if spec.variance == "small" else {}
        values |= {"predict_xstart": True} if spec.mean == "x0" else {}
    _require_same(values, spec, "the original code cannot build this network")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _require_same(words: str | dict[str, Any], spec: Spec, otherwise: str) -> None:
    """Raises UsageError, naming what differs, unless the words read back as the spec."""
    try:
        different = ", ".join(differences(read_flags(words, spec.kind), spec))
    except UsageError as error:
        different = str(error)
    if different:
        raise UsageError(f"{otherwise} ({different}); keep it in our format")


def no_flag_for(spec: Spec) -> list[str]:
    """What flags that `read_flags` takes would say, and no script of the released code takes."""
    size, mult = max(spec.network.size), spec.network.channel_mult
    table = UPSAMPLER_MULTIPLIERS if spec.kind == "upsampler" else MULTIPLIERS
    absent = []
    # Of the multipliers that are no default, a diffusion network's have a flag, which takes whole numbers.
    usual = size in RELEASED_SIZES[spec.kind] and table[size] == mult
    if not usual and (spec.kind != "diffusion" or any(m != int(m) for m in mult)):
        absent.append("channel_mult")
    if spec.kind != "diffusion" and spec.new_attention_order:
        absent.append("use_new_attention_order")
    return absent


def unet_flags(spec: Spec) -> dict[str, Any]:
    network = spec.network
    assert isinstance(network, UNetConfig)
    upsampler = spec.kind == "upsampler"
    size = max(network.size)
    sizes = {"large_size": size} if upsampler else {"image_size": size}
    table = UPSAMPLER_MULTIPLIERS if upsampler else MULTIPLIERS
    usual = size in RELEASED_SIZES[spec.kind] and table[size] == network.channel_mult
    return {
        **sizes,
        "num_channels": network.model_channels,
        "num_res_blocks": network.num_res_blocks,
        "num_heads": network.num_heads,
        "num_head_channels": -1 if network.num_head_channels is None else network.num_head_channels,
        "attention_resolutions": attention_flag(network),
        **({} if usual else {"channel_mult": network.channel_mult}),
        "dropout": network.dropout,
        "class_cond": network.num_classes is not None,
        "use_scale_shift_norm": network.scale_shift_norm,
        "resblock_updown": network.resblock_updown,
        **({} if upsampler else {"use_new_attention_order": spec.new_attention_order}),
        "learn_sigma": spec.variance == "learned",
        **({"sigma_small": True} if spec.variance == "small" else {}),  # guided-diffusion has no such flag
        "predict_xstart": spec.mean == "x0",
    }


def classifier_flags(spec: Spec) -> dict[str, Any]:
    network = spec.network
    assert isinstance(network, ClassifierConfig)
    return {
        "image_size": max(network.size),
        "classifier_width": network.model_channels,
        "classifier_depth": network.num_res_blocks,
        "classifier_attention_resolutions": attention_flag(network),
        "classifier_use_scale_shift_norm": network.scale_shift_norm,
        "classifier_resblock_updown": network.resblock_updown,
        "classifier_pool": network.pool,
    }


def attention_flag(network: UNetConfig | ClassifierConfig) -> tuple[int, ...]:
    """Where there is attention, in pixels. For nowhere, which the released scripts cannot read: where no level is."""
    size = min(network.size)
    pixels = tuple(size // 2**level for level in range(network.num_levels) if network.attends(level))
    return pixels or (2 * size,)


def differences(a: Spec, b: Spec) -> list[str]:
    """The names of the fields in which two specs describe different checkpoints."""
    outer = [f.name for f in fields(Spec) if f.name != "network" and getattr(a, f.name) != getattr(b, f.name)]
    one, other = canonical(a.network), canonical(b.network)
    return outer + [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name, None)]


def canonical(network: UNetConfig | ClassifierConfig) -> UNetConfig | ClassifierConfig:
    """The same network, without what does not show in a checkpoint."""
    sizes = [min(network.size) // 2**level for level in range(network.num_levels)]
    return replace(
        network,
        image_size=network.size,
        attention_resolutions=tuple(size for size in sizes if size in network.attention_resolutions),
        num_heads=network.num_heads if network.num_head_channels is None else 1,
        checkpoint_blocks=False,
    )
