"""Presets against what the released code's READMEs say and its networks are (golden/released/presets.json)."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from adm.checkpoints import imagenet, openai, store
from adm.checkpoints.presets import PRESETS, Preset, class_names, find_preset, is_preset, preset_spec
from adm.nn import EncoderClassifier, UNet, UNetConfig
from adm.runtime.cache import cache_directory
from adm.runtime.download import Record, record_file
from adm.runtime.errors import DamagedError, UsageError

RELEASED = json.loads((Path(__file__).parents[1] / "golden" / "released" / "presets.json").read_text())["files"]
EVERY = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def as_dict(flags: str) -> dict[str, str]:
    words = shlex.split(flags)
    assert len(words) % 2 == 0 and len(set(words[::2])) == len(words) // 2, flags
    return {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}


def test_every_released_file_has_one_preset():
    assert {preset.file for preset in PRESETS.values()} == set(RELEASED)
    assert len(PRESETS) == len(RELEASED) == 23
    for preset in PRESETS.values():
        assert (
            preset.url
            == f"https://openaipublic.blob.core.windows.net/diffusion/{preset.url.split('/')[4]}/{preset.file}"
        )
        assert preset.url.split("/")[4] == ("march-2021" if "iddpm" in preset.name else "jul-2021")


@EVERY
def test_its_flags_are_the_released_ones(preset: Preset):
    released, ours = RELEASED[preset.file], as_dict(preset.flags)
    words = shlex.split(released["flags"])
    for name, value in [*zip(words[::2], words[1::2], strict=True), *released["defaults"].items()]:
        name = name.removeprefix("--")
        if name == "dropout":
            assert float(ours[name]) == float(value)
        else:
            assert ours[name] == value, name


@EVERY
def test_its_network_is_the_released_one_name_by_name_and_there_and_back(preset: Preset):
    released, spec = RELEASED[preset.file], preset_spec(preset)
    with torch.device("meta"):
        network = UNet(spec.network) if isinstance(spec.network, UNetConfig) else EncoderClassifier(spec.network)
    ours = dict(network.state_dict())
    order = {"new_attention_order": spec.new_attention_order}
    theirs = openai.to_openai(ours, spec.network, **order)
    layout = "".join(f"{name} {','.join(map(str, tensor.shape))}\n" for name, tensor in theirs.items())
    assert hashlib.sha256(layout.encode()).hexdigest() == released["layout_sha256"]
    assert len(theirs) == released["num_tensors"]
    assert sum(p.numel() for p in network.parameters()) == released["num_parameters"] == preset.num_parameters
    back = openai.to_ours(theirs, spec.network, **order)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in ours.items()}
    assert openai.is_classifier(theirs) == (preset.kind == "classifier") and spec.kind == preset.kind


def test_what_shapes_cannot_say_is_what_the_release_says():
    by_file = {preset.file: preset_spec(preset) for preset in PRESETS.values()}
    cosine = {file for file, spec in by_file.items() if spec.noise_schedule == "cosine"}
    assert cosine == {
        "64x64_diffusion.pt",
        "64x64_classifier.pt",
        "imagenet64_uncond_100M_1500K.pt",
        "imagenet64_uncond_vlb_100M_1500K.pt",
        "imagenet64_cond_270M_250K.pt",
        "cifar10_uncond_50M_500K.pt",
        "cifar10_uncond_vlb_50M_500K.pt",
    }
    assert {file for file, spec in by_file.items() if spec.new_attention_order} == {"64x64_diffusion.pt"}
    rescaled = {file for file, spec in by_file.items() if spec.time_scale is not None}
    assert rescaled == {file for file in RELEASED if file.startswith(("imagenet64_uncond", "cifar10"))}
    assert all(by_file[file].time_scale == 0.25 for file in rescaled)
    four_heads = {f for f, s in by_file.items() if s.network.num_head_channels is None and s.network.num_heads == 4}
    assert {"128x128_diffusion.pt", "64_256_upsampler.pt"} == {
        f for f in four_heads if "_100M" not in f and "K" not in f
    }
    assert by_file["lsun_uncond_100M_2400K_bs64.pt"].network.num_heads == 1
    for file, spec in by_file.items():
        assert spec.diffusion_steps == (4000 if file.startswith(("imagenet64", "cifar10", "upsample")) else 1000), file
        assert spec.kind == "classifier" or spec.variance == "learned"


def test_models_that_go_together_fit_together():
    for preset in PRESETS.values():
        size = preset.image_size
        if preset.classifier is not None:
            guide = PRESETS[preset.classifier]
            assert guide.kind == "classifier" and preset.name in guide.guides and guide.image_size == size
            ours, theirs = preset_spec(preset), preset_spec(guide)
            assert (ours.noise_schedule, ours.diffusion_steps) == (theirs.noise_schedule, theirs.diffusion_steps)
            assert any(setting.scale for setting in preset.recommended)
        for name in preset.guides:
            assert PRESETS[name].classifier == preset.name
        if preset.upsampler is not None:
            assert PRESETS[preset.upsampler].base == preset.name
        if preset.kind == "upsampler":
            assert preset.base is not None and PRESETS[preset.base].upsampler == preset.name
            assert f"--small_size {PRESETS[preset.base].image_size} " in preset.flags
            assert f"--large_size {size} " in preset.flags
        assert (preset_spec(preset).kind == "classifier") == bool(preset.guides)


def test_scores_and_settings_are_those_that_the_readme_and_the_paper_print():
    best = {
        "openai/imagenet64": (2.07, 0.74, 0.63),
        "openai/imagenet128": (2.97, 0.78, 0.59),
        "openai/imagenet256": (4.59, 0.82, 0.52),
        "openai/imagenet512": (7.72, 0.87, 0.42),
        "openai/imagenet64-to-256": (3.94, 0.83, 0.53),
        "openai/imagenet128-to-512": (3.85, 0.84, 0.53),
        "openai/lsun-bedroom": (1.90, 0.66, 0.51),
        "openai/lsun-cat": (5.57, 0.63, 0.52),
        "openai/lsun-horse": (2.57, 0.71, 0.55),
    }
    for name, expected in best.items():
        score = min(PRESETS[name].scores, key=lambda score: score.fid)
        assert (score.fid, score.precision, score.recall) == expected, name
    scales = {(p.name, s.sampler, s.steps): s.scale for p in PRESETS.values() for s in p.recommended if s.scale}
    assert scales == {
        ("openai/imagenet64", "ddpm", 250): 1.0,
        ("openai/imagenet128", "ddpm", 250): 0.5,
        ("openai/imagenet256", "ddpm", 250): 1.0,
        ("openai/imagenet256-uncond", "ddpm", 250): 10.0,
        ("openai/imagenet512", "ddpm", 250): 4.0,
        ("openai/imagenet128", "ddim", 25): 1.25,
        ("openai/imagenet256", "ddim", 25): 2.5,
        ("openai/imagenet512", "ddim", 25): 9.0,
    }
    assert all(PRESETS[f"openai/lsun-{what}"].recommended[0].steps == 1000 for what in ("bedroom", "cat", "horse"))


def test_class_conditional_presets_alone_have_the_names_of_imagenet():
    for preset in PRESETS.values():
        labels = preset_spec(preset).network.num_classes
        assert class_names(preset) == (() if labels is None else imagenet.NAMES) and labels in (None, 1000)


def test_a_name_that_is_none_is_answered_with_the_nearest():
    assert is_preset("openai/imagenet64") and not is_preset("imagenet64")
    for wrong, meant in [("imagenet64", "openai/imagenet64"), ("openai/imagnet256", "openai/imagenet256")]:
        with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
            find_preset(wrong)
    assert find_preset("openai/lsun-cat").file == "lsun_cat.pt"


# ---- the cache ------------------------------------------------------------------------------------


def put(preset: Preset, content: bytes = b"PK weights") -> Path:
    """A file in the cache with its record, as `fetch` leaves them."""
    path = store.models_directory() / preset.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    record = Record(preset.name, preset.file, preset.url, len(content), sha256, "2026-01-01")
    record_file(path).write_text(json.dumps(asdict(record)))
    return path


def test_a_file_in_the_cache_is_found_and_one_that_is_not_says_how_to_fetch_it(empty_cache: Path):
    preset = PRESETS["openai/imagenet64"]
    assert store.models_directory() == empty_cache == cache_directory() / "models"
    assert store.cached_file(store.artifact(preset)) is None
    with pytest.raises(
        UsageError, match=r"openai/imagenet64 is not on this machine .*adm models get openai/imagenet64"
    ):
        store.require_file(preset)
    path = put(preset)
    assert store.require_file(preset) == path == store.cached_file(store.artifact(preset))


def test_a_hash_leads_to_its_preset(empty_cache: Path):
    path = put(PRESETS["openai/lsun-cat"], b"PK cats")
    sha256 = hashlib.sha256(b"PK cats").hexdigest()
    assert store.recorded_sha256(path) == sha256 == store.check_recorded(path)
    assert store.preset_of_sha256(sha256) is PRESETS["openai/lsun-cat"]
    assert store.preset_of_sha256("0" * 64) is None


def test_a_changed_or_short_file_is_noticed(empty_cache: Path):
    preset = PRESETS["openai/imagenet64"]
    path = put(preset, b"PK weights")
    path.write_bytes(b"PK w3ights")  # sizes say nothing, the hash does
    assert store.stored(store.artifact(preset)).state == "here"
    with pytest.raises(DamagedError, match=r"changed since it was fetched .* adm models get openai/imagenet64"):
        store.check_recorded(path)
    path.write_bytes(b"PK w")
    assert store.stored(store.artifact(preset)).note == "has 4 bytes of 10 bytes"
    assert store.cached_file(store.artifact(preset)) is None
    with pytest.raises(DamagedError, match=r"has 4 bytes of 10 bytes. Fetch it again"):
        store.require_file(preset)


def test_a_broken_record_counts_in_the_cache_and_a_strangers_json_elsewhere_does_not(tmp_path: Path):
    path = put(PRESETS["openai/imagenet64"])
    for text in ('{"sha256": 3}', "[1, 2", json.dumps({**json.loads(record_file(path).read_text()), "sha256": 3})):
        record_file(path).write_text(text)
        assert store.stored(store.artifact(PRESETS["openai/imagenet64"])).state == "damaged"
        with pytest.raises(DamagedError):
            store.recorded_sha256(path)
        assert store.preset_of_sha256("3") is None
    stranger = tmp_path / "own.pt"
    stranger.write_bytes(b"PK own")
    (tmp_path / "own.pt.json").write_text('{"epochs": 3}')
    assert store.recorded_sha256(stranger) is None
    assert store.check_recorded(stranger) == hashlib.sha256(b"PK own").hexdigest()
