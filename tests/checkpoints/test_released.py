"""A bare file is recognised, or it is said what it is, or it is refused with what is missing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import adm
from adm.checkpoints import released, store
from adm.checkpoints.load import fingerprint, locate
from adm.checkpoints.openai import read_flags
from adm.checkpoints.presets import PRESETS, Preset, find_preset
from adm.runtime import files
from adm.runtime.download import fetch
from adm.runtime.errors import DamagedError, UsageError
from golden_weights import DIFFUSION, recorded_case, recorded_weights, released_shapes

CASE = "unet_cond_learned_legacy"
PT = DIFFUSION / f"{CASE}.pt"
FLAGS = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --num_head_channels 32 --attention_resolutions 8,4 "
    "--channel_mult 1,1,2 --class_cond True --use_scale_shift_norm True --resblock_updown True --learn_sigma True"
)


def test_the_flags_of_this_page_are_the_recorded_ones() -> None:
    assert read_flags(FLAGS) == read_flags(recorded_case(CASE)[0])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add_preset(monkeypatch: pytest.MonkeyPatch, name: str, file: str = "tiny.pt", flags: str = FLAGS) -> Preset:
    preset = replace(find_preset("openai/imagenet64"), name=name, file=file, flags=flags, image_size=16)
    monkeypatch.setitem(PRESETS, name, preset)
    return preset


def gotten(preset: Preset, source: Path, tmp_path: Path) -> Path:
    """The preset's file in the cache, as `adm models get` leaves it there."""
    (tmp_path / "mirror").mkdir(exist_ok=True)
    shutil.copy(source, tmp_path / "mirror" / preset.file)
    return fetch(store.artifact(preset), store.models_directory(), mirror=str(tmp_path / "mirror"))


def agrees(model: adm.DiffusionModel) -> bool:
    _, arrays = recorded_case(CASE)
    with torch.no_grad():
        raw = model.network(arrays["x"], arrays["t"], arrays["y"])
    return bool((raw - arrays["model_output"]).abs().max() <= 2e-5 * arrays["model_output"].abs().max())


# ---- recognised ------------------------------------------------------------------------------------


def test_a_preset_is_loaded_by_its_name_with_its_class_names(cache: Path, tmp_path: Path, monkeypatch) -> None:
    preset = add_preset(monkeypatch, "openai/tiny")
    file = gotten(preset, PT, tmp_path)
    model = adm.load("openai/tiny")
    assert agrees(model) and len(model.class_names) == 1000 and model.class_names[207] == "golden retriever"
    assert locate("openai/tiny") == file and fingerprint(locate("openai/tiny")) == files.sha256_file(PT)


def test_a_copy_anywhere_is_recognised_by_the_recorded_hash_though_two_presets_share_its_shapes(
    cache: Path, tmp_path: Path, monkeypatch
) -> None:
    preset = add_preset(monkeypatch, "openai/tiny")
    add_preset(monkeypatch, "openai/twin", "twin.pt")
    gotten(preset, PT, tmp_path)
    copy = shutil.copy(PT, tmp_path / "anything.pt")
    assert agrees(adm.load(copy))
    directory = adm.convert(copy, tmp_path / "m")
    provenance = files.read_json(directory / "provenance.json")
    assert (provenance["preset"], provenance["recognised_by"]) == ("openai/tiny", "sha256")
    assert provenance["sha256"] == files.sha256_file(PT) and provenance["source"] == "anything.pt"


def test_a_shape_that_one_preset_has_is_taken_for_it_and_that_is_said(cache: Path, tmp_path: Path, monkeypatch) -> None:
    add_preset(monkeypatch, "openai/tiny")
    with pytest.warns(UserWarning, match=r"taken for openai/tiny: no other preset has its shapes. .* --flags"):
        assert agrees(adm.load(PT))


def test_a_shape_that_several_presets_have_is_refused_with_their_names(
    cache: Path, tmp_path: Path, monkeypatch
) -> None:
    add_preset(monkeypatch, "openai/tiny", "other.pt")
    add_preset(monkeypatch, "openai/twin", PT.name)
    with pytest.raises(UsageError) as refusal:
        adm.load(PT)
    # First the one whose file is called so.
    assert "its shapes are those of 2 presets (openai/twin, openai/tiny)" in str(refusal.value)
    assert "DST --like openai/twin" in str(refusal.value)
    assert agrees(adm.load(adm.convert(PT, tmp_path / "m", like="openai/tiny")))


def test_the_lsun_files_and_the_unconditional_one_have_the_same_shapes(monkeypatch) -> None:
    structures = released.openai.infer(released_shapes(released.preset_spec(find_preset("openai/lsun-cat"))))
    assert {preset.name for preset in released.presets_of(structures, "")} == {
        "openai/imagenet256-uncond", "openai/lsun-bedroom", "openai/lsun-cat", "openai/lsun-horse",
        "openai/lsun-horse-nodropout",
    }  # fmt: skip


def test_a_file_put_into_the_cache_by_hand_is_what_its_name_there_says(cache: Path, monkeypatch) -> None:
    preset = add_preset(monkeypatch, "openai/tiny")
    add_preset(monkeypatch, "openai/twin", "twin.pt")
    (cache / "models").mkdir(parents=True)
    shutil.copy(PT, cache / "models" / preset.file)
    assert agrees(adm.load("openai/tiny"))


def test_a_file_that_was_changed_since_it_was_fetched_is_refused(cache: Path, tmp_path: Path, monkeypatch) -> None:
    file = gotten(add_preset(monkeypatch, "openai/tiny"), PT, tmp_path)
    adm.load("openai/tiny")
    weights = torch.load(file, weights_only=True)
    weights["out.2.bias"][0] += 1
    torch.save(weights, file)  # a whole file of torch, with checksums that are right
    file.write_bytes(file.read_bytes()[: PT.stat().st_size].ljust(PT.stat().st_size, b"\0"))
    with pytest.raises(DamagedError, match=r"tiny.pt") as refusal:
        adm.load("openai/tiny")
    assert "\n" not in str(refusal.value)


def test_another_file_of_the_same_length_is_refused_by_its_hash(cache: Path, tmp_path: Path, monkeypatch) -> None:
    file = gotten(add_preset(monkeypatch, "openai/tiny"), PT, tmp_path)
    data = bytearray(file.read_bytes())
    data[-1:] = b"\0" if data[-1] else b"\1"
    file.write_bytes(data)
    with pytest.raises(DamagedError, match="was changed since it was fetched"):
        fingerprint(file)


def test_a_preset_that_is_not_there_says_how_to_fetch_it(cache: Path) -> None:
    with pytest.raises(UsageError, match="adm models get openai/imagenet64"):
        adm.load("openai/imagenet64")
    with pytest.raises(UsageError, match="did you mean 'openai/imagenet64'"):
        adm.load("openai/imagenet46")


# ---- not recognised --------------------------------------------------------------------------------


def test_what_is_missing_and_how_to_say_it(cache: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        adm.load(PT)
    message = str(refusal.value)
    assert "32 channels x 1,1,2, 1 block a level, attention at 1/2,1/4, 1000 classes, learned variance" in message
    for name in ("image_size", "num_heads", "num_head_channels", "use_new_attention_order", "noise_schedule",
                 "diffusion_steps", "rescale_timesteps", "predict_xstart"):  # fmt: skip
        assert f"--{name} " in message
    assert "adm convert" in message and "--like PRESET" in message
    assert "\n" not in message and len(message) < 600  # the command line shows no more


def test_a_preset_with_other_classes_is_named_as_what_it_may_be_made_from(
    cache: Path, tmp_path: Path, monkeypatch
) -> None:
    add_preset(monkeypatch, "openai/tiny")
    weights = torch.load(PT, weights_only=True)
    weights["label_emb.weight"] = weights["label_emb.weight"][:5].clone()
    torch.save(weights, tmp_path / "own.pt")
    with pytest.raises(UsageError, match="--like openai/tiny if it was made from that"):
        adm.load(tmp_path / "own.pt")
    model = adm.load(adm.convert(tmp_path / "own.pt", tmp_path / "m", like="openai/tiny"))
    assert model.num_classes == 5 and model.class_names == ()


def test_flags_over_those_of_the_preset_that_a_file_is_like(cache: Path, tmp_path: Path, monkeypatch) -> None:
    add_preset(monkeypatch, "openai/tiny")
    model = adm.load(adm.convert(PT, tmp_path / "m", "--noise_schedule cosine --diffusion_steps 400", "openai/tiny"))
    assert torch.equal(model.schedule.alpha_bar, adm.cosine(400).alpha_bar) and agrees(model)
    with pytest.raises(DamagedError, match=r"is not like openai/imagenet64: .*num_channels is 192: 32 fits"):
        adm.convert(PT, tmp_path / "n", like="openai/imagenet64")
    with pytest.raises(UsageError, match="model_channels is a constructor's keyword"):
        adm.convert(PT, tmp_path / "n", {"model_channels": 32}, "openai/tiny")


def test_a_part_of_a_checkpoint_means_its_directory(tmp_path: Path) -> None:
    directory = adm.convert(PT, tmp_path / "m", flags=FLAGS)
    with pytest.raises(UsageError, match=r"is a part of a checkpoint. Give its directory"):
        adm.load(directory / "model.safetensors")


# ---- what may stand in the file ---------------------------------------------------------------------


def stored(path: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    return dict(adm.load(adm.convert(path, tmp_path / path.stem, flags=FLAGS)).network.state_dict())


def test_wrapped_prefixed_safetensors_and_old_files_are_the_same_weights(tmp_path: Path) -> None:
    weights = torch.load(PT, weights_only=True)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "prefixed.pt")
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(dict(weights), tmp_path / "safe.safetensors")
    expected = stored(Path(shutil.copy(PT, tmp_path / "plain.pt")), tmp_path)
    for name in ("wrapped.pt", "prefixed.pt", "old.pt", "safe.safetensors"):
        found = stored(tmp_path / name, tmp_path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_that_is_recorded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: value.to(dtype) for name, value in torch.load(PT, weights_only=True).items()}
    torch.save(weights, tmp_path / "half.pt")
    directory = adm.convert(tmp_path / "half.pt", tmp_path / "m", flags=FLAGS)
    bias = adm.load(directory).network.state_dict()["out.conv.bias"]
    assert bias.dtype == torch.float32 and torch.equal(bias, weights["out.2.bias"].float())
    name = str(dtype).removeprefix("torch.")
    assert files.read_json(directory / "provenance.json")["precision"] == f"{name} in the file, float32 here"


def test_the_rng_is_not_touched_and_the_weights_can_be_trained(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model = adm.load(adm.convert(PT, tmp_path / "m", flags=FLAGS))
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.requires_grad and p.is_leaf and p.is_contiguous() for p in model.network.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path, monkeypatch) -> None:
    add_preset(monkeypatch, "openai/tiny")
    weights = torch.load(PT, weights_only=True)
    weights["time_embed.0.bias"][3:5] = value
    torch.save(weights, tmp_path / "nan.pt")
    said = r"nan.pt: 1 of 217 tensors are not finite, the first is time_embed.0.bias \(2 of 128"
    with pytest.raises(DamagedError, match=said):
        adm.convert(tmp_path / "nan.pt", tmp_path / "m", FLAGS)
    with pytest.warns(UserWarning, match="taken for"), pytest.raises(DamagedError, match=said):
        adm.load(tmp_path / "nan.pt")
    assert not (tmp_path / "m").exists()


def test_large_numbers_whose_sum_is_not_finite_are_finite() -> None:
    assert released.is_finite(torch.full((4,), 3e38)) and not released.is_finite(torch.tensor([1.0, float("nan")]))
    assert released.is_finite(torch.tensor([65504.0, 65504.0], dtype=torch.float16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("middle_block.1.qkv.weight"), "1 of 217 tensors do not fit this network: 1 missing (middle"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("output_blocks.3")], "missing (output_blocks.3"),
        (lambda w: w.update({"guide.weight": torch.ones(1)}), "1 unexpected (guide.weight)"),
        (lambda w: w.update({"out.2.bias": torch.ones(7)}), "1 misshapen (out.2.bias (7,) for (6,))"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("input_blocks.1.")], "missing (input_blocks.1."),
    ],
)  # fmt: skip
def test_missing_extra_and_misshapen_tensors_are_a_summary(change, said: str, tmp_path: Path) -> None:
    weights = dict(torch.load(PT, weights_only=True))
    change(weights)
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(DamagedError) as refusal:
        adm.convert(tmp_path / "x.pt", tmp_path / "m", flags=FLAGS)
    assert said in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    assert not (tmp_path / "m").exists()


def test_a_classifier_and_an_upsampler_are_loaded_as_bare_files_too(cache: Path, tmp_path: Path, monkeypatch) -> None:
    for case, kind in (("classifier_attention", adm.NoisyClassifier), ("upsampler_8_to_16", adm.DiffusionModel)):
        flags, arrays = recorded_case(case)
        spec = read_flags(flags)
        torch.save(recorded_weights(released_shapes(spec), flags["weight_seed"]), tmp_path / f"{case}.pt")
        preset = add_preset(monkeypatch, f"openai/{case}", f"{case}.pt")
        monkeypatch.setattr(released, "preset_spec", lambda p, spec=spec: spec)
        gotten(preset, tmp_path / f"{case}.pt", tmp_path)
        model = adm.load(f"openai/{case}")
        assert isinstance(model, kind)
        with torch.no_grad():
            extra = [arrays["y"], arrays["low_res"]] if "low_res" in arrays else []
            output = model.network(arrays["x"], arrays["t"], *extra)
        recorded = arrays["model_output" if extra else "logits"]
        assert (output - recorded).abs().max() <= 2e-5 * recorded.abs().max()
