"""A released .pt and its flags become a directory that loads to the released network."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.openai import read_flags
from adm.runtime import files
from adm.runtime.errors import AdmError, DamagedError, DataError, UsageError
from golden_weights import DIFFUSION, recorded_case, recorded_weights, released_shapes
from tiny_runs import contents

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
        ({"num_channels": 64}, "shape"),
        ({"class_cond": False}, "unexpected"),
        ({"num_res_blocks": 2}, "missing"),
        ({"learn_sigma": False}, "shape"),
    ],
)
def test_flags_of_another_network(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    message = refused(DamagedError, 4, PT, tmp_path / "m", golden_flags() | change)
    assert said in message and PT.name in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (None, "does not say what it is. Give the flags it was released with: --flags '...'"),
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
    assert "may be code and is not loaded" in refused(DamagedError, 4, evil, tmp_path / "m", golden_flags())
    assert not mark.exists()
    with zipfile.ZipFile(evil) as archive:  # the twin: an ordinary reader executes it
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickle.loads(archive.read(name))
    assert mark.read_text() == "executed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "entries are no tensors, the first is state_dict"),
        ([torch.zeros(1)], "holds list"),
        ({}, "holds nothing"),
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
