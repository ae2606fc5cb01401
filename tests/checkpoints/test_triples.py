"""What the original trainers leave behind comes along whole: both kinds of weights, the step, Adam's moments."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.openai import read_flags, to_openai
from adm.checkpoints.released import Said
from adm.checkpoints.triples import find, read_triple
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from golden_weights import recorded_weights, released_shapes

SIZES = {"image_size": 8, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "resblock_updown": True}
CASES: dict[str, dict[str, Any]] = {
    "diffusion": SIZES | {"attention_resolutions": [2], "out_channels": 6, "num_classes": 3, "num_heads": 2},
    "classifier": SIZES | {"attention_resolutions": [1, 2], "out_channels": 5, "num_heads": 2, "pool": "attention"},
}
CASES["new order"] = CASES["diffusion"] | {"use_new_attention_order": True}
BETA1, BETA2, STEPS = 0.9, 0.999, 3


def optimizer_of(weights: dict[str, Tensor], gradients: dict[str, Tensor], form: str) -> dict[str, Any]:
    """The state of AdamW after equal gradients, as the trainers of the original code save it.

    flat: in half precision guided-diffusion optimizes one vector of all tensors with at most one axis and one row
    of all others, improved-diffusion one vector of everything.
    """
    names = list(weights)
    vectors = [name for name in names if weights[name].ndim <= 1]
    groups = {
        "plain": [[name] for name in names],
        "guided half": [vectors, [name for name in names if name not in vectors]],
        "improved half": [names],
    }[form]

    def joined(tensors: dict[str, Tensor], members: list[str]) -> Tensor:
        if form == "plain":
            return tensors[members[0]].clone()
        flat = torch.cat([tensors[name].reshape(-1) for name in members])
        return flat.reshape(1, -1) if form == "guided half" and members is not vectors else flat

    parameters = [torch.nn.Parameter(joined(weights, members)) for members in groups]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(BETA1, BETA2))
    for _ in range(STEPS):
        for parameter, members in zip(parameters, groups, strict=True):
            parameter.grad = joined(gradients, members)
        optimizer.step()
    return optimizer.state_dict()


def left_behind(
    directory: Path, case: str = "diffusion", form: str = "plain"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """model, ema and opt of two steps; returns the flags and the gradients."""
    flags = CASES[case]
    shapes = released_shapes(read_flags(flags))  # in the order of the original code: see test_shapes
    values = recorded_weights(shapes, 1)
    weights = {name: values[name] for name in shapes}
    gradients = recorded_weights(shapes, 2)
    directory.mkdir(parents=True)
    for step in (50, 100):
        torch.save(recorded_weights(shapes, step), directory / f"model{step:06d}.pt")
        torch.save(recorded_weights(shapes, step + 1), directory / f"ema_0.9999_{step:06d}.pt")
        torch.save(optimizer_of(weights, gradients, form), directory / f"opt{step:06d}.pt")
    return flags, gradients


def released(tensors: dict[str, Tensor], flags: dict[str, Any]) -> dict[str, Tensor]:
    spec = read_flags(flags)
    return to_openai(tensors, spec.network, new_attention_order=spec.new_attention_order)


def test_a_directory_becomes_one_checkpoint_with_both_weights_the_step_and_the_optimizer(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    directory = adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    shapes = released_shapes(read_flags(flags))
    for group, seed in (("model", 100), ("ema", 101)):
        expected = recorded_weights(shapes, seed)
        found = released(dict(adm.load(directory, weights=group).network.state_dict()), flags)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    checkpoint = checkpoint_format.load(directory)
    assert checkpoint.tensors.keys() == {"model", "ema", "optimizer"}
    assert checkpoint.documents["state"] == {"step": 100}
    provenance = checkpoint.documents["provenance"]
    assert (provenance["source"], provenance["ema_rate"], provenance["step"]) == ("ema_0.9999_000100.pt", 0.9999, 100)


@pytest.mark.parametrize("form", ["plain", "guided half", "improved half"])
@pytest.mark.parametrize("case", list(CASES))
def test_adams_moments_belong_to_the_right_tensors(case: str, form: str, tmp_path: Path) -> None:
    flags, gradients = left_behind(tmp_path / "logs", case, form)
    triple = read_triple(tmp_path / "logs", Said(flags))
    assert triple.optimizer is not None and triple.notes == ()
    # The closed form of Adam after equal gradients g: m = (1 - beta1^n) g, v = (1 - beta2^n) g^2.
    for what, expected in (
        ("exp_avg", lambda g: (1 - BETA1**STEPS) * g),
        ("exp_avg_sq", lambda g: (1 - BETA2**STEPS) * g**2),
    ):
        ours = {name.removesuffix(f".{what}"): t for name, t in triple.optimizer.items() if name.endswith(f".{what}")}
        for name, value in released(ours, flags).items():
            torch.testing.assert_close(value, expected(gradients[name]), rtol=1e-5, atol=1e-9)
    steps = {float(value) for name, value in triple.optimizer.items() if name.endswith(".step")}
    assert steps == {STEPS}


def test_an_optimizer_as_torch_takes_it_back(tmp_path: Path) -> None:
    """The names are those of our trainer, so that AdamW continues with them."""
    flags, _ = left_behind(tmp_path / "logs")
    triple = read_triple(tmp_path / "logs", Said(flags))
    assert triple.optimizer is not None and triple.model is not None
    network = triple.released.model.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kinds = ("step", "exp_avg", "exp_avg_sq")
    for name, p in network.named_parameters():
        assert optimizer.state[p].keys() == set(kinds)
        for kind in kinds:
            mine = triple.optimizer[f"{name}.{kind}"]
            assert mine.shape == optimizer.state[p][kind].shape and mine.dtype == torch.float32


def test_of_several_averages_the_longest_is_taken_and_that_is_said(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    shutil.copy(tmp_path / "logs" / "ema_0.9999_000050.pt", tmp_path / "logs" / "ema_0.99_000100.pt")
    with pytest.warns(UserWarning, match=r"the one of the highest rate is taken, 0.9999, not \[0.99\]"):
        directory = adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    assert files.read_json(directory / "provenance.json")["source"] == "ema_0.9999_000100.pt"


def test_steps_count_as_numbers_and_a_step_without_weights_does_not(tmp_path: Path) -> None:
    for name in ("model999999.pt", "model1000000.pt", "opt2000000.pt", "ema_x_3000000.pt", "model12.pt", "notes.txt"):
        (tmp_path / name).touch()
    found = find(tmp_path)
    assert found is not None and found.step == 1_000_000 and found.average is None
    assert find(tmp_path / "..") is None


def test_a_classifiers_directory_has_no_average(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs", "classifier")
    for file in (tmp_path / "logs").glob("ema_*"):
        file.unlink()
    directory = adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    assert not (directory / "ema.safetensors").exists()
    assert isinstance(adm.load(directory), adm.NoisyClassifier)


def test_averages_alone_are_the_model(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    for pattern in ("model*", "opt*"):
        for file in (tmp_path / "logs").glob(pattern):
            file.unlink()
    directory = adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    found = released(dict(adm.load(directory, weights="model").network.state_dict()), flags)
    expected = recorded_weights(released_shapes(read_flags(flags)), 101)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["another count", "another shape", "another optimizer", "no state"])
def test_an_optimizer_that_does_not_fit_is_left_out_and_that_is_said(damage: str, tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    file = tmp_path / "logs" / "opt000100.pt"
    state = torch.load(file, weights_only=True)
    if damage == "another count":
        state["param_groups"][0]["params"].pop()
    elif damage == "another shape":
        state["state"][4]["exp_avg"] = torch.zeros(7)
    elif damage == "another optimizer":
        state["state"] = {i: {"momentum_buffer": torch.zeros(1)} for i in state["state"]}
    else:
        state = {"step": 4}
    torch.save(state, file)
    with pytest.warns(UserWarning, match="opt000100.pt is left out: it does not fit the weights"):
        directory = adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    assert not (directory / "optimizer.safetensors").exists() and (directory / "ema.safetensors").exists()


def test_a_damaged_optimizer_is_refused(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    file = tmp_path / "logs" / "opt000100.pt"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=r"opt000100.pt"):
        adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)
    assert not (tmp_path / "m").exists()


def test_weights_of_another_network_beside_the_average_are_refused(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    shutil.copy(tmp_path / "logs" / "opt000100.pt", tmp_path / "logs" / "model000100.pt")
    with pytest.raises(DamagedError, match=r"model000100.pt: holds the state of Adam"):
        adm.convert(tmp_path / "logs", tmp_path / "m", flags=flags)


def test_pointing_at_one_of_the_files_gives_a_helpful_answer(tmp_path: Path) -> None:
    flags, _ = left_behind(tmp_path / "logs")
    for use in (adm.load, lambda path: adm.convert(path, tmp_path / "m", flags=flags)):
        with pytest.raises(UsageError) as refusal:
            use(tmp_path / "logs" / "opt000100.pt")
        said = "holds the state of an optimizer, no weights. Give ema_0.9999_000100.pt, or the whole directory"
        assert said in str(refusal.value)
    with pytest.warns(UserWarning, match=r"ema_0.9999_000100.pt beside it has the averaged ones"):
        adm.convert(tmp_path / "logs" / "model000100.pt", tmp_path / "m", flags=flags)
    with pytest.raises(UsageError, match=r"holds files of the original trainer.* adm convert .* DST --flags"):
        adm.load(tmp_path / "logs")
    with pytest.raises(UsageError, match=r"holds no model000000\.pt"):
        read_triple(tmp_path)


def test_a_directory_of_which_nothing_is_said_is_refused_as_a_file_is(tmp_path: Path) -> None:
    left_behind(tmp_path / "logs")
    with pytest.raises(UsageError, match=r"ema_0.9999_000100.pt: holds a diffusion network .* which is no preset"):
        adm.convert(tmp_path / "logs", tmp_path / "m")
