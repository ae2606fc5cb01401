"""One pass for all features, and each metric meets the sides that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adm
from adm.metrics import _evaluator, _passes
from adm.metrics._feature_cache import FeatureCache
from adm.runtime.distributed import World
from adm.runtime.errors import AdmError, DataError, UsageError
from metrics_fakes import Projection


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch) -> Projection:
    """Takes the place of the Inception network, whose own tests are elsewhere."""
    extractor = Projection()
    monkeypatch.setattr(_evaluator, "inception_extractor", lambda *options: extractor)
    return extractor


def images(seed: int, num: int, low: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 256, (num, 4, 4, 3), dtype=np.uint8)


def reference(path: Path, num: int = 60, **arrays: Any) -> str:
    np.savez(path, images(1, num), **arrays)
    return str(path)


def test_batches_of_any_size_straight_from_a_sampler_equal_the_file(inception: Projection, tmp_path: Path) -> None:
    samples = images(2, 50, low=40)
    np.savez(tmp_path / "samples.npz", samples)
    ref = reference(tmp_path / "ref.npz")
    whole = adm.evaluate(ref, tmp_path / "samples.npz")
    assert list(whole) == ["fid", "sfid", "inception_score", "precision", "recall"]
    for sizes in ([50], [1] * 50, [7, 30, 13]):
        evaluator = adm.Evaluator(ref)
        for batch in np.split(samples, np.cumsum(sizes)[:-1]):
            evaluator.update(torch.from_numpy(batch))
        assert evaluator.compute() == pytest.approx(whole, rel=1e-6)
        evaluator.reset()
        evaluator.update(samples)
        assert evaluator.compute() == pytest.approx(whole, rel=1e-6)  # the reference was kept


def test_each_image_is_extracted_once_for_all_metrics(inception: Projection, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", images(2, 50))
    metrics = ["fid", "sfid", "inception_score", "precision_recall", "kid:num_subsets=2,subset_size=20"]
    adm.evaluate(reference(tmp_path / "ref.npz"), tmp_path / "samples.npz", metrics)
    assert inception.num_images == 60 + 50


def test_a_set_against_itself_gives_0_0_1_1_and_another_does_not(inception: Projection, tmp_path: Path) -> None:
    ref = reference(tmp_path / "ref.npz")
    scores = adm.evaluate(ref, ref)
    assert scores["fid"] == pytest.approx(0, abs=1e-8) and scores["sfid"] == pytest.approx(0, abs=1e-8)
    assert scores["precision"] == scores["recall"] == 1
    np.savez(tmp_path / "other.npz", images(2, 60, low=100))
    other = adm.evaluate(ref, tmp_path / "other.npz")
    assert other["fid"] > 0.1 and other["sfid"] > 0.1 and other["recall"] < 1


class TestStored:
    def test_statistics_are_those_of_fid_and_images_those_of_precision(
        self, inception: Projection, tmp_path: Path
    ) -> None:
        mean, cov = np.full(6, 3.0), np.eye(6)
        ref = reference(tmp_path / "ref.npz", mu=mean, sigma=cov, mu_s=np.zeros(5), sigma_s=np.eye(5))
        np.savez(tmp_path / "samples.npz", images(1, 60))  # the very images of the reference
        scores = adm.evaluate(ref, tmp_path / "samples.npz")
        assert scores["precision"] == scores["recall"] == 1
        rows = inception(torch.from_numpy(images(1, 60)))["pool"].double().numpy()
        shift, spread = rows.mean(0) - mean, np.cov(rows, rowvar=False)
        root = np.sqrt(np.linalg.eigvalsh(spread)).sum()  # tr (S I)^(1/2)
        assert scores["fid"] == pytest.approx(shift @ shift + np.trace(spread) + 6 - 2 * root, rel=1e-6)
        assert inception.num_images == 60 + 60 + 60  # ours, the samples, and the reference for precision alone

    def test_images_are_not_touched_when_nothing_needs_them(self, inception: Projection, tmp_path: Path) -> None:
        ref = reference(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(5), sigma_s=np.eye(5))
        np.savez(tmp_path / "samples.npz", images(2, 50))
        adm.evaluate(ref, tmp_path / "samples.npz", ["fid", "sfid", "inception_score"])
        assert inception.num_images == 50

    def test_without_images_two_numbers_are_left_out_with_a_note(self, inception: Projection, tmp_path: Path) -> None:
        np.savez(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(5), sigma_s=np.eye(5))
        np.savez(tmp_path / "samples.npz", images(2, 50))
        scores = adm.evaluate(tmp_path / "ref.npz", tmp_path / "samples.npz")
        assert list(scores) == ["fid", "sfid", "inception_score"]
        assert any("holds statistics and no images: precision_recall left out" in note for note in scores.notes)

    def test_without_images_what_was_asked_for_by_name_is_an_error(self, inception: Projection, tmp_path: Path) -> None:
        np.savez(tmp_path / "ref.npz", mu=np.zeros(6), sigma=np.eye(6))
        with pytest.raises(DataError, match=r"ref.npz holds statistics and no images, which kid need.* Give"):
            adm.Evaluator(tmp_path / "ref.npz", ["fid", "kid"])


class TestStoredSamples:
    """The original uses what is stored on either side."""

    def test_statistics_of_samples_stand_for_their_images(self, inception: Projection, tmp_path: Path) -> None:
        stored = {"mu": np.full(6, 3.0), "sigma": np.eye(6), "mu_s": np.zeros(5), "sigma_s": np.eye(5)}
        ref = reference(tmp_path / "ref.npz")
        np.savez(tmp_path / "samples.npz", **stored)
        scores = adm.evaluate(ref, tmp_path / "samples.npz")
        assert list(scores) == ["fid", "sfid"] and inception.num_images == 60
        assert any("inception_score, precision_recall left out" in note for note in scores.notes)
        swapped = adm.evaluate(tmp_path / "samples.npz", ref, ["fid", "sfid"])
        assert dict(scores) == pytest.approx(dict(swapped), rel=1e-9)  # the distance is symmetric

    def test_a_part_of_the_samples_has_other_statistics(self, inception: Projection, tmp_path: Path) -> None:
        np.savez(tmp_path / "samples.npz", images(2, 50), mu=np.full(6, 1e3), sigma=np.eye(6))
        ref = reference(tmp_path / "ref.npz")
        whole, part = (adm.evaluate(ref, tmp_path / "samples.npz", ["fid"], num=num) for num in (None, 50))
        assert whole["fid"] > 1e6 > part["fid"]


class TestFilesThatAreNotWhatTheySeem:
    def test_images_that_cannot_be_used_are_not_called_absent(self, inception: Projection, tmp_path: Path) -> None:
        stored = {"mu": np.zeros(6), "sigma": np.eye(6), "mu_s": np.zeros(5), "sigma_s": np.eye(5)}
        np.savez(tmp_path / "ref.npz", images(1, 60).astype(np.float32) / 255, **stored)
        with pytest.raises(DataError, match="float32"):
            adm.Evaluator(tmp_path / "ref.npz")

    def test_statistics_of_another_width_are_refused_before_any_work(
        self, inception: Projection, tmp_path: Path
    ) -> None:
        inception.widths = {"pool": 6, "spatial": 5}  # type: ignore[attr-defined]
        ref = reference(tmp_path / "ref.npz", mu=np.zeros(100), sigma=np.eye(100))
        with pytest.raises(DataError, match=r"ref.npz stores mu of 100 numbers, projection has 6: .*Give another"):
            adm.Evaluator(ref)
        assert inception.num_images == 0


@pytest.mark.parametrize(
    "metrics", [["fid", "fid"], ["precision_recall", "precision_recall:precision=fp32"], ["kid:seed=1", "kid:seed=2"]]
)
def test_two_scores_of_one_name_are_refused(inception: Projection, tmp_path: Path, metrics: list[str]) -> None:
    if len(set(metrics)) == 1:
        assert list(adm.Evaluator(reference(tmp_path / "ref.npz"), metrics).metrics) == ["fid"]
        return
    with pytest.raises(UsageError, match="would give scores of the same name"):
        adm.Evaluator(reference(tmp_path / "ref.npz"), metrics)


def test_a_process_of_many_takes_no_single_images(inception: Projection, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="update is for a single process"):
        adm.Evaluator(reference(tmp_path / "ref.npz"), world=World(0, 2)).update(images(2, 3))


def test_under_other_weights_no_number_bears_its_plain_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_evaluator, "inception_extractor", lambda *options: Projection("inception-2015-12-05@1a2b3c4d"))
    ref = reference(tmp_path / "ref.npz")
    scores = adm.evaluate(ref, ref, ["fid", "precision_recall", "frechet:extractor=pixels"])
    assert list(scores) == ["fid@1a2b3c4d", "precision@1a2b3c4d", "recall@1a2b3c4d", "fd_pixels"]


def test_features_that_are_not_finite_stop_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_evaluator, "inception_extractor", lambda *o: Projection(spoilt=lambda rows: rows / 0))
    ref = reference(tmp_path / "ref.npz")
    with pytest.raises(DataError, match=r"projection: \w+ features of an image are NaN or infinite\. Check"):
        adm.evaluate(ref, ref)


class TestCache:
    def run(self, path: Path, samples: Path, **options: Any) -> dict[str, float]:
        return dict(adm.evaluate(path / "ref.npz", samples, batch_size=8, cache=path / "cache", **options))

    @pytest.fixture
    def samples(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(_passes, "BLOCK", 16)
        reference(tmp_path / "ref.npz")
        np.savez(tmp_path / "samples.npz", images(2, 50))
        return tmp_path / "samples.npz"

    def test_an_interrupted_evaluation_goes_on_where_it_was(
        self, inception: Projection, samples: Path, tmp_path: Path
    ) -> None:
        undisturbed = dict(adm.evaluate(tmp_path / "ref.npz", samples, batch_size=8))
        before = inception.num_images

        def interrupt(what: str, done: int, total: int, note: str) -> None:
            if what == "samples" and done > 32:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, samples, on_progress=interrupt)
        again = self.run(tmp_path, samples)
        assert again == undisturbed
        assert inception.num_images - before == 60 + 50 + 8  # one batch of the interrupted block came twice

    def test_afterwards_the_reference_is_kept_and_the_samples_are_not(
        self, inception: Projection, samples: Path, tmp_path: Path
    ) -> None:
        first = self.run(tmp_path, samples)
        before = inception.num_images
        assert self.run(tmp_path, samples) == first
        assert inception.num_images - before == 50
        assert len(list((tmp_path / "cache").iterdir())) == 4

    def test_damage_is_seen_and_made_good(self, inception: Projection, samples: Path, tmp_path: Path) -> None:
        first = self.run(tmp_path, samples)
        for file in (tmp_path / "cache").rglob("*.safetensors"):
            content = bytearray(file.read_bytes())
            content[-3] ^= 1
            file.write_bytes(bytes(content))
        assert self.run(tmp_path, samples) == first

    @pytest.mark.parametrize("change", ["weights", "reference", "batch"])
    def test_what_the_features_depend_on_makes_them_others(
        self, inception: Projection, samples: Path, tmp_path: Path, change: str
    ) -> None:
        self.run(tmp_path, samples)
        before = inception.num_images
        if change == "weights":
            inception.conditions["weights_sha256"] = "others"
        if change == "reference":
            np.savez(tmp_path / "ref.npz", images(9, 60))
        options = {"batch_size": 4} if change == "batch" else {"batch_size": 8}
        adm.evaluate(tmp_path / "ref.npz", samples, cache=tmp_path / "cache", **options)
        assert inception.num_images - before == 60 + 50

    def test_a_directory_that_cannot_be_written_costs_a_note_and_no_number(
        self, inception: Projection, samples: Path, tmp_path: Path
    ) -> None:
        undisturbed = dict(adm.evaluate(tmp_path / "ref.npz", samples, batch_size=8))
        (tmp_path / "file").write_text("")
        scores = adm.evaluate(tmp_path / "ref.npz", samples, batch_size=8, cache=tmp_path / "file" / "cache")
        assert dict(scores) == undisturbed
        assert any("features are not kept" in note for note in scores.notes)

    def test_a_block_is_a_function_of_its_key(self, tmp_path: Path) -> None:
        cache, rows = FeatureCache(tmp_path / "new"), {"pool": torch.arange(6.0).reshape(3, 2)}
        assert cache.get({"a": 1}) is None
        cache.put({"a": 1, "b": 2}, rows)
        found = cache.get({"b": 2, "a": 1})
        assert found is not None and torch.equal(found["pool"], rows["pool"])
        assert cache.get({"a": 1, "b": 3}) is None
        cache.forget({"a": 1, "b": 2})
        assert cache.get({"a": 1, "b": 2}) is None


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda e: e.compute(), "there are no samples yet. Call update"),
        (lambda e: e.update(np.zeros((2, 4, 4, 3))), "give uint8"),
        (lambda e: e.update(np.zeros((4, 4, 3), np.uint8)), "give uint8"),
        (lambda e: (e.update(images(2, 9), [1, 2]), e.compute()), "2 labels came with 9 images: give one each"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    inception: Projection, tmp_path: Path, act: Callable[[Any], object], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        act(adm.Evaluator(reference(tmp_path / "ref.npz")))


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (["fids"], "did you mean 'fid'"),
        (["label_accuracy"], "needs a classifier of these classes"),
        (["frechet:extractor=inceptions"], "did you mean 'inception'"),
        (["precision_recall:precision=fp8"], "fp16"),
    ],
)
def test_metrics_that_cannot_be_are_one_line(
    inception: Projection, tmp_path: Path, metrics: list[str], says: str
) -> None:
    with pytest.raises(AdmError, match=says) as caught:
        adm.Evaluator(reference(tmp_path / "ref.npz"), metrics)
    assert "\n" not in str(caught.value)


def test_error_bars_stand_beside_the_numbers(inception: Projection, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", images(2, 50))
    ref = reference(tmp_path / "ref.npz")
    plain, scores = (adm.evaluate(ref, tmp_path / "samples.npz", error_bars=bars) for bars in (False, True))
    assert {k: v for k, v in scores.items() if not k.endswith("_error")} == pytest.approx(dict(plain), rel=1e-9)
    assert all(scores[f"{name}_error"] > 0 for name in plain)
