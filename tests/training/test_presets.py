"""Presets against the paper's tables, and how they take to the data they are given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adm.checkpoints.model_document import make_schedule
from adm.nn import EncoderClassifier, UNet
from adm.runtime.config import from_dict, to_dict
from adm.runtime.errors import DataError, UsageError
from adm.training.config import JOBS
from adm.training.cost import training_cost
from adm.training.presets import PRESETS, find_preset_for, preset_config, preset_names, preset_without_data

RELEASED = json.loads((Path(__file__).parents[1] / "golden" / "released" / "presets.json").read_text())["files"]
# adm-spec 1.10 (ADM appendix): file, schedule, batch, steps, lr, dropout, weight decay.
PAPER = {
    ("imagenet64", "diffusion"): ("64x64_diffusion.pt", "cosine", 2048, 540_000, 3e-4, 0.1, 0.0),
    ("imagenet128", "diffusion"): ("128x128_diffusion.pt", "linear", 256, 4_360_000, 1e-4, 0.0, 0.0),
    ("imagenet256", "diffusion"): ("256x256_diffusion.pt", "linear", 256, 1_980_000, 1e-4, 0.0, 0.0),
    ("imagenet512", "diffusion"): ("512x512_diffusion.pt", "linear", 256, 1_940_000, 1e-4, 0.0, 0.0),
    ("imagenet64-to-256", "upsampler"): ("64_256_upsampler.pt", "linear", 256, 500_000, 1e-4, 0.0, 0.0),
    ("imagenet128-to-512", "upsampler"): ("128_512_upsampler.pt", "linear", 256, 1_050_000, 1e-4, 0.0, 0.0),
    ("imagenet64", "classifier"): ("64x64_classifier.pt", "cosine", 1024, 300_000, 6e-4, 0.0, 0.2),
    ("imagenet128", "classifier"): ("128x128_classifier.pt", "linear", 256, 300_000, 3e-4, 0.0, 0.05),
    ("imagenet256", "classifier"): ("256x256_classifier.pt", "linear", 256, 500_000, 3e-4, 0.0, 0.05),
    ("imagenet512", "classifier"): ("512x512_classifier.pt", "linear", 256, 500_000, 3e-4, 0.0, 0.05),
}
MILLIONS = {
    "64x64_diffusion.pt": 295.90,
    "128x128_diffusion.pt": 421.53,
    "256x256_diffusion.pt": 553.84,
    "512x512_diffusion.pt": 559.00,
    "64_256_upsampler.pt": 311.80,
    "128_512_upsampler.pt": 308.84,
    "64x64_classifier.pt": 65.44,
    "128x128_classifier.pt": 42.57,
    "256x256_classifier.pt": 54.10,
    "512x512_classifier.pt": 54.45,
}
ALL = [(name, job) for name, preset in PRESETS.items() for job in preset.jobs]
SMALL = [(name, job) for name, job in ALL if not name.startswith("imagenet")]


@dataclass(frozen=True)
class Images:
    """Blank images."""

    size: tuple[int, int]
    channels: int = 3
    class_names: tuple[str, ...] = ("a", "b")
    num: int = 5000

    def __len__(self) -> int:
        return self.num

    def image(self, i: int) -> np.ndarray:
        return np.zeros((*self.size, self.channels), np.uint8)


@pytest.mark.parametrize(("name", "job"), PAPER)
def test_the_papers_models_have_its_networks_and_its_recipe(name: str, job: str) -> None:
    file, schedule, batch, steps, lr, dropout, decay = PAPER[name, job]
    config = preset_without_data(name, job)
    with torch.device("meta"):
        network = EncoderClassifier(config.network) if config.job == "classifier" else UNet(config.network)
    num = sum(p.numel() for p in network.parameters())
    assert (num, round(num / 1e6, 2)) == (RELEASED[file]["num_parameters"], MILLIONS[file])
    o = config.optimizer
    assert (config.schedule.name, config.schedule.num_timesteps) == (schedule, 1000)
    assert (config.loop.batch_size, config.loop.steps, o.lr, o.weight_decay) == (batch, steps, lr, decay)
    assert (config.network.dropout, config.timesteps, o.betas, o.clip_norm) == (dropout, "uniform", (0.9, 0.999), None)
    if config.job == "classifier":
        assert (o.anneal, config.data.random_crop) == ("linear", True)
    else:
        assert (config.mean, config.variance, config.loss, o.anneal) == ("eps", "learned", "hybrid", "constant")
        assert (config.ema.kind, config.ema.rate, config.label_dropout) == ("constant", 0.9999, 0.0)
    if config.job == "upsampler":
        assert (config.low_res, config.low_res_noise) == ((int(name.split("-")[0][8:]),) * 2, 0.0)


def test_cifar32_is_the_recommended_network_with_edms_recipe() -> None:
    """adm-spec 6.1: 96 channels, 1,2,2,2, two blocks, attention at 16 and 8, heads of 32; 24.9M, 8.2 GFLOPs."""
    config = preset_without_data("cifar32", "diffusion")
    cost = training_cost(replace(config, loop=replace(config.loop, batch_size=1)))
    assert (round(cost.num_parameters / 1e6, 1), round(cost.forward_flops / 1e9, 1)) == (24.9, 8.2)
    assert config.job == "diffusion"
    assert (config.mean, config.variance, config.loss, config.schedule.name) == ("edm", "small", "simple", "edm")
    # EDM Table 1: log sigma ~ N(-1.2, 1.2^2), noise levels from 0.002 to 80.
    assert (config.timesteps, config.log_normal.mean, config.log_normal.std) == ("log-normal", -1.2, 1.2)
    alpha_bar = make_schedule(config.schedule).alpha_bar
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert (float(sigma[0]), float(sigma[-1])) == (pytest.approx(0.002), pytest.approx(80))
    guide = preset_without_data("cifar32", "classifier")
    assert guide.schedule == config.schedule and guide.network.size == config.network.size


@pytest.mark.parametrize(("name", "job"), ALL)
def test_a_preset_takes_the_channels_and_classes_of_the_data(name: str, job: str) -> None:
    size = find_preset_for(name, job).network.size
    grey = preset_config(name, job, "x", Images(size, 1, ("a", "b", "c"), 40), seed=7)  # type: ignore[arg-type]
    assert (grey.network.in_channels, grey.network.num_classes) == (1, 3)
    assert (grey.loop.batch_size, grey.loop.seed, grey.data.path) == (40, 7, "x")
    assert type(grey) is JOBS[job] and from_dict(type(grey), to_dict(grey)) == grey
    unlabelled = Images(size, 3, ())
    if job == "classifier":
        with pytest.raises(DataError, match="no classes"):
            preset_config(name, job, "x", unlabelled)  # type: ignore[arg-type]
        return
    free = preset_config(name, job, "x", unlabelled)  # type: ignore[arg-type]
    assert (free.network.in_channels, free.network.num_classes) == (3, None)


@pytest.mark.parametrize(("name", "job"), SMALL)
def test_each_small_preset_describes_a_training_step(name: str, job: str) -> None:
    config = preset_without_data(name, job)
    cost = training_cost(replace(config, loop=replace(config.loop, batch_size=2)))
    assert 0.2e6 < cost.num_parameters < 30e6 and cost.step_flops > 2.9 * cost.forward_flops


def test_handwriting_is_never_mirrored() -> None:
    assert all(
        preset_without_data(name, job).data.flip is False
        for name in ("digits8", "grey28")
        for job in JOBS
        if job in PRESETS[name].jobs
    )


def test_each_job_has_presets_and_every_name_asked_for_is_there() -> None:
    wanted = {"digits8", "grey28", "cifar32", "imagenet64", "imagenet128", "imagenet256", "imagenet512"}
    assert wanted <= set(preset_names("diffusion")) and wanted <= set(preset_names("classifier"))
    assert set(preset_names("upsampler")) == {"cifar16-to-32", "imagenet64-to-256", "imagenet128-to-512"}


def test_the_table_of_the_docs_is_that_of_the_presets() -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.read_text().splitlines()]
    start = rows.index(["preset", "jobs", "label dropout", "for"]) + 2
    for row, (name, preset) in zip(rows[start:], [*PRESETS.items(), (None, None)], strict=False):
        dropout = {c.label_dropout for c in preset.configs if c.job != "classifier"} if preset else set()
        assert row == ([f"`{name}`", ", ".join(preset.jobs), f"{dropout.pop():g}", preset.what] if preset else [""])
        assert not dropout  # one number says it


@pytest.mark.parametrize(
    ("name", "job", "size", "given", "said"),
    [
        ("cifar23", "diffusion", (32, 32), None, "did you mean 'cifar32'?"),
        ("cifar32", "upsampler", (32, 32), None, "is for diffusion and classifier, not for upsampler"),
        ("cifar32", "diffuser", (32, 32), None, "there is no job 'diffuser'; did you mean 'diffusion'?"),
        (
            "cifar32",
            "diffusion",
            (64, 64),
            (64, 64),
            "is for 32x32. Leave the option out, or choose preset imagenet64.",
        ),
        ("cifar32", "diffusion", (48, 48), (48, 48), "or leave out --preset."),
        ("imagenet64", "diffusion", (64, 48), None, "images of 64x48, but preset imagenet64 is for 64x64"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    name: str, job: str, size: tuple[int, int], given: tuple[int, int] | None, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        preset_config(name, job, "photos", Images(size), given)  # type: ignore[arg-type]
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_small_images_are_enlarged_when_told_to_and_larger_ones_always_fit() -> None:
    assert preset_config("cifar32", "diffusion", "x", Images((20, 30)), (32, 32)).network.size == (32, 32)  # type: ignore[arg-type]
    assert preset_config("cifar32", "diffusion", "x", Images((300, 200))).network.size == (32, 32)  # type: ignore[arg-type]
