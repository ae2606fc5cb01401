"""A run that begins with another model's weights: what it takes over, what is new, and that it is a run like any."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints import imagenet
from adm.checkpoints import load as models
from adm.checkpoints.load import save_model
from adm.runtime.errors import DataError, StoppedError, UsageError
from adm.training import run as training_run
from adm.training.build import new_model
from adm.training.config import TrainConfig
from adm.training.finetune import Source, class_tensors, finetune_config, open_source, start_from
from adm.training.request import Request, plan
from adm.training.resume import read_config
from adm.training.run import train
from adm.training.trainer import Trainer
from conftest import write_folder
from tiny_runs import Stripes, contents, run, tiny

NAMES = ("horizontal", "vertical")
X = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8).sin()
T = torch.tensor([0, 4, 9])


def made(job: str, names: tuple[str, ...], *settings: str) -> Any:
    """A model with no weight at its initial value (many of those are zero) and classes of these names."""
    config = tiny(job, f"network.num_classes={len(names) or 'none'}", *settings)
    model = new_model(config, names)
    generator = torch.Generator().manual_seed(7)
    for p in model.network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.2
    return model.eval()


def source_of(model: Any) -> Source:
    return Source("models/a", 64 * "a", model)


def begun(source: Any, names: tuple[str, ...], seed: int = 3) -> tuple[Any, str]:
    """A new model for data of these classes that has begun with the source; what was said of it."""
    data = Stripes()
    data.class_names = names
    config = finetune_config(source_of(source), "stripes", data, seed)
    model = new_model(config, names)
    (line,) = start_from(model, source_of(source))
    return model.eval(), line


def output(model: Any, label: int | None) -> torch.Tensor:
    with torch.no_grad():
        return model.network(X, T, None if label is None else torch.full((3,), label))


# ---- what is taken over ---------------------------------------------------------------------------


def test_the_same_classes_give_the_same_model() -> None:
    source = made("diffusion", NAMES)
    model, line = begun(source, NAMES)
    total = len(source.network.state_dict())
    assert line == f"from models/a (aaaaaaaa): {total} of {total} tensors loaded, label table kept (2 classes)"
    for name, value in source.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name


def test_other_classes_make_the_label_table_new_and_nothing_else() -> None:
    source = made("diffusion", NAMES)
    model, line = begun(source, ("cat", "dog", "mouse"))
    ours, theirs = model.network.state_dict(), source.network.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["label_embed.weight"]
    assert line.endswith(
        f"{len(ours) - 1} of {len(ours)} tensors loaded, label table new (3 classes; the source had 2)"
    )
    mean = theirs["label_embed.weight"].double().mean(dim=0)
    torch.testing.assert_close(ours["label_embed.weight"].double(), mean.expand(3, -1))


def test_classes_that_both_know_keep_what_they_look_like_whatever_their_number() -> None:
    source = made("diffusion", ("a", "b", "c", "d"))
    model, line = begun(source, ("d", "new", "b"))
    assert torch.equal(output(model, 0), output(source, 3)) and torch.equal(output(model, 2), output(source, 1))
    assert line.endswith("label table: 2 classes kept by name, 1 new: new")
    model, line = begun(source, ("d", "b"))
    assert torch.equal(output(model, 0), output(source, 3)) and torch.equal(output(model, 1), output(source, 1))
    assert line.endswith("label table: 2 of the 4 classes kept by name")


def test_classes_added_to_an_unconditional_model_begin_as_it_is() -> None:
    source = made("diffusion", ())
    model, line = begun(source, ("a", "b", "c"))
    for label in (0, 1, 2):
        assert torch.equal(output(model, label), output(source, None))
    assert "label table new (3 classes; the source had none)" in line
    config = replace(finetune_config(source_of(source), "stripes", Stripes()), loop=tiny("diffusion").loop)
    trainer = Trainer(model, config)
    batch = training_run.make_loader(config, Stripes()).batch(0)
    trainer.advance(batch)
    rows = model.network.label_embed.weight
    assert not torch.equal(rows[0], rows[1]), "the classes part with the first step"


def test_classes_dropped_leave_the_model_without_a_label() -> None:
    source = made("diffusion", NAMES)
    model, line = begun(source, ())
    assert torch.equal(output(model, None), output(source, -1))
    assert line.endswith("label table dropped (2 classes): unconditional now") and model.class_names == ()


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_other_classes_make_a_classifiers_last_layer_new_and_nothing_else(pool: str) -> None:
    source = made("classifier", ("a", "b"), f"network.pool={pool}", "network.model_channels=32")
    model, line = begun(source, ("x", "y", "z"))
    ours, theirs = model.network.state_dict(), source.network.state_dict()
    new = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert len(new) == 2 and {name.rsplit(".", 1)[1] for name in new} == {"weight", "bias"}
    assert all(name.startswith("out.") and ours[name].shape[0] == 3 for name in new)
    fresh = new_model(finetune_config(source_of(source), "stripes", named("x", "y", "z"), 3), ("x", "y", "z"))
    assert all(torch.equal(ours[name], fresh.network.state_dict()[name]) for name in new)
    assert f"{len(ours) - 2} of {len(ours)} tensors loaded, last layer new (3 classes; the source had 2)" in line
    model, _ = begun(source, ("b", "x", "a"))
    logits, before = model.network(X, T), source.network(X, T)
    torch.testing.assert_close(logits[:, [2, 0]], before, rtol=1e-5, atol=1e-6)


def named(*names: str) -> Stripes:
    data = Stripes()
    data.class_names = names
    return data


def test_without_names_equal_counts_keep_their_numbers_and_others_are_new() -> None:
    source = made("diffusion", NAMES)
    source.class_names = ()
    model, line = begun(source, ("cat", "dog"))
    assert torch.equal(output(model, 1), output(source, 1)) and "label table kept (2 classes)" in line
    assert "label table new (3 classes; the source had 2)" in begun(source, ("cat", "dog", "x"))[1]


def test_a_name_that_means_two_of_the_sources_classes_is_new() -> None:
    source = made("diffusion", ("crane", "crane", "b"))
    assert "1 classes kept by name, 1 new: crane" in begun(source, ("b", "crane"))[1]


def test_imagenet_folders_are_found_by_their_wordnet_ids_and_synonyms() -> None:
    source = made("diffusion", imagenet.NAMES)
    model, line = begun(source, ("n02123159", "tiger shark", "golden_retriever", "207", "crane"))
    rows = source.network.label_embed.weight
    table = model.network.label_embed.weight
    for k, label in enumerate((282, 3, 207)):
        assert torch.equal(table[k], rows[label])
    assert line.endswith("3 classes kept by name, 2 new: 207, crane")


def test_weights_in_half_precision_are_trained_in_float32() -> None:
    source = made("diffusion", NAMES)
    source.network.half()
    model, _ = begun(source, NAMES)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    for name, value in source.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value.float())


def test_what_depends_on_the_classes_is_found_in_every_network() -> None:
    assert class_tensors(made("diffusion", NAMES).network) == ["label_embed.weight"]
    assert class_tensors(made("diffusion", ()).network) == []
    assert class_tensors(made("classifier", NAMES).network) == ["out.proj.weight", "out.proj.bias"]


# ---- the run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """models/diffusion (two named classes, v-prediction, linear), models/classifier, models/rgb, models/up."""
    root = tmp_path_factory.mktemp("models")
    parametrization = ("mean=v", "schedule.name=linear", "schedule.num_timesteps=25", "time_scale=40")
    save_model(made("diffusion", NAMES, *parametrization), root / "diffusion")
    save_model(made("classifier", NAMES), root / "classifier")
    save_model(made("diffusion", NAMES, "network.in_channels=3", "network.out_channels=6"), root / "rgb")
    unsaid = made("classifier", NAMES)
    unsaid.schedule = None
    save_model(unsaid, root / "unsaid")
    config = replace(tiny("diffusion").network, low_res_channels=1)  # type: ignore[arg-type]
    model = made("diffusion", NAMES)
    save_model(adm.DiffusionModel(adm.nn.UNet(config), model.schedule), root / "up")
    return root


def config_of(saved: Path, kind: str, *settings: str) -> tuple[TrainConfig, Source]:
    """Settings of a few steps from the saved model of the kind, on the stripes."""
    from adm.runtime.config import override

    source = open_source(str(saved / kind), "classifier" if kind == "classifier" else "diffusion")
    config = finetune_config(source, "stripes", Stripes())
    return override(config, ["loop.batch_size=5", "loop.steps=6", "loop.save_every=3", *settings]), source


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_six_steps_are_three_and_three_without_the_source(kind: str, saved: Path, tmp_path: Path) -> None:
    before = contents(saved / kind)
    config, _ = config_of(saved, kind, "timesteps=loss-second-moment", "network.dropout=0.2")
    whole = run(config, tmp_path / "whole")
    copy = shutil.copytree(saved / kind, tmp_path / "source")
    config = replace(config, source=str(copy))
    with pytest.raises(StoppedError):
        run(config, tmp_path / "run", stop_at=3)
    shutil.rmtree(copy)
    end = contents(run(config, tmp_path / "run"))
    for name in ("model", "ema", "optimizer", "timesteps"):
        assert end[f"{name}.safetensors"] == contents(whole)[f"{name}.safetensors"], name
    assert end["state.json"] == contents(whole)["state.json"] and end["model.json"] == contents(whole)["model.json"]
    assert contents(saved / kind) == before, "the source is left as it was"


def test_a_new_run_has_the_sources_parametrization_an_empty_optimizer_and_begins_at_step_0(saved, tmp_path) -> None:
    config, source = config_of(saved, "diffusion", "loop.steps=1", "ema.kind=constant", "ema.rate=0")
    assert (config.schedule.name, config.schedule.num_timesteps, config.time_scale) == ("linear", 25, 40.0)
    assert config.mean == "v" and config.network == source.model.network.config  # type: ignore[union-attr]
    started: list[Trainer] = []

    def look(progress: Any) -> None:
        if progress.result is None:
            assert progress.step == 0

    init = Trainer.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", lambda self, *given: (init(self, *given), started.append(self))[0])
        patch.setattr(Trainer, "advance", advance_and_look(source))
        train(config, tmp_path / "run", on_progress=look, dataset=Stripes())
    assert len(started) == 1
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["source"] == str(saved / "diffusion")
    assert recorded["source_sha256"] == models.fingerprint(saved / "diffusion")
    assert adm.load(tmp_path / "run").class_names == NAMES


def advance_and_look(source: Source):
    advance = Trainer.advance

    def looked(trainer: Trainer, batch: Any) -> Any:
        assert trainer.step == 0 and trainer.ema.num_updates == 0 and not trainer.optimizer.state
        for name, value in source.model.network.state_dict().items():
            assert torch.equal(trainer.ema.weights[name], value) and torch.equal(
                trainer.model.network.state_dict()[name], value
            )
        return advance(trainer, batch)

    return looked


def test_the_averaged_weights_of_a_run_are_what_is_taken(tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=3"), tmp_path / "a")
    source = open_source(str(tmp_path / "a"), "diffusion")
    stored = checkpoint_format.load(tmp_path / "a" / "checkpoints" / "step-00000003").tensors
    name = "encoder.stem.weight"
    assert torch.equal(source.model.network.state_dict()[name], stored["ema"][name])
    assert not torch.equal(stored["ema"][name], stored["model"][name])


def test_rates_and_steps_are_a_fifth_of_those_from_scratch(saved: Path) -> None:
    from adm.training.defaults import default_config

    source = open_source(str(saved / "diffusion"), "diffusion")
    ours = finetune_config(source, "stripes", Stripes())
    scratch = default_config("diffusion", "stripes", Stripes(), (8, 8))
    assert ours.optimizer.lr == scratch.optimizer.lr / 5 and ours.loop.steps == scratch.loop.steps // 5


def test_a_run_that_has_no_checkpoint_yet_begins_again_with_the_source(saved: Path, tmp_path: Path) -> None:
    config, _ = config_of(saved, "diffusion", "loop.steps=2")
    whole = run(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()
    assert contents(run(config, tmp_path / "run")) == contents(whole)


def test_a_source_that_has_changed_since_is_refused_before_anything_is_written(saved: Path, tmp_path: Path) -> None:
    config, _ = config_of(saved, "diffusion")
    with pytest.raises(UsageError, match="not the weights that the run was set up with"):
        run(replace(config, source_sha256=64 * "0"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"diffusion has network.model_channels=8, not 16; schedule.name=linear, not"):
        network = replace(config.network, model_channels=16)  # type: ignore[arg-type]
        run(replace(config, network=network, schedule=tiny("diffusion").schedule), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_source_and_its_hash_come_together() -> None:
    with pytest.raises(ValueError, match="come together"):
        replace(tiny("diffusion"), source="models/a")


# ---- what is asked for ----------------------------------------------------------------------------


@pytest.fixture
def asked(saved: Path, tmp_path: Path):
    """(kind of source, other fields of the request) -> what it amounts to, on a folder of 12x10 images."""
    folder = write_folder(tmp_path / "data", (12, 10), ("horizontal", "x"), "L")

    def ask(kind: str, **fields: Any) -> Any:
        given = {"job": "diffusion", "data": str(folder), "out": tmp_path / "run", "source": str(saved / kind)}
        return plan(Request(**(given | fields)))  # type: ignore[arg-type]

    return ask


def test_data_are_brought_to_the_size_and_channels_of_the_model(asked, tmp_path: Path) -> None:
    planned = asked("rgb", settings=("loop.batch_size=2", "loop.steps=1"))
    assert planned.config.network.size == (8, 8) and planned.dataset.channels == 3
    batch = training_run.make_loader(planned.config, planned.dataset).batch(0)
    assert batch.images.shape == (2, 3, 8, 8) and torch.equal(batch.images[:, 0], batch.images[:, 2])
    train(planned.config, tmp_path / "run", dataset=planned.dataset, source=planned.source)
    assert asked("rgb").dataset.channels == 3, "so too when the run goes on"


def test_digits_are_grey_and_say_so(asked) -> None:
    with pytest.raises(DataError, match=r"digits have 1 channel .grey., not 3"):
        asked("rgb", data="digits")


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("classifier", {}, "is a classifier: adm train classifier continues it"),
        ("diffusion", {"job": "classifier"}, "is a diffusion model: adm train diffusion continues it"),
        ("up", {}, "is an upsampler"),
        ("unsaid", {"job": "classifier"}, "does not know its noise schedule. Say it: --set schedule.name=linear"),
        ("diffusion", {"image_size": "16"}, "--image-size 16: .*makes images of 8x8"),
        (
            "diffusion",
            {"settings": ("network.num_res_blocks=2", "schedule.num_timesteps=30", "mean=eps")},
            "has network.num_res_blocks=1, not 2; schedule.num_timesteps=25, not 30; mean=v, not eps. Leave out",
        ),
        ("nothing", {}, "nothing: no such"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(kind, fields, says, asked, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as info:
        asked(kind, **fields)
    assert "\n" not in str(info.value) and not (tmp_path / "run").exists()


def test_the_size_of_the_model_may_be_said(asked) -> None:
    assert asked("diffusion", image_size="8x8").config.network.size == (8, 8)


def test_what_the_weights_do_not_depend_on_may_be_set(asked, tmp_path: Path) -> None:
    settings = ("network.dropout=0.1", "network.num_classes=none", "loss=simple", "loop.batch_size=2", "loop.steps=1")
    planned = asked("diffusion", settings=settings)
    train(planned.config, tmp_path / "run", dataset=planned.dataset, source=planned.source)
    model = adm.load(tmp_path / "run")
    assert model.num_classes is None and model.network.config.dropout == 0.1
    planned = asked("unsaid", job="classifier", out=tmp_path / "other", settings=("schedule.name=linear",))
    assert planned.config.schedule.name == "linear"


def test_a_run_goes_on_with_the_same_model_under_any_name_and_with_no_other(asked, saved, tmp_path: Path) -> None:
    planned = asked("diffusion", settings=("loop.batch_size=2", "loop.steps=1"))
    train(planned.config, tmp_path / "run", dataset=planned.dataset, source=planned.source)
    moved = shutil.copytree(saved / "diffusion", tmp_path / "moved")
    for name in (None, str(saved / "diffusion"), str(moved)):
        again = asked("diffusion", source=name, steps=2)
        assert again.source is None and again.config == replace(
            read_config(tmp_path / "run"), loop=replace(planned.config.loop, steps=2)
        )
    with pytest.raises(UsageError, match=r"started with from=.*diffusion, you asked for .*rgb; loop.seed=0, you"):
        asked("rgb", seed=4)
    train(again.config, tmp_path / "run", dataset=again.dataset)
    other = tmp_path / "scratch"
    run(tiny("diffusion", "loop.steps=1"), other)
    with pytest.raises(UsageError, match="started with from=none, you asked for"):
        asked("diffusion", out=other)
