"""Every named schedule and parametrization survives being written down, and comes back under its name."""

from __future__ import annotations

import json

import pytest
import torch

import adm
from adm.checkpoints.model_document import (
    ScheduleConfig,
    build_model,
    describe_model,
    describe_schedule,
    make_schedule,
)
from adm.checkpoints.openai_export import spec_of
from adm.nn import UNet, UNetConfig
from adm.runtime.config import from_dict
from adm.runtime.errors import UsageError

MAKERS = {"linear": adm.linear, "cosine": adm.cosine, "edm": adm.edm, "flow": adm.flow}
NETWORK = UNetConfig(4, in_channels=1, out_channels=1, model_channels=4, channel_mult=(1,))


@pytest.mark.parametrize("T", [21, 100, 1000])
@pytest.mark.parametrize("name", MAKERS)
def test_named_schedules_are_known_by_name(name: str, T: int) -> None:
    config = describe_schedule(MAKERS[name](T))
    assert config == ScheduleConfig(name, T)  # type: ignore[arg-type]
    assert torch.equal(make_schedule(config).alpha_bar, MAKERS[name](T).alpha_bar)


@pytest.mark.parametrize("name", MAKERS)
def test_a_schedule_that_differs_in_one_entry_is_a_table(name: str) -> None:
    table = MAKERS[name](50).alpha_bar.clone()
    table[7] *= 1 - 1e-12
    config = describe_schedule(adm.Schedule(table))
    assert config.name == "table" and torch.equal(make_schedule(config).alpha_bar, table)


@pytest.mark.parametrize("mean", ["eps", "x0", "v", "edm", "flow"])
@pytest.mark.parametrize("name", ["edm", "flow"])
def test_models_of_the_new_schedules_are_written_down_and_built_again(name: str, mean: str) -> None:
    model = adm.DiffusionModel(UNet(NETWORK), MAKERS[name](100), mean, "small")  # type: ignore[arg-type]
    document = json.loads(json.dumps(describe_model(model)))
    again = build_model(document)
    assert isinstance(again, adm.DiffusionModel) and again.mean == mean and again.schedule.same_as(model.schedule)
    assert document["schedule"]["name"] == name and describe_model(again) == document


@pytest.mark.parametrize(("name", "least"), [("linear", 21), ("cosine", 1), ("edm", 2), ("flow", 1)])
def test_too_few_timesteps_are_refused_when_they_are_written(name: str, least: int) -> None:
    make_schedule(from_dict(ScheduleConfig, {"name": name, "num_timesteps": least}, "config.json"))
    with pytest.raises(UsageError, match=f"num_timesteps is {least - 1}: must be at least {least} for {name}"):
        from_dict(ScheduleConfig, {"name": name, "num_timesteps": least - 1}, "config.json")


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_the_original_code_has_no_such_schedule(name: str) -> None:
    network = UNet(UNetConfig(8, in_channels=3, out_channels=3, model_channels=32, channel_mult=(1,)))
    model = adm.DiffusionModel(network, MAKERS[name](1000), "eps", "small")
    with pytest.raises(UsageError, match="its schedule is neither linear nor cosine"):
        spec_of(model)
