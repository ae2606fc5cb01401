"""A model comes back from its directory alone: what it is, its weights, its classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.load import locate, save_model
from adm.checkpoints.model_document import build_model, describe_model
from adm.diffusion.schedule import Schedule
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime.config import to_dict
from adm.runtime.errors import DamagedError, UsageError
from tiny_runs import NETWORK, contents, run, tiny

UNET = UNetConfig(out_channels=2, num_classes=2, **NETWORK)
CLASSIFIER = ClassifierConfig(num_classes=2, **NETWORK)
X, TIMES, LABEL = torch.linspace(-2, 2, 192).reshape(3, 1, 8, 8), torch.tensor([0, 5, 9]), torch.tensor([0, 1, 1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for job in ("diffusion", "classifier"):
        made[job] = tmp_path_factory.mktemp("run") / job
        run(tiny(job, "loop.steps=3", "loop.save_every=1", "network.dropout=0.2"), made[job])
    return made


def diffusion_model(schedule: Schedule, mean: str = "eps", variance: str = "learned", time_scale=None):
    network = UNet(UNET if variance == "learned" else UNetConfig(out_channels=1, num_classes=2, **NETWORK))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05)
    return adm.DiffusionModel(network, schedule, mean, variance, time_scale).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        diffusion_model(adm.cosine(10)),
        diffusion_model(adm.linear(50), "v", "small", 20.0),
        diffusion_model(adm.cosine(10), "edm", "large"),
        diffusion_model(Schedule(torch.tensor([0.9, 0.7, 1 / 3, 1e-9], dtype=torch.float64)), "x0", "learned"),
    ],
    ids=["cosine", "linear", "edm", "table"],
)
def test_what_was_stored_predicts_the_same_to_the_bit(model, tmp_path: Path) -> None:
    model.class_names = ("horizontal", "vertical")
    loaded = adm.load(save_model(model, tmp_path / "m"))
    assert torch.equal(loaded.schedule.alpha_bar, model.schedule.alpha_bar)
    assert (loaded.mean, loaded.variance, loaded.time_scale) == (model.mean, model.variance, model.time_scale)
    assert loaded.class_names == model.class_names and loaded.network.config == model.network.config
    t = torch.tensor([0, 1, 3])
    with torch.no_grad():
        ours, theirs = (m(X, t, adm.Condition(label=LABEL)) for m in (loaded, model))
    assert torch.equal(ours.x0, theirs.x0) and torch.equal(ours.var_frac, theirs.var_frac)


@pytest.mark.parametrize("schedule", [None, adm.cosine(10)])
def test_a_classifier_comes_back_also_without_a_schedule(schedule, tmp_path: Path) -> None:
    model = adm.NoisyClassifier(EncoderClassifier(CLASSIFIER), schedule, 2.5).eval()
    loaded = adm.load(save_model(model, tmp_path / "m"))
    assert isinstance(loaded, adm.NoisyClassifier) and loaded.time_scale == 2.5
    assert (loaded.schedule is None) == (schedule is None)
    assert torch.equal(loaded.grad_log_prob(X, TIMES, LABEL), model.grad_log_prob(X, TIMES, LABEL))


def test_a_file_name_cannot_stand_for_a_model_that_is_not_ours() -> None:
    with pytest.raises(UsageError, match="a DiffusionModel around a Linear cannot be stored"):
        describe_model(adm.DiffusionModel(torch.nn.Linear(1, 1), adm.cosine(10)))


@pytest.mark.parametrize("job", ["diffusion", "classifier"])
def test_a_run_is_loaded_with_averaged_weights_in_eval_mode(job: str, runs) -> None:
    model = adm.load(runs[job])
    stored = checkpoint_format.load(runs[job] / "checkpoints" / "step-00000003").tensors
    assert isinstance(model, adm.DiffusionModel if job == "diffusion" else adm.NoisyClassifier)
    assert not any(module.training for module in model.modules())
    assert model.class_names == ("horizontal", "vertical")
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, stored["ema"][name])
    last = adm.load(runs[job], weights="model").network.state_dict()
    assert all(torch.equal(value, stored["model"][name]) for name, value in last.items())
    assert any(not torch.equal(stored["ema"][name], stored["model"][name]) for name in last)  # the twin


def test_a_checkpoint_of_a_run_is_loaded_by_its_own_path_moved_or_renamed(runs, tmp_path: Path) -> None:
    moved = shutil.copytree(runs["diffusion"] / "checkpoints" / "step-00000002", tmp_path / "any name")
    expected = checkpoint_format.load(moved).tensors["ema"]
    loaded = adm.load(str(moved)).network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert locate(runs["diffusion"]) == runs["diffusion"] / "checkpoints" / "step-00000003"


def test_a_loaded_model_can_be_trained_further_and_draws_nothing(runs) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = adm.load(runs["diffusion"])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.network.parameters())
    model(X, TIMES, adm.Condition(label=LABEL)).x0.sum().backward()


def test_loading_writes_nothing(runs) -> None:
    before = contents(runs["diffusion"])
    adm.load(runs["diffusion"])
    assert contents(runs["diffusion"]) == before


# ---- what cannot be loaded ------------------------------------------------------------------------


def checkpoint(directory: Path, model: object, tensors: dict | None = None) -> Path:
    weights = dict(UNet(UNET).state_dict()) if tensors is None else tensors
    documents = {} if model is None else {"model": model}
    checkpoint_format.save(directory, tensors={"model": weights} if weights else {}, documents=documents)
    return directory


def good() -> dict:
    return describe_model(diffusion_model(adm.cosine(10)))


def without_a_weight() -> dict:
    weights = dict(UNet(UNET).state_dict())
    del weights["encoder.stem.bias"]
    return weights


WRONG = {
    "no model.json": (lambda d: checkpoint(d, None), DamagedError, "holds no model.json"),
    "no weights": (lambda d: checkpoint(d, good(), {}), DamagedError, "holds no weights"),
    "another kind": (lambda d: checkpoint(d, good() | {"kind": "poem"}), DamagedError, "kind is 'poem'"),
    "no mapping": (lambda d: checkpoint(d, [1]), DamagedError, "kind is None"),
    "an unknown field": (lambda d: checkpoint(d, good() | {"extra": 1}), DamagedError, "there is no 'extra'"),
    "a missing field": (
        lambda d: checkpoint(d, {k: v for k, v in good().items() if k != "mean"}), DamagedError, "mean is missing",
    ),
    "a weight too few": (
        lambda d: checkpoint(d, good(), without_a_weight()), DamagedError,
        "1 missing, 0 unknown, 0 of another shape, first: encoder.stem.bias",
    ),
    "another network": (
        lambda d: checkpoint(d, good() | {"network": to_dict(UNetConfig(out_channels=2, **NETWORK))}), DamagedError,
        "0 missing, 1 unknown, 0 of another shape, first: label_embed.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_intact_checkpoint_that_is_no_model_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    make, error, said = WRONG[what]
    with pytest.raises(error) as info:
        adm.load(make(tmp_path / "c"))
    assert said in str(info.value) and "\n" not in str(info.value) and "/c" in str(info.value)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(good()))
    with pytest.raises(DamagedError, match=r"MANIFEST.json: missing"):
        adm.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such run or checkpoint"),
        (lambda path: path.mkdir(), "holds neither a run nor a checkpoint"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "this run has no checkpoint yet. Train it first"),
    ],
)
def test_a_path_that_means_no_model_is_refused_by_name(make, said: str, tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(UsageError, match=said) as info:
        adm.load(tmp_path / "thing")
    assert "thing" in str(info.value)


def test_a_file_that_is_no_checkpoint_is_refused_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "thing").write_bytes(b"PK")
    with pytest.raises(DamagedError, match="thing: is cut short"):
        adm.load(tmp_path / "thing")


@pytest.mark.parametrize("weights", ["best", "ema-0", "ema-", "optimizer", "ema/../model"])
def test_weights_are_an_average_or_the_model(weights: str, runs) -> None:
    with pytest.raises(UsageError, match=r"weights '.*': choose ema .averaged., ema-1 .* or model"):
        adm.load(runs["diffusion"], weights=weights)


def test_each_average_of_a_run_is_loaded_by_its_name(tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=3", "ema.others=16.97,0"), tmp_path / "run")
    stored = checkpoint_format.load(tmp_path / "run" / "checkpoints" / "step-00000003").tensors
    for group in ("ema", "ema-1", "ema-2", "model"):
        loaded = adm.load(tmp_path / "run", weights=group).network.state_dict()
        assert all(torch.equal(value, stored[group][name]) for name, value in loaded.items())
    some = next(iter(loaded))
    assert len({stored[group][some].double().sum().item() for group in stored if group.startswith("ema")}) == 3
    with pytest.raises(UsageError, match=r"has no weights 'ema-3'. Choose ema or ema-1 or ema-2 or model"):
        adm.load(tmp_path / "run", weights="ema-3")


def test_what_holds_averages_alone_has_no_weights_of_the_last_step(tmp_path: Path) -> None:
    model = diffusion_model(adm.cosine(10))
    weights = dict(model.network.state_dict())
    checkpoint_format.save(tmp_path / "m", tensors={"ema": weights}, documents={"model": describe_model(model)})
    assert torch.equal(adm.load(tmp_path / "m").network.state_dict()[(name := next(iter(weights)))], weights[name])
    with pytest.raises(UsageError, match=r"m: has no weights 'model'. Choose ema"):
        adm.load(tmp_path / "m", weights="model")


def test_a_model_is_built_without_its_weights_on_no_device() -> None:
    model = build_model(good())
    assert {p.device.type for p in model.network.parameters()} == {"meta"}
