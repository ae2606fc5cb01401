"""`adm study fit_timesteps`: a file with a grid, what it says, and where it may be used."""

import json
from dataclasses import replace

import pytest
import torch

import adm
from adm.checkpoints.model_document import ScheduleConfig
from adm.runtime.errors import DamagedError, StoppedError, UsageError
from adm.sampling import timesteps_for
from adm.sampling._fitted import fit_timesteps, jump_errors
from adm.studies._chains import FittedGrid, chain_for, read_grid, write_grid
from adm.studies.experiments.fit_timesteps import FitTimesteps
from adm.studies.request import prepare_named

GRID = FittedGrid(
    "fitted timesteps", (0.0, 3.25, 700.1), ScheduleConfig("cosine", 1000), "step-00000004", "0" * 64, (), (),
    "ddim", 60, 64, 0,
)  # fmt: skip
SMALL = "num=4,batch_size=2,fine=12,links=3"


@pytest.fixture
def grid(tmp_path):
    write_grid(tmp_path / "grid.json", GRID)
    return tmp_path / "grid.json"


def test_a_grid_comes_back_as_it_was_written(grid):
    assert read_grid(grid) == GRID
    assert chain_for(adm.DDIM(), adm.cosine(1000), str(grid)).timesteps.tolist() == [700.1, 3.25, 0.0]


def test_the_study_writes_the_grid_of_the_pure_function_and_sample_takes_it(runs, tmp_path, adm_command):
    out = tmp_path / "fit"
    result = adm_command("study", f"fit_timesteps:model=model,{SMALL}", "--out", out)
    assert result.code == 0, result.err
    assert f"grid: --steps {out / 'grid.json'}" in result.out and (out / "report.html").exists()
    model = adm.load("model")
    fine = adm.Chain(model.schedule, timesteps_for(adm.DDIM(), model.schedule, "log-snr:12"))
    labels = adm.Condition(label=[0, 1, 2, 3])
    clipped = adm.guide(model, adm.Clip())
    errors = jump_errors(clipped, fine, adm.SeededNoise(range(4)), (4, 1, 8, 8), adm.DPMSolver2M(), labels)
    pure = fit_timesteps(fine, *errors, 3)
    assert list(read_grid(out / "grid.json").timesteps) == pure
    words = ["sample", "model", "--num", 1, "--sampler", "ddim", "--steps", out / "grid.json", "--out", tmp_path / "s"]
    sampled = adm_command(*words, "--device", "cpu")
    assert (sampled.code, sampled.err) == (0, "")
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert (request["steps"], request["grid"], request["timesteps"]) == (3, "fitted", pure)


def test_what_is_there_is_not_done_again_and_a_stop_continues(runs, tmp_path, monkeypatch):
    study = FitTimesteps(model="model", num=4, batch_size=2, fine=12, links=3)
    asked = iter([False, True])
    with pytest.raises(StoppedError):
        study.run(tmp_path, stop_requested=lambda: next(asked))
    assert len(list((tmp_path / "trials").iterdir())) == 1
    states = torch.get_rng_state()
    _, table = study.run(tmp_path)
    assert torch.equal(states, torch.get_rng_state())
    before = (tmp_path / "grid.json").read_bytes()
    monkeypatch.setattr(FitTimesteps, "distances", None)
    monkeypatch.setattr(FitTimesteps, "jumps", None)
    assert study.run(tmp_path)[1] == table and (tmp_path / "grid.json").read_bytes() == before
    with pytest.raises(TypeError):  # other links: the teacher's steps are there, the comparison is not
        replace(study, links=4).run(tmp_path)


def test_a_short_last_batch_counts_as_the_images_that_it_has(runs, tmp_path):
    """The distance over all images is that of one batch of them all."""
    found = {}
    for size in (2, 3):
        FitTimesteps(model="model", num=3, batch_size=size, fine=6, links=3).run(tmp_path / str(size))
        found[size] = json.loads((tmp_path / str(size) / "results.json").read_text())
    assert found[2]["grids"] == found[3]["grids"] and found[2]["std"] != found[3]["std"]
    assert found[2]["distance"] == pytest.approx(found[3]["distance"], rel=1e-4)


def test_a_teacher_with_noise_is_refused_in_a_line(runs, tmp_path, adm_command):
    result = adm_command("study", f"fit_timesteps:model=model,{SMALL},teacher=ddpm", "--out", tmp_path)
    assert result.code == 2 and "teacher ddpm: the teacher draws noise: use a rule without noise" in result.last


def test_guidance_is_part_of_the_fit_and_of_the_file(runs, tmp_path):
    spec = "(classifier:classifier=guide,scale=5)"
    FitTimesteps(model="unconditional", num=2, batch_size=2, fine=8, links=3, guidance=spec).run(tmp_path)
    grid = read_grid(tmp_path / "grid.json")
    assert grid.guidance[0].startswith("classifier:classifier=guide,scale=5") and len(grid.guidance_sha256) == 1
    assert FitTimesteps(guidance=f"({spec},(clip:limit=2))").guidances == (spec[1:-1], "clip:limit=2")
    assert FitTimesteps(guidance="clip").guidances == ("clip",) and FitTimesteps().guidances == ()


def test_a_grid_for_another_model_is_noted_and_for_another_schedule_refused(grid, runs):
    with pytest.warns(UserWarning, match=r"were fitted to other weights \(step-00000004\) than those of model"):
        assert prepare_named("model", str(grid), "ddim").grid == "fitted"
    write_grid(grid, replace(GRID, schedule=ScheduleConfig("linear", 1000)))
    with pytest.raises(
        UsageError, match=r"another noise schedule \(linear, T = 1000\) than the model's \(cosine, T = 1"
    ):
        adm.generate(adm.load("model"), [1], steps=str(grid))


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "x"}', '{"kind": "fitted timesteps", "timesteps": "many"}'])
def test_another_file_is_refused_as_foreign(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DamagedError) as error:
        chain_for(adm.DDIM(), adm.cosine(1000), str(tmp_path / "a.json"))
    assert "a.json" in str(error.value) and "\n" not in str(error.value)


def test_timesteps_that_cannot_be_are_refused(grid):
    for wrong in ((0.0, 0.0), (5.0, 1000.0), ()):
        write_grid(grid, replace(GRID, timesteps=wrong))
        with pytest.raises(UsageError, match=r"grid\.json: .*\.$"):
            chain_for(adm.DDIM(), adm.cosine(1000), str(grid))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"links": 0}, "links is 0"), ({"links": 60}, "fewer links than its teacher"), ({"num": 0}, "num is 0")],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        FitTimesteps(**options)


def test_a_model_must_be_named(tmp_path, adm_command):
    result = adm_command("study", "fit_timesteps", "--out", tmp_path)
    assert result.code == 2 and "Write fit_timesteps:model=RUN,links=10" in result.err
