"""Averages made afterwards against those that were tracked, closed forms and independent least squares."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate
from torch import Tensor, nn

import adm
from adm.checkpoints import format as checkpoint_format
from adm.runtime.errors import DamagedError, DivergedError, StoppedError, UsageError
from adm.training.ema import EMA, EMAConfig, gamma_of_std
from adm.training.posthoc_ema import Profile, fit_profile, inner, plan_synthesis, synthesize
from adm.training.snapshots import discard_snapshots, save_snapshot, stored_snapshots
from tiny_runs import contents, run, tiny

WIDE, NARROW = gamma_of_std(0.1), gamma_of_std(0.05)
STEPS = 240


def share(n: int, gamma: float) -> NDArray[np.float64]:
    """What weights 1 .. STEPS count in the average after n updates: the profile's integral over each step."""
    k = np.minimum(np.arange(STEPS + 1) / n, 1)
    return np.diff(k ** (gamma + 1))


def profiles(num: int, *gammas: float) -> list[Profile]:
    return [Profile(STEPS * k // num, gamma) for k in range(1, num + 1) for gamma in gammas]


def density(p: Profile, t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(t <= p.updates, (p.gamma + 1) * (t / p.updates) ** p.gamma / p.updates, 0)


# ---- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Profile(1, 0), Profile(1, 0)),
        (Profile(7, 2.5), Profile(7, 6.94)),
        (Profile(3, 16.97), Profile(7, 6.94)),
        (Profile(7, 16.97), Profile(3, 0)),
        (Profile(1, 6.94), Profile(100, 6.94)),
    ],
)
def test_inner_products_of_profiles_are_their_integrals(a: Profile, b: Profile) -> None:
    end = min(a.updates, b.updates)
    expected, _ = integrate.quad(lambda t: float(density(a, np.float64(t)) * density(b, np.float64(t))), 0, end)
    args = (np.float64(v) for p in (a, b) for v in (p.updates, p.gamma))
    assert float(inner(*args)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15])
def test_the_fit_is_the_constrained_least_squares_of_the_curves(std: float) -> None:
    """Solved anew: curves on a grid of 60,000 points, the sum of 1 as a row of great weight."""
    target, stored = Profile(STEPS, gamma_of_std(std)), profiles(6, NARROW, WIDE)
    grid = (np.arange(60_000) + 0.5) * STEPS / 60_000
    columns = np.stack([density(p, grid) for p in stored], axis=1)
    curve = density(target, grid)
    rows = np.vstack([columns, np.full(len(stored), 1e6)])
    expected = np.linalg.lstsq(rows, np.append(curve, 1e6), rcond=None)[0]
    fit = fit_profile(target, stored)
    assert fit.coefficients == pytest.approx(expected, rel=1e-3, abs=1e-4)
    missing = np.linalg.norm(columns @ expected - curve) / np.linalg.norm(curve)
    assert fit.error == pytest.approx(missing, rel=1e-3)


@pytest.mark.parametrize("target", profiles(6, NARROW, WIDE)[3:])
def test_a_stored_profile_is_taken_as_it_is(target: Profile) -> None:
    stored = profiles(6, NARROW, WIDE)
    fit = fit_profile(target, stored)
    assert fit.coefficients.tolist() == [float(p == target) for p in stored] and fit.error < 1e-7


@pytest.mark.parametrize("std", [0.02, 0.05, 0.08, 0.28])
@pytest.mark.parametrize("num", [1, 2, 9, 60])
@pytest.mark.parametrize("gammas", [(WIDE,), (NARROW, WIDE), (2.0, 2.0 + 1e-9)])
def test_coefficients_add_up_to_one_and_stay_small(std: float, num: int, gammas: tuple[float, ...]) -> None:
    """Small: the rounding of stored weights is multiplied by the sum of their magnitudes."""
    fit = fit_profile(Profile(STEPS, gamma_of_std(std)), profiles(num, *gammas))
    assert fit.coefficients.sum() == pytest.approx(1, abs=1e-9)
    assert np.abs(fit.coefficients).sum() < 100


def test_more_snapshots_and_a_second_width_make_it_nearer() -> None:
    target = Profile(STEPS, gamma_of_std(0.07))
    one = [fit_profile(target, profiles(num, WIDE)).error for num in (6, 12, 24, 48)]
    two = [fit_profile(target, profiles(num, NARROW, WIDE)).error for num in (6, 12, 24, 48)]
    assert all(later < 0.6 * earlier for errors in (one, two) for earlier, later in pairwise(errors))
    assert all(b < a / 4 for a, b in zip(one, two, strict=True))
    assert one[-1] < 0.03 and two[-1] < 0.001


def test_the_fit_is_the_same_in_any_unit_of_time() -> None:
    target, stored = Profile(STEPS, 9.0), profiles(8, NARROW, WIDE)
    longer = [Profile(p.updates * 1000, p.gamma) for p in stored]
    again = fit_profile(Profile(STEPS * 1000, 9.0), longer)
    assert again.coefficients == pytest.approx(fit_profile(target, stored).coefficients, rel=1e-6)


# ---- runs -----------------------------------------------------------------------------------------


class Walk(nn.Module):
    """Weights on a random walk, in float64, and a counter."""

    def __init__(self, size: int = 300) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


PATH = np.random.RandomState(0).standard_normal((STEPS, 300)).cumsum(axis=0)
MODEL = {"kind": "none"}


def walked(out: Path, every: int, *others: float, path: NDArray[np.float64] = PATH, step: int = 1) -> EMA:
    """A run of the walk with snapshots; step: how much the step count grows with each update."""
    module = Walk()
    ema = EMA(module, EMAConfig(gamma=WIDE, others=others, snapshot_every=every))
    for n, weights in enumerate(path, 1):
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weights))
            module.count.fill_(n)
        ema.update(module)
        if n % every == 0:
            save_snapshot(out, n * step, ema, MODEL)
    return ema


def test_a_stored_average_is_synthesized_exactly(tmp_path: Path) -> None:
    ema = walked(tmp_path, 40, NARROW)
    for gamma, average in ((WIDE, ema.weights), (NARROW, ema.others[0])):
        made = synthesize(tmp_path, gamma=gamma)
        assert torch.equal(made["weight"], average["weight"]) and made["count"] == STEPS
    before = checkpoint_format.load(tmp_path / "snapshots" / "step-00000120").tensors["ema-1"]
    made = synthesize(tmp_path, 0.05, step=120)
    assert torch.allclose(made["weight"], before["weight"], rtol=1e-9) and made["count"] == 120


@pytest.fixture(scope="module")
def two_widths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Steps between snapshots -> a run of the walk."""
    made = {every: tmp_path_factory.mktemp("walk") / f"every {every}" for every in (40, 20, 10, 5)}
    for every, out in made.items():
        walked(out, every, NARROW)
    return made


@pytest.mark.parametrize("std", [0.04, 0.07, 0.13, 0.2])
def test_an_average_between_is_the_one_that_was_tracked(std: float, two_widths: dict[int, Path]) -> None:
    """Against the tracked one and, through the closed form of every stored average, against the definition."""
    gamma = gamma_of_std(std)
    module = Walk()
    tracked = EMA(module, EMAConfig(gamma=gamma))
    for weights in PATH:
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weights))
        tracked.update(module)
    truth = tracked.weights["weight"].numpy()
    assert truth == pytest.approx(share(STEPS, gamma) @ PATH, rel=1e-9, abs=1e-9)
    errors = []
    for out in two_widths.values():
        plan = plan_synthesis(out, gamma)
        made = plan.tensors()["weight"].numpy()
        closed = sum(c * share(s.updates, s.gammas[group]) for s, group, c in plan.parts)
        assert made == pytest.approx(closed @ PATH, rel=1e-9, abs=1e-9)
        errors.append(np.linalg.norm(made - truth) / np.linalg.norm(truth - share(STEPS, WIDE) @ PATH))
    assert errors[-1] < 2e-3 and all(b < a / 3 for a, b in pairwise(errors)), errors


def test_one_width_alone_makes_others_too(tmp_path: Path) -> None:
    truth = share(STEPS, gamma_of_std(0.07)) @ PATH
    errors = []
    for every in (40, 10, 2):
        walked(tmp_path / f"{every}", every)
        made = synthesize(tmp_path / f"{every}", 0.07)["weight"].numpy()
        errors.append(np.linalg.norm(made - truth) / np.linalg.norm(truth - share(STEPS, WIDE) @ PATH))
    assert errors[2] < errors[1] / 4 < errors[0] / 8 and errors[2] < 0.03, errors


def test_weights_that_never_change_stay_as_they_are(tmp_path: Path) -> None:
    walked(tmp_path, 30, NARROW, path=np.full((STEPS, 300), 0.7))
    assert synthesize(tmp_path, 0.02)["weight"].numpy() == pytest.approx(0.7, rel=1e-12)


def test_what_came_after_the_step_does_not_count(tmp_path: Path) -> None:
    other = np.concatenate([PATH[:120], 1e3 + PATH[120:]])
    walked(tmp_path / "a", 30, NARROW)
    walked(tmp_path / "b", 30, NARROW, path=other)
    a, b = (synthesize(tmp_path / name, 0.08, 120)["weight"] for name in "ab")
    assert torch.equal(a, b)
    a, b = (synthesize(tmp_path / name, 0.08)["weight"] for name in "ab")
    assert not torch.allclose(a, b)  # the twin


def test_time_is_counted_in_updates_not_in_steps_that_were_skipped(tmp_path: Path) -> None:
    walked(tmp_path / "a", 30, NARROW)
    walked(tmp_path / "b", 30, NARROW, step=3)
    assert torch.equal(
        synthesize(tmp_path / "a", 0.08)["weight"], synthesize(tmp_path / "b", 0.08, 3 * STEPS)["weight"]
    )


def test_float32_weights_come_back_as_float32_with_their_rounding_alone(tmp_path: Path) -> None:
    module = nn.Linear(30, 10, bias=False)
    ema = EMA(module, EMAConfig(gamma=WIDE, others=(NARROW,)))
    tracked = EMA(module, EMAConfig(gamma=gamma_of_std(0.07)))
    for n in range(1, STEPS + 1):
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(PATH[n - 1] / 10).reshape(10, 30))
        ema.update(module)
        tracked.update(module)
        if n % 5 == 0:
            save_snapshot(tmp_path, n, ema, MODEL)
    made = synthesize(tmp_path, 0.07)["weight"]
    assert made.dtype == torch.float32
    assert (made - tracked.weights["weight"]).norm() < 2e-3 * tracked.weights["weight"].norm()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, with a checkpoint and a snapshot every 2 of its 10 steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run(tiny("diffusion", "loop.steps=10", "loop.save_every=2", "ema.snapshot_every=2", "ema.others=16.97,3"), out)
    return out


def test_a_synthesis_is_a_checkpoint_that_says_what_it_is_made_of(trained: Path, tmp_path: Path) -> None:
    plan = plan_synthesis(trained, gamma_of_std(0.07), 6)
    seen: list[tuple[int, int]] = []
    plan.save(tmp_path / "made", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    loaded = adm.load(tmp_path / "made")
    assert isinstance(loaded, adm.DiffusionModel) and loaded.class_names == ("horizontal", "vertical")
    by_hand: dict[str, Tensor] = {}
    provenance = checkpoint_format.load(tmp_path / "made").documents["provenance"]
    assert (provenance["run"], provenance["step"], provenance["std"]) == ("run", 6, pytest.approx(0.07))
    for part in provenance["parts"]:
        directory = trained / "snapshots" / f"step-{part['step']:08d}"
        for name, value in checkpoint_format.load(directory).tensors[part["group"]].items():
            by_hand[name] = by_hand.get(name, 0) + part["coefficient"] * value.double()
    for name, value in loaded.network.state_dict().items():
        assert torch.allclose(value.double(), by_hand[name], rtol=1e-6, atol=1e-9)
    before = contents(tmp_path / "made")
    with pytest.raises(UsageError, match="made exists"):
        plan.save(tmp_path / "made")
    assert contents(tmp_path / "made") == before


# ---- snapshots of a run ---------------------------------------------------------------------------


def test_a_run_stores_its_averages_as_often_as_it_is_told_and_keeps_them(trained: Path) -> None:
    """loop.keep is 3; snapshots are not checkpoints."""
    assert checkpoint_format.steps(trained / "checkpoints") == [6, 8, 10]
    found = stored_snapshots(trained)
    assert [(s.step, s.updates, s.gammas) for s in found] == [
        (step, step, {"ema": 6.94, "ema-1": 16.97, "ema-2": 3.0}) for step in (2, 4, 6, 8, 10)
    ]
    for snapshot in found[2:]:
        checkpoint = checkpoint_format.load(trained / "checkpoints" / snapshot.directory.name).tensors
        stored = checkpoint_format.load(snapshot.directory).tensors
        assert set(stored) == {"ema", "ema-1", "ema-2"}
        for group, tensors in stored.items():
            assert all(torch.equal(value, checkpoint[group][name]) for name, value in tensors.items())
    early = adm.load(found[0].directory, weights="ema-1").network.state_dict()  # such as for autoguidance
    assert all(
        torch.equal(early[name], v) for name, v in checkpoint_format.load(found[0].directory).tensors["ema-1"].items()
    )


def test_a_run_without_the_setting_stores_none(tmp_path: Path) -> None:
    run(tiny("diffusion", "loop.steps=4"), tmp_path)
    assert stored_snapshots(tmp_path) == [] and not (tmp_path / "snapshots").exists()


@pytest.mark.parametrize("stop_at", [5, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_has_the_snapshots_of_one_that_was_not(
    stop_at: int, trained: Path, tmp_path: Path
) -> None:
    config = tiny("diffusion", "loop.steps=10", "loop.save_every=2", "ema.snapshot_every=2", "ema.others=16.97,3")
    with pytest.raises(StoppedError):
        run(config, tmp_path, stop_at=stop_at)
    run(config, tmp_path)
    assert contents(tmp_path / "snapshots") == contents(trained / "snapshots")


def test_a_copy_that_is_intact_is_left_alone_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    ema = walked(tmp_path, 60)
    directory = tmp_path / "snapshots" / "step-00000240"
    before = {name: (directory / name).stat().st_mtime_ns for name in contents(directory)}
    assert save_snapshot(tmp_path, STEPS, ema, MODEL) == directory
    assert {name: (directory / name).stat().st_mtime_ns for name in contents(directory)} == before
    good = contents(directory)
    flip(directory / "ema.safetensors")
    assert contents(directory) != good
    save_snapshot(tmp_path, STEPS, ema, MODEL)
    assert contents(directory) == good


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_run_that_goes_on_from_before_takes_back_what_it_will_do_again(tmp_path: Path) -> None:
    walked(tmp_path, 60)
    (tmp_path / "snapshots" / "step-00000300.partial-0123abcd").mkdir()
    assert discard_snapshots(tmp_path, after=120) == ["step-00000180", "step-00000240"]
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == ["step-00000060", "step-00000120"]
    assert discard_snapshots(tmp_path, after=120) == []
    assert discard_snapshots(tmp_path / "new", after=0) == [] and not (tmp_path / "new").exists()


def test_nothing_that_is_not_finite_is_stored(tmp_path: Path) -> None:
    module = Walk()
    ema = EMA(module, EMAConfig(others=(NARROW,)))
    ema.update(module)
    ema.others[0]["weight"][7] = torch.nan
    with pytest.raises(DivergedError, match=r"ema-1: weight has 1 of 300 values not finite"):
        save_snapshot(tmp_path, 1, ema, MODEL)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_constant_averages_have_no_snapshots(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="constant rule"):
        save_snapshot(tmp_path, 1, EMA(Walk(), EMAConfig("constant")), MODEL)


# ---- what cannot be made --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"std": 0.5}, "std is 0.5: must be above 0 and at most 0.2887"),
        ({"std": 0.1, "gamma": 3}, "give std or gamma"),
        ({}, "give std or gamma"),
        (
            {"std": 0.1, "step": 100},
            r"no snapshot of step 100\. Choose one of the 4 that are there, such as 60, 120, 180\.",
        ),
    ],
)
def test_what_there_is_no_average_of_is_refused(options: dict[str, float], said: str, tmp_path: Path) -> None:
    walked(tmp_path, 60)
    with pytest.raises((ValueError, UsageError), match=said):
        synthesize(tmp_path, **options)  # type: ignore[arg-type]


def test_a_run_without_snapshots_is_told_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"run: .* no snapshots .*--set ema\.snapshot_every=N .*ema\.others=16\.97\."):
        synthesize(tmp_path / "run", 0.1)
    with pytest.raises(UsageError, match="nowhere: no such run"):
        synthesize(tmp_path / "nowhere", 0.1)


@pytest.mark.parametrize("file", ["ema.safetensors", "state.json", "MANIFEST.json", "model.json"])
def test_a_damaged_snapshot_is_named_and_the_others_do_without_it(file: str, tmp_path: Path) -> None:
    walked(tmp_path, 30, NARROW)
    directory = tmp_path / "snapshots" / "step-00000150"
    flip(directory / file)
    with pytest.raises(DamagedError, match=r"step-00000150 is damaged .*Remove it: the others do without\."):
        synthesize(tmp_path, 0.07)
    checkpoint_format.files.remove(directory)
    truth = share(STEPS, gamma_of_std(0.07)) @ PATH
    made = synthesize(tmp_path, 0.07)["weight"].numpy()
    assert np.linalg.norm(made - truth) < 0.1 * np.linalg.norm(truth - share(STEPS, WIDE) @ PATH)


@pytest.mark.parametrize(
    "state",
    [
        {"step": 30},
        {"step": 30, "ema_updates": "30", "gammas": {"ema": 1.0}},
        {"step": 30, "ema_updates": 30, "gammas": {"ema": "1"}},
        {"step": 30, "ema_updates": 30, "gammas": {"ema-9": 1.0}},
        {"step": 30, "ema_updates": 30, "gammas": [1.0]},
    ],
)
def test_a_directory_that_is_no_snapshot_is_refused(state: dict[str, object], tmp_path: Path) -> None:
    tensors = {"ema": {"weight": torch.zeros(3)}}
    checkpoint_format.save(tmp_path / "snapshots" / "step-00000030", tensors=tensors, documents={"state": state})
    with pytest.raises(DamagedError, match=r"step-00000030 is damaged .state.json: not that of a snapshot"):
        stored_snapshots(tmp_path)


def test_snapshots_of_another_network_are_not_mixed_in(tmp_path: Path) -> None:
    walked(tmp_path, 120)
    module = Walk(7)
    ema = EMA(module, EMAConfig())
    ema.update(module)
    save_snapshot(tmp_path, 60, ema, MODEL)
    with pytest.raises(DamagedError, match=r"step-00000060 is damaged .*the weights of another network"):
        synthesize(tmp_path, 0.07)


def test_making_one_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    walked(tmp_path, 60, NARROW)
    before = {name: hashlib.sha256(data).hexdigest() for name, data in contents(tmp_path).items()}
    synthesize(tmp_path, 0.07)
    assert {name: hashlib.sha256(data).hexdigest() for name, data in contents(tmp_path).items()} == before
