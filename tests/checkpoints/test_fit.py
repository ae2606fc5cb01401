"""Flags and shapes: what contradicts the file is named with what would fit, what is left open is read off the file."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from adm.checkpoints.openai import fit, infer, read_flags
from adm.checkpoints.openai_fit import silent_about
from adm.checkpoints.openai_tables import split
from adm.checkpoints.presets import find_preset, preset_spec
from adm.runtime.errors import DamagedError, UsageError
from golden_weights import recorded_case, released_shapes


@functools.cache
def preset_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return released_shapes(preset_spec(find_preset(name)))


def flags_of(name: str) -> dict[str, str]:
    return split(find_preset(name).flags)


IN64, CLASSIFIER, UPSAMPLER = "openai/imagenet64", "openai/imagenet64-classifier", "openai/imagenet64-to-256"

FLIPPED = [
    (IN64, {"num_channels": "128"}, "num_channels is 128: 192 fits"),
    (IN64, {"num_res_blocks": "2"}, "num_res_blocks is 2: 3 fits"),
    (IN64, {"image_size": "256"}, "image_size is 256: 64 fits (channel_mult 1,2,3,4)"),
    (IN64, {"channel_mult": "1,2,4"}, "channel_mult is 1,2,4: 1,2,3,4 fits"),
    (IN64, {"attention_resolutions": "16,8"}, "attention_resolutions is 16,8: 32,16,8 fits"),
    (IN64, {"class_cond": "False"}, "class_cond is False: True fits"),
    (IN64, {"learn_sigma": "False"}, "learn_sigma is False: True fits"),
    (IN64, {"use_scale_shift_norm": "False"}, "use_scale_shift_norm is False: True fits"),
    (IN64, {"resblock_updown": "False"}, "resblock_updown is False: True fits"),
    (IN64, {"large_size": "256"}, "large_size is 256: the file takes 3 channels and is no upsampler"),
    (CLASSIFIER, {"classifier_width": "64"}, "classifier_width is 64: 128 fits"),
    (CLASSIFIER, {"classifier_depth": "2"}, "classifier_depth is 2: 4 fits"),
    (CLASSIFIER, {"classifier_pool": "adaptive"}, "classifier_pool is adaptive: attention fits"),
    (CLASSIFIER, {"classifier_attention_resolutions": "16"}, "classifier_attention_resolutions is 16: 32,16,8 fits"),
    (CLASSIFIER, {"classifier_use_scale_shift_norm": "False"}, "classifier_use_scale_shift_norm is False: True fits"),
    (CLASSIFIER, {"classifier_resblock_updown": "False"}, "classifier_resblock_updown is False: True fits"),
    (CLASSIFIER, {"image_size": "128"}, "image_size is 128: 64 fits"),
    (UPSAMPLER, {"large_size": "64"}, "large_size is 64: 256 or 512 fits (channel_mult 1,1,2,2,4,4)"),
    (UPSAMPLER, {"num_channels": "256"}, "num_channels is 256: 192 fits"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "flip", "said"), FLIPPED, ids=lambda value: str(value)[:40])
def test_the_flag_that_contradicts_the_file_is_named_alone_with_the_value_that_fits(
    name: str, flip: dict[str, str], said: str
) -> None:
    shapes = preset_shapes(name)
    assert fit(flags_of(name), shapes) == preset_spec(find_preset(name))
    with pytest.raises(DamagedError) as refusal:
        fit(flags_of(name) | flip, shapes)
    assert str(refusal.value).startswith(f"1 flag cannot be of this file: {said}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "more",
    [
        {"num_head_channels": "32"},
        {"num_heads": "8", "num_head_channels": "-1"},
        {"use_new_attention_order": "False"},
        {"noise_schedule": "linear"},
        {"diffusion_steps": "4000"},
        {"rescale_timesteps": "True"},
        {"predict_xstart": "True"},
        {"dropout": "0.3"},
    ],
    ids=str,
)
def test_what_the_file_does_not_show_is_believed(more: dict[str, str]) -> None:
    flags = flags_of(IN64) | more
    spec = fit(flags, preset_shapes(IN64))
    assert spec == read_flags(flags, "diffusion") and spec != preset_spec(find_preset(IN64))


def test_several_contradictions_are_one_line_and_the_first_four_are_named() -> None:
    wrong = {"num_channels": "128", "num_res_blocks": "2", "class_cond": "False", "learn_sigma": "False"}
    with pytest.raises(DamagedError) as refusal:
        fit(flags_of(IN64) | wrong | {"resblock_updown": "False"}, preset_shapes(IN64))
    message = str(refusal.value)
    assert message.startswith("5 flags cannot be of this file: ") and "and 1 more. Correct them" in message
    assert len(message) < 400


def test_flags_of_the_unknown_alone_are_enough() -> None:
    unknown = {"image_size", "num_head_channels", "use_new_attention_order", "noise_schedule", "diffusion_steps"}
    flags = {name: value for name, value in flags_of(IN64).items() if name in unknown}
    found = fit(flags, preset_shapes(IN64))
    known = preset_spec(find_preset(IN64))
    assert found == replace(known, network=replace(known.network, dropout=0.0))  # dropout is over after training
    said = {word.partition(" ")[0].removeprefix("--") for word in silent_about(infer(preset_shapes(IN64))[0])}
    # Of what is asked for, these two have the released default here.
    assert said - unknown == {"num_heads", "rescale_timesteps", "predict_xstart"}


def test_an_image_size_that_is_not_given_is_not_guessed() -> None:
    flags = {name: value for name, value in flags_of("openai/imagenet256").items() if name != "image_size"}
    with pytest.raises(DamagedError, match="image_size is not given, which means 64: 256 fits"):
        fit(flags, preset_shapes("openai/imagenet256"))


def test_a_size_without_released_multipliers_takes_those_of_the_file() -> None:
    spec = fit(flags_of(IN64) | {"image_size": "96", "attention_resolutions": "48,24,12"}, preset_shapes(IN64))
    assert spec.network.channel_mult == (1, 2, 3, 4) and spec.network.size == (96, 96)
    assert spec.network.attention_resolutions == (48, 24, 12)


@pytest.mark.parametrize(("name", "table"), [(IN64, "label_emb.weight"), (CLASSIFIER, "out.2.c_proj.weight")])
def test_the_number_of_classes_which_the_released_code_has_as_a_constant_is_the_files(name: str, table: str) -> None:
    shapes = preset_shapes(name)
    own = shapes | {table: (5, *shapes[table][1:])}
    if name == CLASSIFIER:
        own |= {"out.2.c_proj.bias": (5,)}
    spec = fit(flags_of(name), own)
    assert spec.network.num_classes == 5 and released_shapes(spec) == own


def test_the_channels_of_grey_images_are_the_files() -> None:
    keywords = recorded_case("unet_cond_learned_legacy")[0]
    shapes = released_shapes(read_flags(keywords))
    grey = shapes | {"input_blocks.0.0.weight": (32, 1, 3, 3), "out.2.weight": (2, 32, 3, 3), "out.2.bias": (2,)}
    spec = fit(keywords, grey)
    assert (spec.network.in_channels, spec.network.out_channels) == (1, 2) and released_shapes(spec) == grey


@pytest.mark.parametrize(
    "name",
    ["unet_cond_learned_neworder", "unet_uncond_xstart_fixedlarge", "upsampler_8_to_16", "classifier_attention",
     "classifier_adaptive", "classifier_spatial", "classifier_spatial_v2"],
)  # fmt: skip
def test_the_recorded_flags_fit_their_shapes(name: str) -> None:
    flags = recorded_case(name)[0]
    assert fit(flags, released_shapes(read_flags(flags))) == read_flags(flags)


KEYWORDS = [
    ({"model_channels": 64}, "model_channels is 64: 32 fits"),
    ({"num_res_blocks": 2}, "num_res_blocks is 2: 1 fits"),
    ({"channel_mult": [1, 4]}, "channel_mult is 1,4: 1,2 fits"),
    ({"attention_resolutions": [1]}, "attention_resolutions is 1: 1,2 fits"),
    ({"pool": "spatial"}, "pool is spatial: attention fits"),
    ({"out_channels": 10}, "out_channels is 10: 1000 fits"),
    ({"image_size": 32}, "image_size is 32: 16 fits"),
    ({"in_channels": 1}, "in_channels is 1: 3 fits"),
]


@pytest.mark.parametrize(("flip", "said"), KEYWORDS, ids=str)
def test_constructor_keywords_are_held_against_the_file_too(flip: dict[str, Any], said: str) -> None:
    keywords = recorded_case("classifier_attention")[0]
    with pytest.raises(DamagedError, match="1 flag cannot") as refusal:
        fit(keywords | flip, released_shapes(read_flags(keywords)))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (IN64, CLASSIFIER, "is a diffusion network; give its flags"),
        (UPSAMPLER, IN64, "large_size is not given: the file takes 6 channels, an upsampler; add large_size and small"),
        (CLASSIFIER, UPSAMPLER, "large_size is 256: the file is a classifier; give image_size"),
    ],
)
def test_flags_of_another_kind_of_network_are_refused(name: str, flags: str, said: str) -> None:
    with pytest.raises(DamagedError) as refusal:
        fit(find_preset(flags).flags, preset_shapes(name))
    assert said in str(refusal.value).replace("the file is a diff", "is a diff")


def test_several_networks_of_one_shape_are_told_apart_by_the_user() -> None:
    from adm.checkpoints.openai import Spec
    from adm.nn import ClassifierConfig

    config = ClassifierConfig(8, model_channels=32, channel_mult=(1, 1), num_res_blocks=2, attention_resolutions=(),
                              num_head_channels=32, num_heads=1, pool="adaptive", num_classes=3)  # fmt: skip
    shapes = released_shapes(Spec("classifier", config))
    few = {"image_size": 8, "model_channels": 32, "num_head_channels": 32, "out_channels": 3}
    with pytest.raises(UsageError, match="several networks: num_res_blocks 1 or 2 or 5, channel_mult"):
        fit(few, shapes)
    assert fit(few | {"num_res_blocks": 2}, shapes).network.channel_mult == (1, 1)


def test_a_wrong_name_or_value_is_said_before_anything_else() -> None:
    with pytest.raises(UsageError, match="num_chanels is no released flag"):
        fit({"num_chanels": "128"}, preset_shapes(IN64))
    with pytest.raises(UsageError, match="num_channels is 'many': must be a whole number"):
        fit({"num_channels": "many"}, preset_shapes(IN64))
