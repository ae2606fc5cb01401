"""What measurements say: the best step, overfitting, numbers for files, and the picture."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from adm.runtime.lookup import Spec, parse_spec
from adm.training._calibration import Calibration
from adm.training._guidance_advice import guidance_advice, naming_run
from adm.training._noise_levels import Level
from adm.training._noise_picture import _figure
from adm.training.validation import Validation, draw
from known_networks import ALONE, DENOISER, known_model, noise_images, optimal_eps
from tiny_runs import Stripes, tiny


@pytest.fixture(scope="module")
def accuracies() -> dict[str, Any]:
    """Of a classifier that looks at two pixels."""
    config = tiny("classifier", "network.num_classes=7")
    return Validation(config, Stripes())(known_model(config, lambda x, *_: 3 * x[:, 0, 0, :7]), ALONE)


# ---- the best step, and when to stop --------------------------------------------------------------


def complete(before: dict[int, float], step: int) -> dict[str, Any]:
    """A measurement whose loss is `now`, after earlier ones that differ from it by the given amounts."""
    config = tiny("diffusion", *DENOISER)
    measure, model = Validation(config, noise_images(6, 0)), known_model(config, optimal_eps(config))
    now = measure(model, ALONE)["loss"]
    history: list[dict[str, Any]] = [{"step": at, "loss": now + more} for at, more in before.items()]
    damaged: list[dict[str, Any]] = [{"step": "x", "loss": 0.0}, {"loss": -1.0}, {"step": 3, "loss": None}]
    return measure(model, ALONE, step=step, history=[*damaged, *history])


@pytest.mark.parametrize(
    ("before", "step", "best", "rises"),
    [
        ({}, 100, 100, 0),
        ({100: 0.2, 200: 0.1}, 300, 300, 0),
        ({100: 0.2, 200: -0.1}, 300, 200, 1),
        ({100: -0.3, 200: -0.2, 300: -0.1}, 400, 100, 3),
        ({100: -0.3, 200: -0.35, 300: -0.1}, 400, 200, 2),
        ({300: -0.1, 100: -0.3, 200: -0.2}, 400, 100, 3),  # in the order of the steps, not of the lines
        ({100: 0.2, 500: -5.0}, 300, 300, 0),  # of a run that went back
        ({300: -5.0}, 300, 300, 0),  # this very step, measured before an interruption
    ],
)
def test_the_best_step_is_named_and_three_rises_in_a_row_are_overfitting(before, step, best, rises) -> None:
    result = complete(before, step)
    assert result["best"]["step"] == best and result["overfit"]["rises_in_a_row"] == rises
    assert result["best"]["loss"] == pytest.approx(result["loss"] + before.get(best, 0.0) * (best != step))
    assert result["overfit"]["alarm"] == (rises >= 3)
    if rises >= 3:
        assert f"Step {best} was the best" in result["overfit"]["notes"][0]
    assert any(f"at step {best}" in line for line in result["lines"]) == (best != step)
    assert all("\n" not in line for line in result["lines"])


# ---- advice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "error", "accuracy", "chance", "advised", "words"),
    [
        (1.03, 0.03, 0.6, 0.1, 1.0, "is calibrated"),
        (0.62, 0.03, 0.6, 0.1, 0.62, "too sure of itself"),
        (2.34, 0.1, 0.6, 0.1, 2.3, "too unsure of itself"),
        (math.inf, None, 1.0, 0.1, 1.0, "right on every image"),
        (1.0, 0.1, 0.19, 0.1, None, "top-1 is 19.0%"),  # 3 standard errors of 100 images are 9 percent
        (1.0, 0.1, 0.2, 0.1, 1.0, "is calibrated"),
        (0.87, 0.32, 0.6, 0.1, None, "cannot be told from 0"),
        (0.0, None, 0.6, 0.1, None, "cannot be told from 0"),
    ],
)
def test_a_scale_is_advised_where_something_certain_is_known(scale, error, accuracy, chance, advised, words) -> None:
    """The level that counts is the one whose log-SNR is nearest to 0."""
    levels = [Level(0, 10, 3.0), Level(10, 20, -0.2), Level(20, 30, -4.0)]
    found = guidance_advice(Calibration(scale, error, 1.0), [0.1, accuracy, 0.1], levels, chance, 100)
    assert found["scale"] == advised and found["weak"] == (advised is None) and words in found["advice"]
    assert found["equal_signal_and_noise"] == {"t": [10, 19], "log_snr": -0.2, "accuracy": accuracy}


@pytest.mark.parametrize("run", ["runs/clf", "my runs/clf", "/a/b:c=d/Ü(1)", "it's", "runs/a (b,c)"])
def test_the_advice_can_be_copied_to_a_shell_and_names_the_run(run: str) -> None:
    levels = [Level(0, 10, 0.0)]
    advice = guidance_advice(Calibration(1.7, 0.1, 1.0), [0.6], levels, 0.1, 100)["advice"]
    assert "classifier=RUN," in advice  # what is recorded is the same wherever the run lies
    words = shlex.split(naming_run(advice, Path(run)).partition("start with ")[2].partition(" on a model")[0])
    assert words[0] == "--guidance" and len(words) == 2
    assert parse_spec(words[1]) == Spec("classifier", {"classifier": run, "scale": "1.7"})


def test_a_line_without_a_flag_stays_as_it_is_and_so_does_one_whose_run_no_flag_can_name() -> None:
    assert naming_run("RUN is not named", Path("x")) == "RUN is not named"
    line = "start with --guidance classifier:classifier=RUN,scale=1 on a model"
    for run in ("a,b", "a)", "new\nline", " blank"):
        assert naming_run(line, Path(run)) == line


# ---- the picture ----------------------------------------------------------------------------------


def test_pictures_are_drawn_alike_and_leave_matplotlib_alone(tmp_path: Path, accuracies) -> None:
    config = tiny("diffusion", *DENOISER)
    losses = Validation(config, noise_images(6, 0), noise_images(6, 1))(known_model(config, optimal_eps(config)), ALONE)
    lone = Validation(config, noise_images(6, 0))(known_model(config, optimal_eps(config)), ALONE)
    before = dict(matplotlib.rcParams)
    for k, result in enumerate([accuracies, losses, lone]):
        paths = [tmp_path / f"{k}-{copy}.png" for copy in ((0, 1) if k == 0 else (0,))]
        for path in paths:
            draw(json.loads(json.dumps(result)), path)
        assert len({path.read_bytes() for path in paths}) == 1
        with Image.open(paths[0]) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.shape == (680, 1520) and 0.02 < (pixels < 200).mean() < 0.3
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_no_curve_and_no_line_crosses_a_legend(chance: float, accuracies) -> None:
    """Which lie beside the axes, below their titles and within the picture, and do not meet."""
    figure = _figure(accuracies | {"chance": chance})
    figure.canvas.draw()
    boxes = []
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent())
        assert not legend.overlaps(axes._left_title.get_window_extent())
        assert figure.bbox.containsx(legend.x0) and figure.bbox.containsx(legend.x1)
        boxes.append(legend)
    assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])


def test_losses_that_are_all_alike_stay_off_the_frame() -> None:
    result = complete({}, 100)
    levels = [level | {"loss": 0.9} for level in result["levels"]]
    low, high = _figure(result | {"levels": levels}).axes[0].get_ylim()
    assert low == 0 and high == pytest.approx(1.06 * 0.9)


def test_scalars_are_flat_numbers_and_results_json(accuracies) -> None:
    for result in (accuracies, complete({100: 0.1}, 200)):
        assert all(type(value) is float and "/" not in name for name, value in result["scalars"].items())
        assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"accuracy", "cross_entropy", "accuracy_t0", "accuracy_level_8"} <= accuracies["scalars"].keys()
