"""The released flags and constructor keywords: how each is read, and its default."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line

__all__ = [
    "CLASSIFIER",
    "DIFFUSION",
    "IGNORED",
    "KEYWORDS",
    "MODEL",
    "MULTIPLIERS",
    "NUM_CLASSES",
    "UPSAMPLER",
    "UPSAMPLER_MULTIPLIERS",
    "check_names",
    "flag_text",
    "read",
    "split",
]


def whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def boolean(value: Any) -> bool:
    text = str(value).lower()
    if text not in TRUE + FALSE:
        raise ValueError
    return text in TRUE


def wholes(value: Any) -> tuple[int, ...]:
    return tuple(whole(item) for item in items(value))


def multipliers(value: Any) -> tuple[int | float, ...]:
    return tuple(int(mult) if mult.is_integer() else mult for mult in map(float, items(value)))


def schedule(value: Any) -> str:
    if value not in ("linear", "cosine"):
        raise ValueError
    return str(value)


def items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [item for item in value.split(",") if item.strip()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


TRUE = ("true", "yes", "t", "y", "1")
FALSE = ("false", "no", "f", "n", "0")
EXPECTED: dict[Callable[[Any], Any], str] = {
    whole: "a whole number",
    float: "a number",
    boolean: "True or False",
    wholes: "whole numbers with commas between",
    multipliers: "numbers with commas between",
    schedule: "linear or cosine",
    str: "a word",
}
REQUIRED = object()

# name -> (how to read it, its released default)
Table = dict[str, tuple[Callable[[Any], Any], Any]]
DIFFUSION: Table = {
    "diffusion_steps": (whole, 1000),
    "noise_schedule": (schedule, "linear"),
    "learn_sigma": (boolean, False),
    "sigma_small": (boolean, False),
    "predict_xstart": (boolean, False),
    "rescale_timesteps": (boolean, False),
}
MODEL: Table = {
    "image_size": (whole, 64),
    "num_channels": (whole, 128),
    "num_res_blocks": (whole, 2),
    "num_heads": (whole, 4),
    "num_heads_upsample": (whole, -1),
    "num_head_channels": (whole, -1),
    "attention_resolutions": (wholes, (16, 8)),
    "channel_mult": (multipliers, ()),
    "dropout": (float, 0.0),
    "class_cond": (boolean, False),
    "use_scale_shift_norm": (boolean, True),
    "resblock_updown": (boolean, False),
    "use_new_attention_order": (boolean, False),
}
UPSAMPLER: Table = {"large_size": (whole, 256), "small_size": (whole, 64)}
CLASSIFIER: Table = {
    "classifier_width": (whole, 128),
    "classifier_depth": (whole, 2),
    "classifier_attention_resolutions": (wholes, (32, 16, 8)),
    "classifier_use_scale_shift_norm": (boolean, True),
    "classifier_resblock_updown": (boolean, True),
    "classifier_pool": (str, "attention"),
    "classifier_use_fp16": (boolean, False),
}
KEYWORDS: Table = {
    "image_size": (whole, REQUIRED),
    "in_channels": (whole, 3),
    "model_channels": (whole, REQUIRED),
    "out_channels": (whole, REQUIRED),
    "num_res_blocks": (whole, REQUIRED),
    "attention_resolutions": (wholes, REQUIRED),
    "dropout": (float, 0.0),
    "channel_mult": (multipliers, (1, 2, 4, 8)),
    "conv_resample": (boolean, True),
    "dims": (whole, 2),
    "num_classes": (whole, None),
    "num_heads": (whole, 1),
    "num_head_channels": (whole, -1),
    "num_heads_upsample": (whole, -1),
    "use_scale_shift_norm": (boolean, False),
    "resblock_updown": (boolean, False),
    "use_new_attention_order": (boolean, False),
    "pool": (str, "adaptive"),
}
# About training, sampling, precision or the recording of a run: command lines hold them, a network does not.
IGNORED = (
    "use_fp16",
    "use_checkpoint",
    "use_kl",
    "rescale_learned_sigmas",
    "timestep_respacing",
    "batch_size",
    "microbatch",
    "num_samples",
    "use_ddim",
    "clip_denoised",
    "model_path",
    "classifier_path",
    "classifier_scale",
    "base_samples",
    "data_dir",
    "val_data_dir",
    "noised",
    "iterations",
    "lr",
    "weight_decay",
    "anneal_lr",
    "lr_anneal_steps",
    "ema_rate",
    "log_interval",
    "eval_interval",
    "save_interval",
    "resume_checkpoint",
    "fp16_scale_growth",
    "schedule_sampler",
    "weight_seed",
    "guide",
    "guidance_scale",
    "ddpm_respacing",
    "ddim_respacing",
    "bpd_respacing",
)
MULTIPLIERS: dict[int, tuple[int | float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
UPSAMPLER_MULTIPLIERS = MULTIPLIERS | {512: (1, 1, 2, 2, 4, 4)}
NUM_CLASSES = 1000


def read(given: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Every value of a table: read from what was given, or the default."""
    values = {}
    for name, (parse, default) in table.items():
        if name not in given:
            if default is REQUIRED:
                raise UsageError(f"{name} is not given: the released constructor has no default for it; add it")
            values[name] = default
            continue
        try:
            values[name] = parse(given[name])
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} is {one_line(repr(given[name]))}: must be {EXPECTED[parse]}") from error
    return values


def flag_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def split(text: str) -> dict[str, str]:
    """ "--name value --name=value ..." as a mapping; of a flag given twice the last counts."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the flags end inside a quotation ({str(error).lower()}); close it") from error
    given = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise UsageError(f"{one_line(repr(word))} stands among the flags without a name: write --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = next(rest, "--")
        if value.startswith("--"):
            raise UsageError(f"--{one_line(name)} has no value: write --name value, such as True")
        given[name] = value
    return given


def check_names(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    names = [*known, *IGNORED]
    for name in given:
        if name not in names:
            raise UsageError(f"{one_line(name)} is no released flag{nearest(name, names)} Mend it or leave it out")
