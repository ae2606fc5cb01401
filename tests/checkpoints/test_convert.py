"""A released .pt and its flags become a directory that loads to the released network."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.convert import export
from adm.checkpoints.load import save_model
from adm.checkpoints.openai import read_flags, to_ours
from adm.diffusion.schedule import Schedule
from adm.nn import UNet, UNetConfig
from adm.runtime import files
from adm.runtime.errors import AdmError, DamagedError, DataError, ResourceError, UsageError
from faults import ENOSPC, faults
from golden_weights import DIFFUSION, recorded_case, recorded_weights, released_shapes
from tiny_runs import contents, run, tiny

PT = DIFFUSION / "unet_cond_learned_legacy.pt"
CASE = "unet_cond_learned_legacy"
CLASSIFIERS = ["classifier_attention", "classifier_adaptive", "classifier_spatial", "classifier_spatial_v2"]


def agree(ours: torch.Tensor, recorded: torch.Tensor) -> bool:
    return bool((ours - recorded).abs().max() <= 2e-5 * recorded.abs().max())


def flag_string(flags: dict[str, Any]) -> str:
    """As on a command line of the released scripts."""
    words = {k: v for k, v in flags.items() if not isinstance(v, (dict, list)) and v != ""}
    return " ".join(f"--{name} {value}" for name, value in words.items())


@pytest.mark.parametrize("form", [flag_string, dict], ids=["string", "mapping"])
def test_the_recorded_file_and_its_flags_give_the_recorded_output(form, tmp_path: Path) -> None:
    flags, arrays = recorded_case(CASE)
    directory = adm.convert(PT, tmp_path / "m", flags=form(flags))
    model = adm.load(directory)
    with torch.no_grad():
        raw = model.network(arrays["x"], arrays["t"], arrays["y"])
    assert agree(raw, arrays["model_output"])
    assert (model.mean, model.variance, model.time_scale) == ("eps", "learned", None)
    assert torch.equal(model.schedule.alpha_bar, adm.linear(1000).alpha_bar)
    files.verify_directory(directory)
    assert {path.name for path in directory.iterdir()} == {
        "MANIFEST.json", "model.json", "model.safetensors", "provenance.json",
    }  # fmt: skip
    provenance = json.loads((directory / "provenance.json").read_text())
    assert provenance == {"source": PT.name, "sha256": files.sha256_file(PT), "flags": form(flags)}


def test_string_and_mapping_give_the_same_model_to_the_byte(tmp_path: Path) -> None:
    flags, _ = recorded_case(CASE)
    a = contents(adm.convert(PT, tmp_path / "a", flags=flags))
    b = contents(adm.convert(str(PT), str(tmp_path / "b"), flags=flag_string(flags)))
    assert a["model.safetensors"] == b["model.safetensors"] and a["model.json"] == b["model.json"]


def test_the_twin_the_other_attention_order_gives_another_output(tmp_path: Path) -> None:
    flags, arrays = recorded_case(CASE)
    model = adm.load(adm.convert(PT, tmp_path / "m", flags=flags | {"use_new_attention_order": True}))
    with torch.no_grad():
        raw = model.network(arrays["x"], arrays["t"], arrays["y"])
    assert not agree(raw, arrays["model_output"])


def test_flags_say_the_schedule_the_mean_and_the_time_scale(tmp_path: Path) -> None:
    flags, _ = recorded_case(CASE)
    more = {"noise_schedule": "cosine", "diffusion_steps": 4000, "predict_xstart": True, "rescale_timesteps": True}
    model = adm.load(adm.convert(PT, tmp_path / "m", flags=flags | more))
    assert torch.equal(model.schedule.alpha_bar, adm.cosine(4000).alpha_bar)
    assert (model.mean, model.time_scale) == ("x0", 0.25)


# ---- classifiers ----------------------------------------------------------------------------------


def saved_classifier(name: str, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The recorded weights, saved as the released code saves its own."""
    keywords, arrays = recorded_case(name)
    torch.save(recorded_weights(released_shapes(read_flags(keywords)), keywords["weight_seed"]), path)
    return keywords, arrays


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_by_its_constructor_keywords(name: str, tmp_path: Path) -> None:
    keywords, arrays = saved_classifier(name, tmp_path / "c.pt")
    model = adm.load(adm.convert(tmp_path / "c.pt", tmp_path / "m", flags=keywords))
    assert isinstance(model, adm.NoisyClassifier)
    assert agree(model(arrays["x"], arrays["t"]).detach(), arrays["logits"])
    assert agree(model.log_prob(arrays["x"], arrays["t"], arrays["y"]).detach(), arrays["log_prob"])
    assert agree(model.grad_log_prob(arrays["x"], arrays["t"], arrays["y"]), arrays["grad"])
    assert model.schedule is None and model.time_scale is None  # not said: unknown


@pytest.mark.parametrize(
    ("said", "time_scale"),
    [
        ({"noise_schedule": "cosine", "diffusion_steps": 400}, None),
        ({"noise_schedule": "cosine", "diffusion_steps": 400, "rescale_timesteps": True}, 2.5),
    ],
)
def test_a_schedule_beside_the_keywords_is_the_classifiers(said, time_scale, tmp_path: Path) -> None:
    keywords, arrays = saved_classifier("classifier_attention", tmp_path / "c.pt")
    model = adm.load(adm.convert(tmp_path / "c.pt", tmp_path / "m", flags=keywords | said))
    assert torch.equal(model.schedule.alpha_bar, adm.cosine(400).alpha_bar) and model.time_scale == time_scale
    t = arrays["t"].double() / (time_scale or 1)
    assert agree(model(arrays["x"], t if time_scale else arrays["t"]).detach(), arrays["logits"])


def test_one_half_of_a_schedule_is_no_schedule(tmp_path: Path) -> None:
    keywords, _ = saved_classifier("classifier_attention", tmp_path / "c.pt")
    model = adm.load(adm.convert(tmp_path / "c.pt", tmp_path / "m", flags=keywords | {"noise_schedule": "cosine"}))
    assert model.schedule is None


# ---- what is refused ------------------------------------------------------------------------------


def refused(error: type[AdmError], exit_code: int, source: Path, out: Path, flags: object) -> str:
    """The one line; nothing is left at the destination."""
    before = contents(out.parent)
    with pytest.raises(error) as info:
        adm.convert(source, out, flags=flags)  # type: ignore[arg-type]
    assert info.value.exit_code == exit_code
    assert "\n" not in str(info.value) and len(str(info.value)) < 700
    assert contents(out.parent) == before
    return str(info.value)


def golden_flags() -> dict[str, Any]:
    return recorded_case(CASE)[0]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "not a zip"])
def test_a_damaged_file(damage: str, tmp_path: Path) -> None:
    data = bytearray(PT.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 4
    data = {"bit": data, "cut": data[: len(data) // 3], "empty": b"", "not a zip": b"no weights" * 100}[damage]
    (tmp_path / "d.pt").write_bytes(data)
    message = refused(DamagedError, 4, tmp_path / "d.pt", tmp_path / "m", golden_flags())
    assert "d.pt" in message and "fetch it again" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_channels": 64}, "num_channels is 64: 32 fits"),
        ({"class_cond": False}, "class_cond is False: True fits"),
        ({"num_res_blocks": 2}, "num_res_blocks is 2: 1 fits"),
        ({"learn_sigma": False}, "learn_sigma is False: True fits"),
    ],
)
def test_flags_of_another_network(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    message = refused(DamagedError, 4, PT, tmp_path / "m", golden_flags() | change)
    assert said in message and PT.name in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (None, "which is no preset. Say what its shapes do not: adm convert"),
        ('{"image_size": }', "the flags cannot be read"),
        ("[1]", "stands among the flags without a name"),
        ("absent.json", "absent.json"),
        ("--image_size 16 --num_chanels 32", "num_chanels"),
        ("--image_size sixteen", "sixteen"),
        ("--image_size 17", "17"),
        ({"image_size": 64, "noise_schedule": "quadratic"}, "quadratic"),
        ("image_size", "image_size"),
    ],
)
def test_flags_that_cannot_be(flags, said: str, tmp_path: Path) -> None:
    assert said in refused(UsageError, 2, PT, tmp_path / "m", flags)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "absent.pt: no such file" in refused(
        DataError, 3, tmp_path / "absent.pt", tmp_path / "m", golden_flags()
    )  # fmt: skip


def test_a_destination_that_exists(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("mine")
    message = refused(UsageError, 2, PT, tmp_path / "m", golden_flags())
    assert "exists. Choose another destination, or remove it" in message


class Executes:
    """What an evil pickle holds: called while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "executed"))


def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark, evil = tmp_path / "executed", tmp_path / "evil.pt"
    torch.save({"input_blocks.0.0.weight": Executes(mark)}, evil)
    assert "asks to call" in refused(DamagedError, 4, evil, tmp_path / "m", golden_flags())
    assert not mark.exists()
    with zipfile.ZipFile(evil) as archive:  # the twin: an ordinary reader executes it
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickle.loads(archive.read(name))
    assert mark.read_text() == "executed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "holds no network of guided-diffusion"),
        ({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}}, "holds 2 state dicts"),
        ([torch.zeros(1)], "holds a list"),
        ({}, "holds an empty dict"),
    ],
)
def test_a_file_that_holds_no_flat_state_dict(content, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert said in refused(DamagedError, 4, tmp_path / "x.pt", tmp_path / "m", golden_flags())


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    weights = torch.load(PT, weights_only=True)
    weights["time_embed.0.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(AdmError, match="not finite") as info:
        adm.convert(tmp_path / "nan.pt", tmp_path / "m", flags=golden_flags())
    assert "\n" not in str(info.value) and not (tmp_path / "m").exists()


def test_half_precision_files_become_single_precision(tmp_path: Path) -> None:
    weights = {name: value.half() for name, value in torch.load(PT, weights_only=True).items()}
    torch.save(weights, tmp_path / "half.pt")
    directory = adm.convert(tmp_path / "half.pt", tmp_path / "m", flags=golden_flags())
    stored = checkpoint_format.load(directory).tensors["model"]
    assert {value.dtype for value in stored.values()} == {torch.float32}


@pytest.mark.parametrize("form", ["text", "file"])
def test_flags_as_json(form: str, tmp_path: Path) -> None:
    text = json.dumps(golden_flags())
    (tmp_path / "flags.json").write_text(text)
    directory = adm.convert(PT, tmp_path / "m", flags=text if form == "text" else str(tmp_path / "flags.json"))
    assert files.read_json(directory / "provenance.json")["flags"] == golden_flags()
    assert (directory / "model.json").read_bytes() == (
        adm.convert(PT, tmp_path / "n", flags=golden_flags()) / "model.json"
    ).read_bytes()


# ---- back again -----------------------------------------------------------------------------------

UNETS = ["unet_cond_learned_legacy", "unet_cond_learned_neworder", "unet_uncond_fixed_legacy",
         "unet_uncond_xstart_fixedlarge", "upsampler_8_to_16"]  # fmt: skip


FIRST = ["unet_cond_learned_legacy", "unet_cond_learned_neworder", "upsampler_8_to_16", "classifier_attention"]
SIDES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in UNETS + CLASSIFIERS]


@pytest.mark.parametrize("name", SIDES)
def test_there_back_and_there_again(name: str, tmp_path: Path) -> None:
    """The tensors return to the byte, in their order, and the recorded values hold on both sides."""
    flags, arrays = recorded_case(name)
    released = recorded_weights(released_shapes(read_flags(flags)), flags["weight_seed"])
    torch.save(released, tmp_path / "a.pt")
    ours = adm.convert(tmp_path / "a.pt", tmp_path / "a", flags=flags)
    back, words = export(ours, tmp_path / "b.pt")
    content = torch.load(back, weights_only=True)
    assert type(content) is OrderedDict and list(content) == list(released_shapes(read_flags(flags)))
    for key, value in content.items():
        assert value.dtype == torch.float32 and torch.equal(value, released[key]), key
        assert value.untyped_storage().nbytes() == 4 * value.numel()
    # The words that were printed are those with which it comes back, also the last time from a bare file.
    again = adm.convert(back, tmp_path / "c", flags=words)
    assert contents(again)["model.safetensors"] == contents(ours)["model.safetensors"]
    assert contents(again)["model.json"] == contents(ours)["model.json"]
    network = adm.load(again).network
    with torch.no_grad():
        extra = [] if "logits" in arrays else [arrays.get("y"), arrays.get("low_res")]
        output = network(arrays["x"], arrays["t"], *extra)
    assert agree(output, arrays["logits" if "logits" in arrays else "model_output"])


def test_what_is_written_back_has_the_names_order_and_shapes_that_the_original_code_saved(tmp_path: Path) -> None:
    original = torch.load(PT, weights_only=True)
    ours = adm.convert(PT, tmp_path / "m", flags=golden_flags())
    back = torch.load(adm.convert(ours, tmp_path / "b.pt", to="openai"), weights_only=True)
    assert [(name, value.shape, value.dtype) for name, value in back.items()] == [
        (name, value.shape, value.dtype) for name, value in original.items()
    ]
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_a_run_goes_back_with_its_averaged_or_its_last_weights(tmp_path: Path) -> None:
    run(tiny("diffusion", "network.model_channels=32", "loop.steps=2", "loop.save_every=2"), tmp_path / "run")
    stored = checkpoint_format.load(tmp_path / "run" / "checkpoints" / "step-00000002").tensors
    for weights, group in (("ema", "ema"), ("model", "model")):
        file, words = export(tmp_path / "run", tmp_path / f"{weights}.pt", weights=weights)
        spec = read_flags(json.loads(words) if words.startswith("{") else words)
        ours = to_ours(torch.load(file, weights_only=True), spec.network, new_attention_order=spec.new_attention_order)
        assert all(torch.equal(ours[name], stored[group][name]) for name in ours)
    same = all(torch.equal(stored["ema"][name], stored["model"][name]) for name in stored["ema"])
    assert not same  # the twin: the two differ


def model_like(**changes: Any) -> adm.DiffusionModel:
    trunk: dict[str, Any] = {"image_size": 64, "model_channels": 32, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 1}
    network = UNet(UNetConfig(**trunk | {"out_channels": 6} | changes.pop("network", {})))
    return adm.DiffusionModel(network, changes.pop("schedule", adm.linear(1000)), **changes)


def test_a_model_that_flags_express_comes_with_the_flag_string(tmp_path: Path) -> None:
    model = model_like(schedule=adm.cosine(400), time_scale=2.5)
    _, words = export(save_model(model, tmp_path / "m"), tmp_path / "x.pt")
    assert words == (
        "--image_size 64 --num_channels 32 --num_res_blocks 1 --num_heads 4 --num_head_channels -1 "
        "--attention_resolutions 32,16,8 --dropout 0.0 --class_cond False --use_scale_shift_norm True "
        "--resblock_updown True --use_new_attention_order False --learn_sigma True --predict_xstart False "
        "--noise_schedule cosine --diffusion_steps 400 --rescale_timesteps True"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"num_classes": 10}}, '"num_classes": 10'),
        ({"network": {"in_channels": 1, "out_channels": 2}}, '"in_channels": 1'),
        ({"network": {"channel_mult": (0.5, 1), "model_channels": 64}}, '"channel_mult": [0.5, 1]'),
        ({"network": {"resblock_updown": False, "resample_conv": False}}, '"conv_resample": false'),
    ],
)
def test_what_no_flag_says_and_the_original_constructor_does_comes_as_its_keywords(changes, said, tmp_path) -> None:
    _, words = export(save_model(model_like(**changes), tmp_path / "m"), tmp_path / "x.pt")
    assert said in words
    model = adm.load(adm.convert(tmp_path / "x.pt", tmp_path / "n", flags=words))
    assert model.network.config.num_classes == changes["network"].get("num_classes")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": "v"}, "mean is v, not eps or x0"),
        ({"mean": "edm"}, "mean is edm"),
        ({"schedule": Schedule(torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64))}, "schedule is neither linear nor"),
        ({"time_scale": 3.0}, "time_scale is 3"),
        ({"network": {"model_channels": 16}}, "16 channels are no multiple of 32"),
        ({"network": {"rescale_skips": True}}, "rescale_skips"),
        ({"network": {"image_size": (64, 32)}}, "image_size"),
    ],
)
def test_what_the_original_code_cannot_express_is_refused_by_name_and_nothing_is_written(
    changes, said, tmp_path
) -> None:
    directory = save_model(model_like(**changes), tmp_path / "m")
    with pytest.raises(UsageError, match=said) as refusal:
        adm.convert(directory, tmp_path / "x.pt", to="openai")
    assert "our format" in str(refusal.value) and "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_written_or_makes_no_sense_is_refused(tmp_path: Path) -> None:
    ours = adm.convert(PT, tmp_path / "m", flags=golden_flags())
    (tmp_path / "there.pt").write_bytes(b"mine")
    for arguments, said in (
        (dict(source=ours, destination=tmp_path / "there.pt", to="openai"), "there.pt exists"),
        (dict(source=ours, destination=tmp_path / "n"), "is in our format. To write a released file of it, add --to"),
        (dict(source=ours, destination=tmp_path / "n.pt", to="openai", flags="--image_size 16"), "says itself what"),
        (dict(source=PT, destination=tmp_path / "n", to="onnx"), "to 'onnx': choose adm or openai"),
        (dict(source=PT, destination=tmp_path / "n", flags="", weights="model"), "weights chooses what"),
        (dict(source=ours, destination=tmp_path / "n.pt", to="openai", weights="best"), "weights 'best'"),
    ):
        with pytest.raises(UsageError, match=said):
            adm.convert(**arguments)
    assert (tmp_path / "there.pt").read_bytes() == b"mine" and not list(tmp_path.glob("n*"))


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ours = adm.convert(PT, tmp_path / "m", flags=golden_flags())

    def write() -> None:
        adm.convert(ours, tmp_path / "x.pt", to="openai")

    with faults() as counter:
        write()
    (tmp_path / "x.pt").unlink()
    writes = [i for i, (name, _) in enumerate(counter.calls) if name == "write"]
    assert len(writes) > 2
    for at in writes:
        with faults(at, ENOSPC), pytest.raises(ResourceError, match=r"cannot write .*x\.pt: No space left on device"):
            write()
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
