"""Released files become our networks: their values, names, flags and files."""

import pytest
import torch

from adm.checkpoints.openai import Spec, is_classifier, read_flags, to_openai, to_ours, write_flags
from adm.checkpoints.torch_file import read_state_dict
from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.errors import DamagedError, UsageError
from golden_weights import (
    DIFFUSION,
    meta_network,
    recorded_case,
    recorded_network,
    recorded_weights,
    released_shapes,
)

UNETS = [
    "unet_cond_learned_legacy",
    "unet_cond_learned_neworder",
    "unet_uncond_fixed_legacy",
    "unet_uncond_xstart_fixedlarge",
    "upsampler_8_to_16",
]
CLASSIFIERS = ["classifier_attention", "classifier_adaptive", "classifier_spatial", "classifier_spatial_v2"]

COMMON = "--diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_scale_shift_norm True"
ADM = f"{COMMON} --attention_resolutions 32,16,8"
IMPROVED = "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine"
# Flags and the number of parameters in millions, rounded as the paper's tables do, where they have it.
RELEASED = {
    "64": (
        f"{ADM} --image_size 64 --class_cond True --num_channels 192 --num_res_blocks 3 "
        "--num_head_channels 64 --noise_schedule cosine --dropout 0.1 --use_new_attention_order True "
        "--use_fp16 True",
        295.90,
    ),
    "128": (f"{ADM} --image_size 128 --class_cond True --num_channels 256 --num_heads 4", 421.53),
    "256": (f"{ADM} --image_size 256 --class_cond True --num_channels 256 --num_head_channels 64", 553.84),
    "256_uncond": (f"{ADM} --image_size 256 --num_channels 256 --num_head_channels 64", 552.81),
    "512": (f"{ADM} --image_size 512 --class_cond True --num_channels 256 --num_head_channels 64", 559.00),
    "lsun": (f"{ADM} --image_size 256 --num_channels 256 --num_head_channels 64 --dropout 0.1", 552.81),
    "64_256": (f"{ADM} --large_size 256 --small_size 64 --class_cond True --num_channels 192", 311.80),
    "128_512": (
        f"{COMMON} --attention_resolutions 32,16 --large_size 512 --small_size 128 --class_cond True "
        "--num_channels 192 --num_head_channels 64",
        308.84,
    ),
    "64_classifier": ("--image_size 64 --classifier_depth 4", 65.44),
    "128_classifier": ("--image_size 128 --classifier_depth 2", 42.57),
    "256_classifier": ("--image_size 256 --classifier_width 128", 54.10),
    "512_classifier": ("--image_size 512 --classifier_pool attention", 54.45),
    "improved_64": (f"{IMPROVED} --image_size 64 --num_res_blocks 3 --rescale_timesteps True", None),
    "improved_cond": (
        f"{IMPROVED} --image_size 64 --num_channels 192 --num_res_blocks 3 --class_cond True",
        None,
    ),
    "improved_cifar": (f"{IMPROVED} --image_size 32 --num_res_blocks 3 --dropout 0.3 --use_kl True", None),
    "improved_upsample": (
        "--large_size 256 --small_size 64 --num_channels 192 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000",
        None,
    ),
    "improved_lsun": (
        "--image_size 256 --num_heads 1 --learn_sigma True --use_scale_shift_norm False --attention_resolutions 16",
        None,
    ),
}


def agree(ours, recorded):
    """Within 2e-5 of the largest magnitude; the released code moves by 2.4e-5 with the number of threads."""
    return (ours - recorded).abs().max() <= 2e-5 * recorded.abs().max()


@pytest.mark.parametrize("name", UNETS)
def test_raw_outputs_are_the_recorded_ones(name):
    flags, arrays = recorded_case(name)
    network = recorded_network(read_flags(flags), flags["weight_seed"])
    with torch.no_grad():
        output = network(arrays["x"], arrays["t"], arrays.get("y"), arrays.get("low_res"))
    assert agree(output, arrays["model_output"])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_and_gradients_are_the_recorded_ones(name):
    keywords, arrays = recorded_case(name)
    network = recorded_network(read_flags(keywords), keywords["weight_seed"])
    x = arrays["x"].requires_grad_()
    logits = network(x, arrays["t"])
    log_prob = logits.log_softmax(dim=1)[range(len(x)), arrays["y"]]
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    assert agree(logits, arrays["logits"])
    assert agree(log_prob, arrays["log_prob"])
    assert agree(gradient, arrays["grad"])


def test_the_saved_file_holds_the_recipe_in_our_names_order_and_shapes():
    flags, _ = recorded_case("unet_cond_learned_legacy")
    saved = read_state_dict(DIFFUSION / "unet_cond_learned_legacy.pt")
    made = recorded_weights(released_shapes(read_flags(flags)), flags["weight_seed"])
    assert list(saved) == list(released_shapes(read_flags(flags)))
    assert all(torch.equal(saved[name], made[name]) for name in saved) and saved.keys() == made.keys()


@pytest.mark.parametrize("model", RELEASED)
def test_every_released_network_has_its_size_and_a_bijection_of_names(model):
    flags, millions = RELEASED[model]
    spec = read_flags(flags)
    state_dict = meta_network(spec).state_dict()
    if millions is not None:
        assert round(sum(tensor.numel() for tensor in state_dict.values()) / 1e6, 2) == millions
    released = to_openai(state_dict, spec.network, new_attention_order=spec.new_attention_order)
    assert len(released) == len(state_dict)
    ours = to_ours(released, spec.network, new_attention_order=spec.new_attention_order)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in state_dict.items()}


@pytest.mark.parametrize("name", UNETS + CLASSIFIERS)
@pytest.mark.parametrize("new_order", [False, True])
def test_there_and_back_changes_no_number(name, new_order):
    flags, _ = recorded_case(name)
    spec = read_flags(flags)
    released = recorded_weights(released_shapes(spec), seed=0)
    ours = to_ours(released, spec.network, new_attention_order=new_order)
    back = to_openai(ours, spec.network, new_attention_order=new_order)
    assert back.keys() == released.keys()
    assert all(torch.equal(back[key], released[key]) for key in released)


def test_the_two_attention_orders_are_two_layouts_of_the_same_rows():
    # Rows numbered head by head, each with its q, k, v: ours has all q first, then all k, then all v.
    config = UNetConfig(8, model_channels=4, channel_mult=(1,), attention_resolutions=(), num_heads=2)
    spec = Spec("diffusion", config)
    released = recorded_weights(released_shapes(spec), seed=0)
    released["middle_block.1.qkv.bias"] = torch.arange(12.0)
    legacy = to_ours(released, config, new_attention_order=False)["encoder.middle.1.qkv.bias"]
    assert legacy.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    new = to_ours(released, config, new_attention_order=True)["encoder.middle.1.qkv.bias"]
    assert new.tolist() == list(range(12))


def test_a_state_dict_that_does_not_fit_is_refused_in_one_line():
    flags, _ = recorded_case("unet_cond_learned_legacy")
    config = read_flags(flags).network
    wrong = recorded_weights(released_shapes(read_flags(flags)), seed=0)
    for i in range(4):
        wrong[f"extra.{i}"] = torch.zeros(1)
    del wrong["label_emb.weight"]
    wrong["out.2.bias"] = torch.zeros(3)
    with pytest.raises(DamagedError) as refusal:
        to_ours(wrong, config)
    message = str(refusal.value)
    assert "1 missing (label_emb.weight)" in message
    assert "4 unexpected (extra.0, extra.1, extra.2, ...)" in message
    assert "1 misshapen (out.2.bias (3,) for (6,))" in message
    assert "\n" not in message and len(message) < 400


def test_a_classifier_is_known_by_its_state_dict():
    assert is_classifier(released_shapes(read_flags(RELEASED["64_classifier"][0])))
    assert not is_classifier(released_shapes(read_flags(RELEASED["64"][0])))
    assert not is_classifier({})


def test_the_released_flag_string_of_imagenet_64_says_what_the_model_card_says():
    assert read_flags(RELEASED["64"][0]) == Spec(
        "diffusion",
        UNetConfig(
            64,
            out_channels=6,
            model_channels=192,
            channel_mult=(1, 2, 3, 4),
            num_res_blocks=3,
            attention_resolutions=(32, 16, 8),
            num_head_channels=64,
            dropout=0.1,
            num_classes=1000,
        ),
        noise_schedule="cosine",
        diffusion_steps=1000,
        mean="eps",
        variance="learned",
        new_attention_order=True,
    )


def test_flags_that_are_not_given_have_the_released_defaults():
    spec = read_flags("")
    assert spec == Spec("diffusion", UNetConfig(64, attention_resolutions=(16, 8), resblock_updown=False))
    assert (spec.noise_schedule, spec.diffusion_steps, spec.mean, spec.variance) == (
        "linear",
        1000,
        "eps",
        "large",
    )
    assert spec.network.num_heads == 4 and spec.network.num_classes is None and spec.network.scale_shift_norm
    classifier = read_flags("", kind="classifier")
    assert classifier.network == ClassifierConfig(64, channel_mult=(1, 2, 3, 4), num_head_channels=64)
    keywords = {"image_size": 32, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1}
    network = read_flags(keywords | {"attention_resolutions": [4], "num_classes": None}).network
    assert network.channel_mult == (1, 2, 4, 8) and network.num_heads == 1 and not network.scale_shift_norm


def test_a_classifier_knows_its_schedule_only_if_told():
    flags = "--image_size 64 --classifier_depth 4"
    assert read_flags(flags).noise_schedule is None and read_flags(flags).diffusion_steps is None
    assert read_flags(f"{flags} --noise_schedule cosine").noise_schedule is None
    told = read_flags(f"{flags} --noise_schedule cosine --diffusion_steps 400 --rescale_timesteps True")
    assert (told.noise_schedule, told.diffusion_steps, told.time_scale) == ("cosine", 400, 2.5)
    keywords, _ = recorded_case("classifier_attention")
    assert read_flags(keywords | {"noise_schedule": "linear", "diffusion_steps": 1000}).noise_schedule == "linear"


def test_one_command_line_for_model_and_classifier_gives_either():
    guided = "--classifier_scale 1.0 --classifier_path c.pt --classifier_depth 4 --batch_size 4"
    line = f"{RELEASED['64'][0]} {guided}"
    assert read_flags(line).kind == "classifier"
    assert read_flags(line, kind="unet") == read_flags(RELEASED["64"][0])
    assert read_flags(line, kind="diffusion") == read_flags(RELEASED["64"][0])
    classifier = read_flags(line, kind="classifier")
    assert classifier.network == read_flags(RELEASED["64_classifier"][0]).network
    assert (classifier.noise_schedule, classifier.diffusion_steps) == ("cosine", 1000)
    assert read_flags(RELEASED["64_256"][0], kind="unet").kind == "upsampler"


def test_pixels_in_flags_are_factors_in_keywords():
    flags = read_flags({"image_size": 16, "num_channels": 32, "channel_mult": "1,1,2", "attention_resolutions": "8,4"})
    keywords = {
        "image_size": 16,
        "model_channels": 32,
        "channel_mult": [1, 1, 2],
        "attention_resolutions": [2, 4],
    }
    spec = read_flags(keywords | {"out_channels": 3, "num_res_blocks": 2, "num_heads": 4, "use_scale_shift_norm": True})
    assert spec.network == flags.network and spec.network.attention_resolutions == (8, 4)


def test_keywords_of_any_channels_and_of_a_learned_variance():
    keywords = {
        "image_size": 32,
        "in_channels": 1,
        "model_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": (0.5, 1),
    }
    keywords |= {"attention_resolutions": (2,), "num_classes": 10, "conv_resample": False, "dims": 2}
    spec = read_flags(keywords | {"out_channels": 2})
    assert spec.variance == "learned" and spec.network.num_classes == 10 and not spec.network.resample_conv
    assert spec.network.channel_mult == (0.5, 1)
    assert read_flags(keywords | {"out_channels": 1, "sigma_small": True}).variance == "small"
    upsampler = read_flags(keywords | {"out_channels": 2}, kind="upsampler")
    assert upsampler.network.in_channels == upsampler.network.low_res_channels == 1
    with pytest.raises(UsageError, match="out_channels is 5: must be 1, or with learn_sigma 2"):
        read_flags(keywords | {"out_channels": 5})


@pytest.mark.parametrize("model", RELEASED)
def test_flags_written_and_read_again_are_the_same(model):
    spec = read_flags(RELEASED[model][0])
    assert read_flags(write_flags(spec)) == spec


@pytest.mark.parametrize("name", [*UNETS, "classifier_spatial"])
def test_recorded_flags_written_and_read_again_are_the_same(name):
    spec = read_flags(recorded_case(name)[0])
    if spec.kind != "diffusion":
        with pytest.raises(UsageError, match="no released flags express"):
            write_flags(spec)
    else:
        assert read_flags(write_flags(spec), kind=spec.kind) == spec


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_chanels 192", "num_chanels is no released flag; did you mean 'num_channels'?"),
        ({"model_channels": 32, "num_res_block": 1}, "did you mean 'num_res_blocks'?"),
        ("--image_size big", "image_size is 'big': must be a whole number"),
        ("--class_cond maybe", "class_cond is 'maybe': must be True or False"),
        ("--noise_schedule quadratic", "noise_schedule is 'quadratic': must be linear or cosine"),
        ("--class_cond --image_size 64", "--class_cond has no value"),
        ("python sample.py --image_size 64", "'python' stands among the flags without a name"),
        ("--image_size 48", "image size 48 has no released channel_mult"),
        ("--num_heads 4 --num_heads_upsample 2", "num_heads_upsample is 2: must be -1 or 4"),
        ("--num_heads 5", "num_heads 5 does not divide"),
        ("--diffusion_steps 0", "diffusion_steps is 0"),
        ({"model_channels": 32, "out_channels": 3}, "image_size is not given"),
        ({"classifier_pool": "mean"}, "pool is 'mean': must be one of attention"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_line(flags, message):
    with pytest.raises(UsageError) as refusal:
        read_flags(flags)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
