"""float16 distances against what OpenAI's evaluator printed under TensorFlow, and an emulation of it in numpy."""

import numpy as np
import pytest
import torch

from adm.metrics import _half_distances
from adm.metrics._features import Features
from adm.metrics.precision_recall import PrecisionRecall
from evaluator_recipes import RECORDED, made, recorded_features

CASES = ["same_distribution", "shifted", "collapsed", "overflow"]


def scores(case: str, precision: str) -> dict[str, float]:
    record = RECORDED[case]
    sides = [recorded_features(record[side], record["scale"]) for side in ("gen", "ref")]
    return PrecisionRecall(precision=precision)(*sides)


def recorded(case: str) -> dict[str, float]:
    return {key: RECORDED[case][key] for key in ("precision", "recall")}


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_values_of_the_released_evaluator(case):
    assert scores(case, "fp16") == pytest.approx(recorded(case), abs=2e-3)


def test_float32_does_not_give_the_recorded_values():
    assert scores("same_distribution", "fp32") != pytest.approx(recorded("same_distribution"), abs=2e-3)


def numpy_squares(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One block of the evaluator: numpy rounds each float16 operation, sums are given float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        a, b = u.astype(np.float16), v.astype(np.float16)
        norm_a, norm_b = ((x * x).sum(1, dtype=np.float32).astype(np.float16) for x in (a, b))
        product = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.float16)
        block = np.maximum(norm_a[:, None] - np.float16(2) * product + norm_b, np.float16(0))
    if np.isfinite(block).all():
        return block.astype(np.float32)
    return np.maximum((u * u).sum(1)[:, None] - 2 * (u @ v.T) + (v * v).sum(1), 0)


def emulated(sample: np.ndarray, reference: np.ndarray, block: int) -> dict[str, float]:
    def squares(u, v):
        parts = [[numpy_squares(x, y) for y in cut(v)] for x in cut(u)]
        return np.block(parts)

    def cut(x):
        return [x[i : i + block] for i in range(0, len(x), block)]

    radius_ref, radius_gen = (np.sort(squares(x, x), axis=1)[:, 3] for x in (reference, sample))
    d = squares(reference, sample)
    return {
        "precision": float((d <= radius_ref[:, None]).any(0).mean()),
        "recall": float((d <= radius_gen).any(1).mean()),
    }


@pytest.mark.parametrize("itself", [True, False])
def test_every_distance_is_that_of_the_emulation_but_for_the_order_of_a_sum(itself):
    x = made(3, 150, 256)
    y = x if itself else made(1, 120, 256)
    found = np.empty((len(x), len(y)), np.float32)
    a = torch.from_numpy(x)
    for rows, columns, distance in _half_distances.half_distances(a, a if itself else torch.from_numpy(y), 64):
        found[rows, columns] = distance.clamp(min=0).numpy()
    expected = numpy_squares(x, y)
    # float16 has a spacing of 1/16 here, and a sum on the edge between two numbers may go either way.
    assert (found == expected).mean() > 0.999 and np.abs(found - expected).max() <= 0.125
    exact = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1)
    assert (exact.astype(np.float16) == expected).mean() < 0.9  # rounding once at the end is another thing


# Squared norms of about 70, 4,500, 35,000 (where 2 u.v overflows and distances silently become 0) and 110,000.
@pytest.mark.parametrize("scale", [1.0, 8.0, 22.4, 40.0])
def test_every_decision_is_that_of_the_emulation(scale):
    x, y = made(3, 300, 256, 0.15) * np.float32(scale), made(1, 200, 256) * np.float32(scale)
    found = PrecisionRecall()(Features(torch.from_numpy(x), "t"), Features(torch.from_numpy(y), "t"))
    # A sum that is added up in another order may land on the other side of a rounding edge: one row of the sets.
    assert found == pytest.approx(emulated(x, y, 10_000), abs=1.01 / 200)


def test_a_block_that_overflows_falls_back_alone(monkeypatch):
    # Near squares of 10,000 float16 has multiples of 8; one row whose square is infinite takes its block out of it.
    x, y = (100 + np.random.RandomState(i).standard_normal((n, 1)).astype(np.float32) for i, n in ((0, 120), (1, 90)))
    x[-1] = 1000
    expected = [emulated(x, y + 2, block) for block in (50, 10_000)]
    assert abs(expected[0]["precision"] - expected[1]["precision"]) > 0.2
    sides = [Features(torch.from_numpy(z), "t") for z in (x, y + 2)]
    for block, wanted in zip((50, 10_000), expected, strict=True):
        monkeypatch.setattr(_half_distances, "BLOCK", block)
        assert PrecisionRecall(tile=32)(*sides) == wanted


def test_where_two_products_overflow_but_no_norm_does_every_point_is_a_copy_as_in_the_original():
    x = 200 + np.random.RandomState(0).standard_normal((30, 1))  # squares of 40,000: 2 u.v is infinite
    far = 200 + np.random.RandomState(1).standard_normal((30, 1)) + 20
    sides = [Features(torch.from_numpy(z.astype(np.float32)), "t") for z in (x, far)]
    assert PrecisionRecall()(*sides) == {"precision": 1.0, "recall": 1.0}
    assert PrecisionRecall(precision="fp32")(*sides) == {"precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize("tile", [9, 33, 1000])
def test_on_small_whole_numbers_both_precisions_agree_exactly(tile):
    # All squares and sums are below 2048, so exact in float16.
    a, b = (np.random.RandomState(i).randint(0, 6, (n, 20)) for i, n in ((0, 150), (1, 110)))
    sides = [Features(torch.from_numpy(z.astype(np.float32)), "t") for z in (a, b)]
    exact = PrecisionRecall(precision="fp32")(*sides)
    assert PrecisionRecall(tile=tile)(*sides) == exact and 0 < exact["precision"] < 1
