"""What shapes say of a network is read off them; what they do not say is not."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adm.checkpoints.openai import Spec, infer, read_flags
from adm.checkpoints.openai_shapes import Structure, multiplier, structure_of
from adm.checkpoints.presets import PRESETS, find_preset, preset_spec
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import DamagedError
from golden_weights import recorded_case, released_shapes

# Of the state dict that guided-diffusion (22e0df8) makes from each preset's flags: number of tensors and of numbers,
# and the sha256 of its lines "name 1,2,3", in its order.
RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "released_state_dicts.json").read_text())
FEW = [
    "openai/imagenet64",
    "openai/imagenet512",
    "openai/imagenet64-classifier",
    "openai/imagenet128-to-512",
    "openai/iddpm-lsun-bs128",
]
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]


def test_every_preset_has_its_record() -> None:
    assert RECORDED.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_presets_names_shapes_and_order_are_the_original_codes_and_say_what_it_is(name: str) -> None:
    spec = preset_spec(find_preset(name))
    shapes = released_shapes(spec)
    lines = "".join(f"{tensor} {','.join(map(str, shape))}\n" for tensor, shape in shapes.items())
    assert hashlib.sha256(lines.encode()).hexdigest() == RECORDED[name]["sha256"]
    assert len(shapes) == RECORDED[name]["tensors"]
    assert infer(shapes)[0] == structure_of(spec)


def test_imagenet_512_in_the_model_cards_words() -> None:
    (found,) = infer(released_shapes(preset_spec(find_preset("openai/imagenet512"))))
    assert found == Structure(
        kind="diffusion",
        model_channels=256,
        level_channels=(128, 256, 256, 512, 512, 1024, 1024),
        num_res_blocks=2,
        attention_levels=(4, 5, 6),  # 32, 16 and 8 pixels of 512
        resampling="residual",
        in_channels=3,
        out_channels=6,
        num_classes=1000,
        scale_shift_norm=True,
    )
    assert found.channel_mult == (0.5, 1, 1, 2, 2, 4, 4) and found.attention_factors == (16, 32, 64)
    assert found.learned_variance
    assert str(found) == (
        "a diffusion network (256 channels x 0.5,1,1,2,2,4,4, 2 blocks a level, attention at 1/16,1/32,1/64, "
        "1000 classes, learned variance)"
    )


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_recorded_classifier_says_its_pool_and_by_its_positions_its_size(pool: str) -> None:
    keywords, _ = recorded_case(f"classifier_{pool}")
    found = infer(released_shapes(read_flags(keywords)))[0]
    assert (found.kind, found.pool, found.num_classes) == ("classifier", pool, keywords["out_channels"])
    assert found.attention_factors == tuple(keywords["attention_resolutions"])
    assert found.image_size == (16 if pool == "attention" else None)
    assert found.resampling == ("residual" if keywords["resblock_updown"] else "convolution")


TRUNKS: list[dict[str, Any]] = [
    {"channel_mult": mult, "num_res_blocks": depth, "attention_resolutions": attention, "scale_shift_norm": shift}
    | resampling
    for (mult, depth, attention, shift), resampling in zip(
        itertools.product([(1,), (0.5, 1), (1, 1, 2), (1, 2, 2, 3)], [1, 3], [(), (16,), (8, 2)], [True, False]),
        itertools.cycle(
            [
                {"resblock_updown": True},
                {"resblock_updown": False},
                {"resblock_updown": False, "resample_conv": False},
                {"resblock_updown": True, "resample_conv": False},
                {"resblock_updown": False},
            ]
        ),
        strict=False,
    )
]


@pytest.mark.parametrize("trunk", TRUNKS[::4], ids=str)
@pytest.mark.parametrize("kind", ["diffusion", "upsampler", "classifier"])
def test_any_network_of_this_family_is_read_off_its_shapes(kind: Any, trunk: dict[str, Any]) -> None:
    sizes = {"image_size": 16, "model_channels": 8, "num_heads": 1}
    if kind == "classifier":
        spec = Spec(kind, ClassifierConfig(num_head_channels=None, num_classes=7, **sizes, **trunk))
    else:
        low_res = 1 if kind == "upsampler" else 0
        spec = Spec(kind, UNetConfig(in_channels=1, out_channels=2, low_res_channels=low_res, **sizes, **trunk))
    found = infer(released_shapes(spec))
    assert structure_of(spec) in found
    if kind == "diffusion":  # the others have doubles in rare shapes: see below
        assert len(found) == 1


def test_what_shapes_do_not_say_does_not_change_what_is_found() -> None:
    spec = preset_spec(find_preset("openai/iddpm-cifar10-uncond"))
    others = [
        replace(
            spec, noise_schedule="linear", diffusion_steps=10, mean="x0", time_scale=None, new_attention_order=True
        ),
        replace(spec, network=replace(spec.network, num_heads=1, dropout=0.0)),
        replace(spec, network=replace(spec.network, image_size=64, attention_resolutions=(32, 16))),
    ]
    shapes = released_shapes(spec)
    for other in others:
        assert released_shapes(other) == shapes and structure_of(other) == structure_of(spec)


def test_twice_the_channels_are_a_low_resolution_image_or_more_channels_and_both_are_told() -> None:
    upsampler, wide = infer(released_shapes(read_flags(recorded_case("upsampler_8_to_16")[0])))
    assert (upsampler.kind, upsampler.in_channels, upsampler.learned_variance) == ("upsampler", 3, True)
    assert (wide.kind, wide.in_channels, wide.learned_variance) == ("diffusion", 6, False)


def test_a_classifier_whose_levels_do_not_show_is_told_with_each_number_of_them() -> None:
    config = ClassifierConfig(8, model_channels=8, channel_mult=(1, 1), num_res_blocks=2, attention_resolutions=(),
                              num_head_channels=None, num_heads=1, pool="adaptive", num_classes=3)  # fmt: skip
    found = infer(released_shapes(Spec("classifier", config)))
    # Six entries: two levels of two blocks, three levels of one block, or one level of five.
    assert {(len(one.level_channels), one.num_res_blocks) for one in found} == {(1, 5), (2, 2), (3, 1)}


@pytest.mark.parametrize(("channels", "of"), [(128, 256), (100, 192), (85, 128), (29, 96), (7, 3), (1, 3), (96, 32)])
def test_a_multiplier_gives_its_channels_again(channels: int, of: int) -> None:
    assert int(multiplier(channels, of) * of) == channels


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["down_blocks.0.resnets.0.conv1.weight"], "of diffusers"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "of latent-diffusion"),
        (["downs.0.0.block1.weight"], "of denoising-diffusion-pytorch"),
        (["encoder.stem.weight"], "give the checkpoint directory"),
        (["a"], "parts that every one has are not there"),
        ([], "the first of 0 is nothing"),
        (["input_blocks.0.0.weight"], "parts that every one has are not there"),
        (["input_blocks.9999.0.qkv.weight", "output_blocks.0.0.in_layers.2.weight"], "not there"),
    ],
)
def test_what_is_none_of_this_family_is_named(names: list[str], said: str) -> None:
    with pytest.raises(DamagedError, match=said) as refusal:
        infer({name: (1,) for name in names})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["unet_cond_learned_legacy", "classifier_attention", "upsampler_8_to_16"])
def test_shapes_of_nonsense_are_refused_or_read_but_never_fail(name: str) -> None:
    shapes = released_shapes(read_flags(recorded_case(name)[0]))
    for changed in list(shapes)[::2]:
        for shape in ((), (0, 0), (2, 3, 4, 5, 6)):
            for sabotaged in (shapes | {changed: shape}, {k: v for k, v in shapes.items() if k != changed}):
                try:
                    assert all(str(structure) for structure in infer(sabotaged))
                except DamagedError as error:
                    assert "\n" not in str(error)
