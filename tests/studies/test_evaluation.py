"""The numbers come with their conditions, and with what makes them doubtful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import adm
from adm.metrics._evaluator import Scores
from adm.metrics.fid import FID
from adm.metrics.precision_recall import PrecisionRecall
from adm.runtime.distributed import World
from adm.runtime.errors import AdmError, DataError, UsageError
from adm.studies._doubts import doubts
from adm.studies.evaluation import metric_specs, reference_statistics, score_lines, with_defaults
from adm.studies.evaluation_selftest import CHECKS
from processes import run_ranks

PIXELS = ["frechet:extractor=pixels"]  # needs no weights


def images(seed: int, num: int, side: int = 8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (num, side, side, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("ref.npz", images(1, 40))
    np.savez("samples.npz", images(2, 30), np.arange(30) % 3)
    return tmp_path


def notes(**options: Any) -> str:
    return "; ".join(adm.evaluate("ref.npz", "samples.npz", PIXELS, **options).notes)


def test_the_lines_are_those_of_the_original_in_its_order() -> None:
    scores = {"fid": 3.9425574439, "sfid": 6.1404337, "precision": 0.8265, "recall": 0.5309, "kid": 0.25}
    assert score_lines({"inception_score": 215.8370361328125, **scores}) == [
        "Inception Score: 215.8370361328125",
        "FID: 3.9425574439",
        "sFID: 6.1404337",
        "Precision: 0.8265",
        "Recall: 0.5309",
        "kid: 0.25",
    ]
    assert score_lines({"fid@1a2b3c4d": 1.5}) == ["FID@1a2b3c4d: 1.5"]


def test_conditions_are_json_and_name_both_sides(files: Path) -> None:
    scores = adm.evaluate("ref.npz", "samples.npz", PIXELS, num=20)
    assert isinstance(scores, Scores) and list(scores) == ["fd_pixels"]
    conditions = json.loads(json.dumps(scores.conditions))
    assert (conditions["reference"]["num"], conditions["samples"]["num"]) == (40, 30)
    assert conditions["samples"]["num_used"] == 20
    assert len(conditions["reference"]["sha256"]) == 64 != conditions["samples"]["sha256"]
    assert {"adm", "torch", "numpy", "python"} == set(conditions["versions"])


def test_the_request_of_a_sample_set_is_part_of_the_conditions(files: Path) -> None:
    request = {"model": "step-00000100", "sampler": "ddim", "steps": 25, "weights": "model"}
    with adm.data.SampleSet.open(Path("set"), request) as samples:
        for k, image in enumerate(images(3, 30)):
            samples.add(k, image)
        samples.finish([k % 3 for k in range(30)], ("a", "b", "c"), 0)
    scores = adm.evaluate("ref.npz", "set", PIXELS)
    assert scores.conditions["samples"]["request"] == request
    assert any("weights of the last step, not the averaged ones" in note for note in scores.notes)


def test_num_takes_the_first_ones_and_never_fewer_than_asked(files: Path) -> None:
    np.savez("first.npz", images(2, 30)[:20])
    assert dict(adm.evaluate("ref.npz", "samples.npz", PIXELS, num=20)) == dict(
        adm.evaluate("ref.npz", "first.npz", PIXELS)
    )
    for num in (31, 0):
        with pytest.raises(DataError, match=rf"samples.npz holds 30 images, {num} were asked for"):
            adm.evaluate("ref.npz", "samples.npz", PIXELS, num=num)


class TestDoubts:
    def test_few_images(self, files: Path) -> None:
        assert "30 samples: FID" in notes() and "reference images" not in notes()
        balls = adm.evaluate("ref.npz", "samples.npz", ["precision_recall:extractor=pixels"]).notes
        assert "40 reference images" in "; ".join(balls) and "samples: FID" not in "; ".join(balls)

    def test_another_size(self, files: Path) -> None:
        Path("big").mkdir()
        np.savez("samples.npz", images(2, 30, side=16))
        clf = ["frechet:extractor=(pixels)"]
        with pytest.raises(DataError, match=r"differ in size: \(8, 8, 3\) and \(16, 16, 3\)"):
            adm.evaluate("ref.npz", "samples.npz", clf)

    def test_jpeg_sources(self, files: Path) -> None:
        Path("photos").mkdir()
        for k, image in enumerate(images(2, 30)):
            Image.fromarray(image).save(f"photos/{k:03d}.jpg")
        found = "; ".join(adm.evaluate("ref.npz", "photos", PIXELS).notes)
        assert "30 images of the samples are JPEG" in found
        assert "JPEG" not in notes()

    def test_skewed_labels(self, files: Path) -> None:
        assert "skewed" not in notes()
        np.savez("samples.npz", images(2, 60), np.repeat([0, 1], [58, 2]))
        assert "labels are skewed: classes have 2 to 58 samples" in notes()

    def test_float_images_cast_to_bytes(self, files: Path) -> None:
        assert "cast to uint8" not in notes()
        np.savez("samples.npz", images(2, 30, high=2))
        assert "look like images in [0, 1] that were cast to uint8" in notes()

    def test_sorted_by_class(self, files: Path) -> None:
        np.savez("samples.npz", np.zeros((6000, 8, 8, 3), np.uint8) + images(2, 1), np.arange(6000) // 3000)
        assert "sorted by class" in notes()


def test_nearest_training_images_come_with_a_picture(files: Path) -> None:
    copies = images(1, 40)[::-1][:30].copy()  # every sample is a training image
    np.savez("samples.npz", copies)
    scores = adm.evaluate("ref.npz", "samples.npz", ["nearest"])
    assert scores["nearest_train_copies"] == 1 and scores["nearest_train_median"] == 0
    assert scores.pictures["nearest"].startswith(b"\x89PNG")


def test_metric_specs_keep_options_with_their_metric() -> None:
    assert metric_specs(["kid:num_subsets=5,subset_size=10,fid", "frechet:extractor=(dinov2:weights=a,b)"]) == [
        "kid:num_subsets=5,subset_size=10",
        "fid",
        "frechet:extractor=(dinov2:weights=a,b)",
    ]
    with pytest.raises(UsageError, match="write name"):
        metric_specs(["size=3"])


@pytest.mark.parametrize("name", [name for name in CHECKS if "network" not in name and "itself" not in name])
def test_known_answers_are_reproduced(name: str) -> None:
    import torch

    assert CHECKS[name](torch.device("cpu")) is None


def test_missing_weights_are_an_error_before_any_work(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADM_CACHE", str(files / "empty"))
    monkeypatch.delenv("ADM_INCEPTION_WEIGHTS", raising=False)
    done: list[object] = []
    with pytest.raises(UsageError) as caught:
        adm.evaluate("ref.npz", "samples.npz", on_progress=lambda *what: done.append(what))
    message = str(caught.value)
    assert "github.com/mseitzer" in message and "github.com/toshas" in message and "adm models get inception" in message
    assert not done and "\n" not in message


def test_stored_statistics_of_images_are_those_of_numpy(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adm.metrics import _evaluator
    from metrics_fakes import Projection

    extractor = Projection(side=8)
    monkeypatch.setattr(_evaluator, "inception_extractor", lambda *options: extractor)
    stored = reference_statistics(adm.data.open_images("ref.npz"))
    import torch

    rows = extractor(torch.from_numpy(images(1, 40)))
    for tap, mean, cov in (("pool", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        values = rows[tap].double().numpy()
        assert stored[mean] == pytest.approx(values.mean(0), rel=1e-12)
        assert stored[cov] == pytest.approx(np.cov(values, rowvar=False), rel=1e-10, abs=1e-14)


PROGRAM = """
import json, sys, adm
from adm.runtime.distributed import join
with join() as world:
    metrics = ["frechet:extractor=pixels", "precision_recall:extractor=pixels", "kid:extractor=pixels,subset_size=20"]
    batch_size = int(sys.argv[1])
    scores = adm.evaluate("ref.npz", "samples.npz", metrics, batch_size=batch_size, world=world)
    if world.rank == 0:
        print(json.dumps(dict(scores)))
    else:
        assert not scores
"""


def evaluated_by(size: int, batch_size: int) -> dict[str, float]:
    done = run_ranks(PROGRAM, size, str(batch_size))
    assert all(process.returncode == 0 for process in done), done
    found: dict[str, float] = json.loads(done[0].stdout.splitlines()[-1])
    return found


class Two(World):
    """Process 0 of two, as far as to what both must have the same of."""

    def agree(self, what: str, value: str, error: type[AdmError] = DataError) -> None:
        raise DataError(f"{what}: {value}")


def test_processes_must_have_the_same_images_at_once_and_extractors(files: Path) -> None:
    np.savez("others.npz", images(3, 40))

    def agreed(reference: str = "ref.npz", metrics: list[str] = PIXELS, **options: Any) -> str:
        with pytest.raises(DataError) as caught:
            adm.evaluate(reference, "samples.npz", metrics, world=Two(0, 2), **options)
        return str(caught.value)

    kid = ["kid:extractor=pixels,subset_size=20"]
    found = [agreed(), agreed("others.npz"), agreed(batch_size=7)]
    assert found[0] == agreed() == agreed(metrics=kid) and len(set(found)) == 3


@pytest.mark.parametrize("batch_size", [4, 32])  # with 32 some processes have no images
def test_many_processes_give_the_numbers_of_one(files: Path, batch_size: int) -> None:
    assert evaluated_by(3, batch_size) == pytest.approx(evaluated_by(1, batch_size), rel=1e-10)


@pytest.mark.parametrize(
    ("metrics", "options", "says"),
    [
        (["precision_recall:extractor=pixels,k=30"], {}, "needs at least 31 samples, samples.npz gives 30"),
        (["density_coverage:extractor=pixels"], {"num": 5}, "needs at least 6 samples"),
        (["label_accuracy:extractor=pixels"], {}, None),
        (PIXELS, {"num": 1}, "needs at least 2 samples"),
        (PIXELS, {"error_bars": True}, "error bars need at least 40 samples"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_beginning(
    files: Path, metrics: list[str], options: dict[str, Any], says: str | None
) -> None:
    np.savez("samples.npz", images(2, 30), np.full(30, -1))
    done: list[object] = []
    with pytest.raises(DataError, match=says or "lacks labels, which label_accuracy needs"):
        adm.evaluate("ref.npz", "samples.npz", metrics, on_progress=lambda *what: done.append(what), **options)
    assert not done


def test_a_training_set_with_copies_in_it_still_makes_json(files: Path) -> None:
    np.savez("ref.npz", np.repeat(images(1, 20), 2, axis=0))
    written = json.dumps(adm.evaluate("ref.npz", "samples.npz", ["nearest"]).conditions, allow_nan=False)
    assert json.loads(written)["nearest"]["quantiles"]["p05"]["ratio"] is None


def test_a_metric_asked_for_with_options_takes_the_place_of_the_default() -> None:
    assert with_defaults(["precision_recall:precision=fp32"]) == [
        *("fid", "sfid", "inception_score", "precision_recall:precision=fp32")
    ]
    assert with_defaults(["precision_recall:extractor=pixels"])[3:] == [
        *("precision_recall", "precision_recall:extractor=pixels")
    ]


class Stated:
    """A set of images of which only the facts matter."""

    def __init__(self, num: int, side: int, **conditions: Any) -> None:
        self.name, self.num, self.shape, self.labels, self.sha256 = "stated", num, (side, side, 3), None, "0" * 64
        self.conditions = conditions


class Asked:
    """An evaluator of which only the facts matter."""

    inception = None
    metrics: ClassVar = {"fid": FID(), "precision_recall": PrecisionRecall()}

    def __init__(self, reference: Stated) -> None:
        self.reference = type("Reference", (), {"source": reference, "stored": {}})()

    def uses_reference_images(self) -> bool:
        return True

    def has_statistics_of_other_weights(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("reference", "samples", "says"),
    [
        (Stated(10_000, 256), Stated(50_000, 256), None),
        (
            Stated(1000, 512),
            Stated(50_000, 512),
            "(the published 512-pixel reference has 1,000)",
        ),
        (Stated(1000, 256), Stated(50_000, 256), "1,000 reference images: precision"),
        (Stated(10_000, 256), Stated(50_000, 128), "samples are 128x128 with 3 channels, the reference 256x256"),
        (Stated(10_000, 64), Stated(9_999, 64), "9,999 samples: FID"),
        (Stated(10_000, 64), Stated(50_000, 64, request={"weights": "ema"}), None),
    ],
)
def test_what_makes_numbers_incomparable_is_said_and_nothing_else(
    reference: Stated, samples: Stated, says: str | None
) -> None:
    found = doubts(Asked(reference), samples, samples.num)  # type: ignore[arg-type]
    assert (found == []) if says is None else (len(found) == 1 and says in found[0])
