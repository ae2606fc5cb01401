"""A number that is not finite ends the run by name, and is never on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.diffusion.losses import LossTerms
from adm.runtime.errors import DivergedError
from adm.training.build import make_loader, new_model
from adm.training.ema import EMA
from adm.training.trainer import Trainer
from tiny_runs import Stripes, contents, run, tiny

NAME = "encoder.stem.weight"


def weight(trainer: Trainer, name: str = NAME) -> torch.nn.Parameter:
    return dict(trainer.model.network.named_parameters())[name]


def poison_gradient(value: float):
    def poison(trainer: Trainer, step: int) -> None:
        p = weight(trainer)

        def hook(gradient: torch.Tensor) -> torch.Tensor:
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[3] = value
            return gradient

        handle = p.register_hook(hook)

    return poison


def poison_weight(value: float):
    def poison(trainer: Trainer, step: int) -> None:
        with torch.no_grad():
            weight(trainer).view(-1)[3] = value

    return poison


def poison_loss(trainer: Trainer, step: int) -> None:
    objective = trainer.objective

    def poisoned(model, batch, noise):
        result = objective(model, batch, noise)
        trainer.objective = objective
        return LossTerms(result.loss * float("nan"), result.terms)

    trainer.objective = poisoned


POISONS = {
    "a gradient NaN": (poison_gradient(float("nan")), f"first in the gradient of {NAME}"),
    "a gradient infinite": (poison_gradient(float("inf")), f"first in the gradient of {NAME}"),
    "a weight NaN": (poison_weight(float("nan")), "loss nan"),
    "a weight infinite": (poison_weight(float("inf")), "loss nan"),
    "a loss NaN": (poison_loss, "loss nan"),
}


def poisoned_at(step: int, poison, monkeypatch) -> None:
    """Just before that step, once."""
    advance = Trainer.advance

    def poisoned(trainer: Trainer, batch):
        if trainer.step + 1 == step:
            poison(trainer, step)
        return advance(trainer, batch)

    monkeypatch.setattr(Trainer, "advance", poisoned)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return run(tiny("diffusion", "loop.steps=12"), tmp_path_factory.mktemp("clean") / "run")


@pytest.mark.parametrize(
    ("what", "clip"),
    [*((what, "1.0") for what in POISONS), ("a gradient NaN", "none"), ("a gradient infinite", "none")],
)
def test_the_run_ends_naming_the_step_and_continues_as_if_nothing_had_been(
    what: str, clip: str, clean: Path, monkeypatch, tmp_path: Path
) -> None:
    poison, said = POISONS[what]
    config, out = tiny("diffusion", "loop.steps=12", f"optimizer.clip_norm={clip}"), tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned_at(8, poison, patch)
        with pytest.raises(DivergedError) as info:
            run(config, out)
    message = str(info.value)
    assert info.value.exit_code == 6
    assert message.startswith("step 8: not finite") and said in message and "\n" not in message
    assert "The last checkpoint is step 5." in message
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]
    assert all(json.loads(line)["step"] < 8 for line in (out / "log.jsonl").read_text().splitlines())
    assert "NaN" not in (out / "log.jsonl").read_text()
    model = adm.load(out)
    assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())
    if clip == "1.0" and what in ("a gradient NaN", "a weight NaN"):
        assert contents(run(config, out)) == contents(clean)


def test_a_step_that_is_refused_changes_nothing() -> None:
    config = tiny("diffusion", "timesteps=loss-second-moment")
    trainer = Trainer(new_model(config, Stripes.class_names), config)
    loader = make_loader(config, Stripes())
    trainer.advance(loader.batch(0))
    before = {g: {n: v.clone() for n, v in t.items()} for g, t in trainer.tensors().items()}
    state = trainer.state()
    poison_gradient(float("nan"))(trainer, 2)
    with pytest.raises(DivergedError, match=r"^step 2: "):
        trainer.advance(loader.batch(5))
    after = trainer.tensors()
    assert trainer.state() == state
    assert all(torch.equal(after[g][n], v) for g, t in before.items() for n, v in t.items())
    trainer.advance(loader.batch(5))  # the poison is gone, and so is its gradient
    assert torch.isfinite(torch.cat([p.flatten() for p in trainer.model.network.parameters()])).all()


def test_a_weight_that_shows_in_no_loss_is_seen_when_it_is_to_be_saved(
    clean: Path, monkeypatch, tmp_path: Path
) -> None:
    """A class that never occurs: the row of its embedding has no gradient and enters no loss."""
    config, out = tiny("diffusion", "loop.steps=12", "network.num_classes=3"), tmp_path / "run"

    def poison(trainer: Trainer, step: int) -> None:
        with torch.no_grad():
            weight(trainer, "label_embed.weight")[2] = float("nan")

    with monkeypatch.context() as patch:
        poisoned_at(8, poison, patch)
        with pytest.raises(DivergedError) as info:
            run(config, out)
    message = str(info.value)
    assert message.startswith("step 10: nothing is saved: model: label_embed.weight has ") and "\n" not in message
    assert message.endswith("The last checkpoint is step 5.")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]
    assert checkpoint_format.newest_intact(out / "checkpoints")[1] == []
    adm.load(out)


def test_a_run_that_diverges_before_its_first_checkpoint_says_that_there_is_none(monkeypatch, tmp_path: Path) -> None:
    poisoned_at(2, poison_loss, monkeypatch)
    with pytest.raises(DivergedError, match=r"^step 2: .*No checkpoint was saved before\.$"):
        run(tiny("diffusion"), tmp_path / "run")
    assert checkpoint_format.steps(tmp_path / "run" / "checkpoints") == []


def test_a_rate_far_too_high_ends_so_by_itself(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"^step \d+: "):
        run(tiny("diffusion", "optimizer.lr=1e30", "loop.save_every=1000"), tmp_path / "run")
    assert checkpoint_format.steps(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("job", ["diffusion", "upsampler"])
def test_images_that_are_not_finite_are_never_drawn_as_a_sample_grid(job: str, monkeypatch, tmp_path: Path) -> None:
    """Of averages that are finite, so that their checkpoint is saved, and whose products are not."""

    def far_too_large(average: EMA, module: torch.nn.Module) -> None:
        for value in average.weights.values():
            value.fill_(3e38)

    monkeypatch.setattr(EMA, "update", far_too_large)
    with pytest.raises(DivergedError, match=r"^step 1: sample grid: .* Lower .* The last checkpoint is step 1\.$"):
        run(tiny(job, "loop.steps=2", "loop.sample_every=1", "loop.save_every=1"), tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()
