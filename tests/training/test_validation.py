"""Measurements on held-out images: closed forms of Gaussian data, calibration, and the same noise each time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import adm
from adm.checkpoints.model_document import make_schedule
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import EncoderClassifier, UNet
from adm.runtime import randomness
from adm.runtime.config import override
from adm.runtime.errors import DataError, DivergedError, StoppedError, UsageError
from adm.training.config import DataConfig, LoopConfig, TrainConfig, UpsamplerTraining
from adm.training.validation import Validation, with_weights
from known_networks import (
    ALONE,
    DENOISER,
    SCHEDULE_100,
    STD,
    Pictures,
    in_grey_levels,
    known_model,
    noise_images,
    optimal_eps,
)
from tiny_runs import NETWORK, SCHEDULE, Stripes, global_states, tiny

# ---- a classifier with a closed form --------------------------------------------------------------

SHIFT, PIXELS = 0.08, 64
"""Of the data: class 0 is N(-SHIFT, STD^2) in each of 64 pixels, class 1 N(SHIFT, STD^2)."""


def two_gaussians(num: int = 800, seed: int = 0) -> Pictures:
    rng = np.random.RandomState(seed)
    labels = np.arange(num) % 2
    x = (2 * labels - 1)[:, None, None, None] * SHIFT + STD * rng.standard_normal((num, 8, 8, 1))
    return Pictures(in_grey_levels(x), labels.tolist(), ("low", "high"))


def posterior(config: TrainConfig) -> Callable[..., Tensor]:
    """log p(y | x_t, t) up to a constant: marginals are N(+-a SHIFT, a^2 STD^2 + 1 - a^2)."""
    ab = make_schedule(config.schedule).alpha_bar.float()

    def logits(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        half = ab[t].sqrt() * SHIFT * x.sum((1, 2, 3)) / (ab[t] * STD**2 + 1 - ab[t])
        return torch.stack([-half, half], dim=1)

    return logits


def bayes_accuracy(config: TrainConfig, first: int, last: int) -> float:
    """P(a N(a SHIFT, spread^2) mean of 64 pixels has the right sign), over the timesteps of a level."""
    ab = make_schedule(config.schedule).alpha_bar[first : last + 1].numpy()
    return float(norm.cdf(np.sqrt(ab * PIXELS) * SHIFT / np.sqrt(ab * STD**2 + 1 - ab)).mean())


@pytest.fixture(scope="module")
def gaussian() -> tuple[TrainConfig, dict[str, Any], dict[str, Any]]:
    """The exact classifier measured as it is, and with logits twice as large."""
    config = tiny("classifier", *SCHEDULE_100)
    model = known_model(config, posterior(config))
    measure = Validation(config, two_gaussians(), two_gaussians(4, seed=1))
    return config, measure(model, ALONE), measure(model, {"gain": torch.tensor(2.0)})


def test_the_exact_classifier_has_the_bayes_accuracy_at_every_noise_level(gaussian) -> None:
    config, result, _ = gaussian
    assert [level["t"] for level in result["levels"]] == [
        [0, 11], [12, 24], [25, 36], [37, 49], [50, 61], [62, 74], [75, 86], [87, 99],
    ]  # fmt: skip
    expected = [bayes_accuracy(config, *level["t"]) for level in result["levels"]]
    assert expected[0] > 0.99 and expected[-1] < 0.6
    for level, p in zip(result["levels"], expected, strict=True):
        assert level["accuracy"] == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 800))
        log_snr = torch.logit(make_schedule(config.schedule).alpha_bar)[level["t"][0] : level["t"][1] + 1].mean()
        assert level["log_snr"] == pytest.approx(float(log_snr))
    assert result["accuracy"] == pytest.approx(np.mean(expected), abs=4 * result["accuracy_standard_error"])
    assert result["accuracy"] == pytest.approx(np.mean([level["accuracy"] for level in result["levels"]]), abs=1e-12)
    assert result["at_t0"]["accuracy"] == pytest.approx(bayes_accuracy(config, 0, 0), abs=0.006)
    assert result["chance"] == 0.5 and "accuracy_top5" not in result


def test_an_exact_posterior_is_calibrated_at_scale_1(gaussian) -> None:
    _, result, _ = gaussian
    assert result["calibrated_scale"] == pytest.approx(1, abs=3 * result["calibrated_scale_standard_error"])
    assert result["calibrated_scale_standard_error"] < 0.1
    for level in result["levels"]:
        if level["calibrated_scale"] is not None and level["accuracy"] < 0.99:
            assert level["calibrated_scale"] == pytest.approx(1, abs=4 * level["calibrated_scale_standard_error"])
    assert not result["guidance"]["weak"]
    assert result["guidance"]["scale"] == pytest.approx(result["calibrated_scale"], rel=0.05)
    assert f"scale={result['guidance']['scale']:g}" in result["guidance"]["advice"]


def test_doubled_logits_halve_the_scale_and_change_no_decision(gaussian) -> None:
    """And it is the weights that were given which are measured, not the model's own."""
    _, once, twice = gaussian
    assert twice["calibrated_scale"] == pytest.approx(once["calibrated_scale"] / 2, rel=1e-5)
    assert [level["accuracy"] for level in twice["levels"]] == [level["accuracy"] for level in once["levels"]]
    assert twice["calibrated_cross_entropy"] == pytest.approx(once["calibrated_cross_entropy"], rel=1e-6)
    assert twice["cross_entropy"] > once["cross_entropy"]
    assert "too sure" in twice["guidance"]["advice"]


def test_a_classifier_that_answers_at_random_is_too_weak_to_guide() -> None:
    config = tiny("classifier", *SCHEDULE_100)
    model = known_model(config, lambda x, t, label, low_res: x[:, 0, 0, :2] - x[:, 0, 0, :2].flip(1))
    data = two_gaussians(200)
    guidance = Validation(config, data)(model, ALONE)["guidance"]
    assert guidance["weak"] and guidance["scale"] is None
    assert "too weak" in guidance["advice"] and "50.0%" in guidance["advice"]


def test_a_classifier_that_is_always_right_has_no_finite_scale_and_starts_at_1() -> None:
    config = tiny("classifier")
    data = Pictures(np.zeros((12, 8, 8, 1), np.uint8), [1] * 12, ("a", "b"))
    # Class 1 alone: chance is 1, so that nothing above it can be shown.
    constant = torch.tensor([0.0, 3.0])
    result = Validation(config, data)(known_model(config, lambda x, *_: constant.expand(len(x), 2)), ALONE)
    assert result["calibrated_scale"] is None and result["guidance"]["weak"]

    stripes = Stripes(24, noise=0.0)  # told apart by one pair of differences, without noise

    def right(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        down, across = (x[:, 0].diff(dim=d).abs().mean((1, 2)) for d in (1, 2))
        return torch.stack([down - across, across - down], dim=1)

    quiet = override(config, ("schedule.name=edm",))
    clean = Validation(quiet, stripes)
    result = clean(known_model(quiet, right), ALONE)
    assert result["at_t0"]["accuracy"] == 1
    assert result["levels"][0]["calibrated_scale"] is None
    json.dumps(result, allow_nan=False)


def test_top_5_is_counted_with_more_than_5_classes() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 6]
    data = Pictures(np.zeros((8, 8, 8, 1), np.uint8), labels, tuple("abcdefg"))
    config = tiny("classifier", "network.num_classes=7")
    falling = torch.arange(7.0).flip(0)
    result = Validation(config, data)(known_model(config, lambda x, *_: falling.expand(len(x), 7)), ALONE)
    assert result["accuracy"] == 1 / 8 and result["accuracy_top5"] == 5 / 8
    assert all(level["accuracy_top5"] == 5 / 8 for level in result["levels"])
    assert result["scalars"]["accuracy_top5"] == 5 / 8
    assert result["cross_entropy"] == pytest.approx(
        float((falling.logsumexp(0) - falling[torch.tensor(labels)]).mean()), rel=1e-6
    )

    few = Pictures(data.images[:5], range(5), tuple("abcde"))  # the network has room for 7, the data have 5
    result = Validation(config, few, few)(known_model(config, lambda x, *_: falling.expand(len(x), 7)), ALONE)
    assert "accuracy_top5" not in result


# ---- classes by name ------------------------------------------------------------------------------


def three_class_model(config: TrainConfig) -> Any:
    """Always says class 0."""
    return known_model(config, lambda x, *_: torch.tensor([2.0, 1.0, 0.0]).expand(len(x), 3))


def test_labels_go_by_name_and_classes_may_be_missing() -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    training = Pictures(images, [0, 1, 2, 2], ("ant", "bee", "cat"))
    held = Pictures(images, [0, 0, 0, 1], ("cat", "ant"))  # cat is 0 here and 2 in training
    config = tiny("classifier", "network.num_classes=3")
    assert Validation(config, held, training)(three_class_model(config), ALONE)["accuracy"] == 1 / 4
    model = three_class_model(config)
    model.class_names = training.class_names
    assert Validation(config, held)(model, ALONE)["accuracy"] == 1 / 4
    model.class_names = ()  # no names anywhere: the numbers as they are
    assert Validation(config, held)(model, ALONE)["accuracy"] == 3 / 4


def test_data_that_do_not_fit_are_refused_in_one_line_before_training() -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    training = Pictures(images, [0, 1, 2, 2], ("ant", "bee", "cat"))
    config = tiny("classifier", "network.num_classes=3")
    for held, words in [
        (Pictures(images, [0, 1, 1, 1], ("ant", "bees")), "no class 'bees'; did you mean 'bee'?"),
        (Pictures(images), "no classes, but the model was trained with 3"),
        (Pictures(np.zeros((4, 8, 8, 3), np.uint8), [0] * 4, ("ant",)), "3 channel(s), the network takes 1"),
        (Pictures(images[:0]), "empty"),
    ]:
        with pytest.raises(DataError) as error:
            Validation(config, held, training)
        assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match="at least 1"):
        Validation(config, training, num=0)
    four = Pictures(images, range(4), tuple("abcd"))
    with pytest.raises(DataError, match="4 classes, but the model has 3"):
        Validation(config, four)(three_class_model(config), ALONE)


# ---- denoising losses with a closed form ----------------------------------------------------------


def by_heart(config: TrainConfig, images: np.ndarray) -> Callable[..., Tensor]:
    """E[eps | x_t] when the data are exactly these images."""
    ab, x0 = make_schedule(config.schedule).alpha_bar.float(), torch.from_numpy(images / 127.5 - 1).float().flatten(1)

    def eps(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        a, s = ab[t].sqrt()[:, None], (1 - ab[t]).sqrt()[:, None]
        p = (-(torch.cdist(x.flatten(1), a[0] * x0) ** 2) / (2 * s**2)).softmax(1)
        return ((x.flatten(1) - a * (p @ x0)) / s).view_as(x)

    return eps


def test_the_loss_of_each_quartile_is_the_posterior_variance() -> None:
    """E|eps - E[eps | x_t]|^2 = a^2 STD^2 / (a^2 STD^2 + sigma^2), and new images are no harder than old ones."""
    config = tiny("diffusion", *DENOISER)
    result = Validation(config, noise_images(300, 0), noise_images(400, 1))(
        known_model(config, optimal_eps(config)), ALONE
    )
    ab = make_schedule(config.schedule).alpha_bar
    truth = (ab * STD**2 / (ab * STD**2 + 1 - ab)).numpy()
    assert [level["t"] for level in result["levels"]] == [[0, 24], [25, 49], [50, 74], [75, 99]]
    for level in result["levels"]:
        expected = truth[level["t"][0] : level["t"][1] + 1].mean()
        assert level["loss"] == pytest.approx(expected, abs=4 * level["loss_standard_error"])
        assert level["training_loss"] == pytest.approx(expected, abs=4 * level["loss_standard_error"])
        assert abs(level["gap"]) < 4 * level["gap_standard_error"]
    assert result["loss"] == pytest.approx(truth.mean(), rel=0.05)
    assert result["gap"] == pytest.approx(result["loss"] - result["training_loss"], abs=1e-12)
    assert result["overfit"] == {"rises_in_a_row": 0, "alarm": False, "notes": []}


def test_a_model_that_knows_its_training_images_by_heart_is_called_that() -> None:
    config = tiny("diffusion", *DENOISER, "loop.microbatch=1")
    training = noise_images(20, 1)
    model = known_model(config, by_heart(config, training.images))
    measure = Validation(config, noise_images(40, 0), training)
    result = measure(model, ALONE)
    assert result["training_loss"] < 0.1 * result["loss"]
    (note,) = result["overfit"]["notes"]
    assert "by heart" in note and note in result["lines"]
    assert not result["overfit"]["alarm"]  # one measurement does not say that others have become harder
    later = measure(model, ALONE, step=200, history=[{"step": 100, "loss": 0.9 * result["loss"]}])["overfit"]
    assert later["alarm"] and "lowest at step 100: the model overfits" in later["notes"][0]
    assert not measure(model, ALONE, step=200, history=[{"step": 100, "loss": 1.1 * result["loss"]}])["overfit"][
        "alarm"
    ]
    # The better of two such models is the one that has not seen the images at all.
    assert (
        result["loss"]
        > Validation(config, noise_images(40, 0))(known_model(config, optimal_eps(config)), ALONE)["loss"]
    )


def test_training_images_get_the_noise_of_the_held_out_ones() -> None:
    """So that the same images under another name have exactly the same loss."""
    config = tiny("diffusion", *DENOISER)
    held = noise_images(30, 0)
    between = noise_images(30, 1)  # every second of 60 is measured
    twin = Pictures(np.stack([held.images, between.images], axis=1).reshape(60, 8, 8, 1))
    result = Validation(config, held, twin)(known_model(config, optimal_eps(config)), ALONE)
    assert result["gap"] == 0 and result["gap_standard_error"] == 0 and not result["overfit"]["alarm"]


def test_the_training_data_themselves_are_recognised_and_said() -> None:
    for job, settings in [("diffusion", DENOISER), ("classifier", ())]:
        config = tiny(job, *settings)
        data = Stripes() if job == "classifier" else noise_images(6, 0)
        function = optimal_eps(config) if job == "diffusion" else lambda x, *_: x[:, 0, 0, :2]
        result = Validation(config, data, data)(known_model(config, function), ALONE)
        assert not result["held_out"] and "gap" not in result
        assert any("training images" in line for line in result["lines"])


def test_an_upsampler_that_enlarges_has_no_loss_on_images_of_blocks() -> None:
    """The low-resolution image is made as in training: here it says everything."""
    network = {**NETWORK, "low_res_channels": 1, "out_channels": 1, "num_classes": None}
    config = UpsamplerTraining(
        "upsampler", DataConfig("blocks"), adm.nn.UNetConfig(**network), SCHEDULE,
        loop=LoopConfig(batch_size=5), variance="small", loss="simple", low_res_size=4,
    )  # fmt: skip
    blocks = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 1)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    ab = make_schedule(SCHEDULE).alpha_bar.float()

    def eps(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        assert low_res is not None
        x0 = low_res.repeat_interleave(2, 2).repeat_interleave(2, 3)
        a2 = ab[t][:, None, None, None]
        return (x - a2.sqrt() * x0) / (1 - a2).sqrt()

    result = Validation(config, Pictures(blocks))(known_model(config, eps), ALONE)
    assert result["job"] == "upsampler" and result["loss"] < 1e-8
    rough = np.random.RandomState(0).randint(0, 256, (10, 8, 8, 1)).astype(np.uint8)
    assert Validation(config, Pictures(rough))(known_model(config, eps), ALONE)["loss"] > 0.1


def test_what_makes_training_harder_is_not_measured() -> None:
    plain = tiny("diffusion", *DENOISER[:3])
    hard = override(plain, ("label_dropout=0.9", "input_perturbation=0.5"))
    labels_seen: list[Tensor] = []

    def eps(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        assert label is not None
        labels_seen.append(label)
        return x

    losses = [Validation(c, Stripes())(known_model(c, eps), ALONE)["loss"] for c in (plain, hard)]
    assert losses[0] == losses[1]
    assert bool((torch.cat(labels_seen) >= 0).all())


# ---- the same noise each time ---------------------------------------------------------------------


def trained_shape(job: str, *settings: str) -> tuple[TrainConfig, Any, dict[str, Tensor]]:
    """A real network with random weights in every layer."""
    config = tiny(job, *settings)
    schedule = make_schedule(config.schedule)
    with randomness.fork(seed=0, stream="test weights"):
        if job == "classifier":
            model: Any = NoisyClassifier(EncoderClassifier(config.network), schedule)
        else:
            model = DiffusionModel(UNet(config.network), schedule)
    state = model.network.state_dict()
    weights = {
        name: value + 0.1 * randomness.normal(value.shape, seed=k, stream="test")
        for k, (name, value) in enumerate(state.items())
    }
    return config, model, weights


def numbers(result: dict[str, Any]) -> list[float]:
    rows = [result, *result["levels"]]
    return [float(row[name]) for row in rows for name in sorted(row) if isinstance(row[name], float)]


@pytest.mark.parametrize("job", ["classifier", "diffusion"])
def test_a_measurement_repeats_to_the_bit_and_does_not_depend_on_the_microbatch(job: str) -> None:
    results = {}
    for size in ("none", "1", "3"):
        config, model, weights = trained_shape(job, f"loop.microbatch={size}", "loop.batch_size=24")
        measure = Validation(config, Stripes(8), Stripes(24))
        results[size] = measure(model, weights)
        assert measure(model, weights) == results[size]  # with the images kept, too
    assert results["none"]["num"] == 8
    for size in ("1", "3"):
        assert numbers(results[size]) == pytest.approx(numbers(results["none"]), rel=2e-3, abs=1e-5)


def test_noise_and_timesteps_are_functions_of_the_image_number() -> None:
    """Image 4k of 24 is seen in the same 9 views whether 6 or 24 images are measured; another seed, other views."""

    def views(num: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        config = tiny("classifier", "loop.microbatch=1", f"loop.seed={seed}")
        seen: list[tuple[Tensor, Tensor]] = []

        def record(x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
            seen.append((x, t))
            return x[:, 0, 0, :2]

        Validation(config, Stripes(24), num=num)(known_model(config, record), ALONE)
        return seen

    few, many, other = views(6, 0), views(24, 0), views(6, 1)
    assert len(few) == 6 * 9 and len(many) == 24 * 9
    for k in range(6):
        assert int(few[9 * k][1]) == 0  # the first view is t = 0
        for view in range(9):
            (x, t), (same_x, same_t) = few[9 * k + view], many[9 * 4 * k + view]
            assert torch.equal(x, same_x) and torch.equal(t, same_t)
    assert not torch.equal(few[0][0], other[0][0])


@pytest.mark.parametrize("job", ["classifier", "diffusion"])
def test_the_model_and_the_global_generators_are_left_as_they_were(job: str) -> None:
    config, model, weights = trained_shape(job, "network.dropout=0.5")
    model.train()
    before, states = {k: v.clone() for k, v in model.state_dict().items()}, global_states()
    measure = Validation(config, Stripes(10), Stripes())
    result = measure(model, weights)
    assert measure(model, weights) == result  # dropout is off

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        raise StoppedError

    with pytest.raises(StoppedError):
        measure(model, weights, stop)
    assert model.training and model.network.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert global_states() == states
    _, dry, _ = trained_shape(job)
    assert measure(dry, weights) == result


def test_weights_are_shared_not_copied() -> None:
    _, model, weights = trained_shape("diffusion")
    shown = with_weights(model, weights)
    for name, p in shown.network.named_parameters():
        assert p.data_ptr() == weights[name].data_ptr() and not p.requires_grad
    assert not shown.training and not shown.network.training


@pytest.mark.parametrize("job", ["classifier", "diffusion"])
def test_progress_counts_every_evaluation_once(job: str) -> None:
    config, model, weights = trained_shape(job, "loop.microbatch=3")
    seen: list[tuple[int, int]] = []
    Validation(config, Stripes(10), Stripes(12))(model, weights, lambda done, total: seen.append((done, total)))
    total = 10 * 9 if job == "classifier" else 10 * 4 * 2
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize("job", ["classifier", "diffusion"])
def test_bfloat16_is_measured_as_it_is_trained(job: str) -> None:
    config, model, weights = trained_shape(job)
    single = Validation(config, Stripes())(model, weights)
    model.precision = torch.bfloat16
    half = Validation(config, Stripes())(model, weights)
    name = "cross_entropy" if job == "classifier" else "loss"
    assert half[name] != single[name] and half[name] == pytest.approx(single[name], rel=0.05)


def test_larger_images_are_cropped_and_a_schedule_shorter_than_the_levels_has_one_level_a_timestep() -> None:
    config = tiny("classifier", "schedule.num_timesteps=3")
    large = Pictures(np.zeros((4, 20, 17, 1), np.uint8), [0, 1, 0, 1], ("a", "b"))
    result = Validation(config, large)(known_model(config, lambda x, *_: x[:, 0, 0, :2]), ALONE)
    assert [level["t"] for level in result["levels"]] == [[0, 0], [1, 1], [2, 2]]


def test_one_image_has_no_standard_error() -> None:
    config = tiny("diffusion", *DENOISER)
    result = Validation(config, noise_images(3, 0), noise_images(2, 1), num=1)(
        known_model(config, optimal_eps(config)), ALONE
    )
    assert result["num"] == 1 and result["num_available"] == 3 and result["loss_standard_error"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("job", ["classifier", "diffusion"])
def test_a_value_that_is_not_finite_diverged(job: str) -> None:
    config = tiny(job, *(DENOISER if job == "diffusion" else ()))
    function = optimal_eps(config) if job == "diffusion" else lambda x, *_: x[:, 0, 0, :2]
    data = noise_images(4, 0) if job == "diffusion" else Stripes(4)
    with pytest.raises(DivergedError, match="not finite"):
        Validation(config, data)(known_model(config, function), {"gain": torch.tensor(math.nan)})
