"""Speed of the metrics against what evaluator.py computes them with: scipy's matrix root, and its distances.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --guided-diffusion ~/src/guided-diffusion      # its distance code needs TensorFlow

Each pair runs in turns on the same features; printed are the median seconds of each, the median of the ratios with
their spread, and how far the results are apart. Without TensorFlow the same formula in numpy's float32, written here,
stands in for evaluator.py's, and says so. Nothing is downloaded; the features are made.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
import scipy.linalg
import torch

from adm.metrics import Features, Statistics
from adm.metrics._frechet import trace_of_root
from adm.metrics.precision_recall import PrecisionRecall

Both = tuple[float, float]
PrecisionAndRecall = Callable[[np.ndarray, np.ndarray], Both]
PRECISIONS: tuple[Literal["fp16", "fp32"], ...] = ("fp16", "fp32")
BLOCK = 10_000
"""Rows and columns that evaluator.py takes at a time."""


def made(seed: int, n: int, dim: int = 2048, shift: float = 0.0) -> np.ndarray:
    """Rectified mixtures of 96 normals and a little noise of full rank, float32, with norms as Inception's have."""
    mix = np.random.RandomState(7).standard_normal((96, dim)) / 9.8
    rng = np.random.RandomState(seed)
    z = rng.standard_normal((n, 96)) + shift
    return np.maximum(z @ mix - 0.35 + 0.05 * rng.standard_normal((n, dim)), 0).astype(np.float32)


def compare(name: str, peer: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[Any, Any]:
    """Both in turns; the last results."""
    times: list[tuple[float, float]] = []
    results: tuple[Any, Any] = (None, None)
    for _ in range(rounds):
        start = time.perf_counter()
        theirs = peer()
        middle = time.perf_counter()
        mine = ours()
        times.append((middle - start, time.perf_counter() - middle))
        results = theirs, mine
    ratios = [a / b for a, b in times]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    print(
        f"{name}: {seconds[0]:.2f} s against {seconds[1]:.2f} s, ratio {statistics.median(ratios):.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f} in {rounds} rounds)",
        flush=True,
    )
    return results


def benchmark_trace(dim: int, rounds: int) -> None:
    """The trace of the root of a product of two covariances, at full rank and where it is lacking."""
    for rank, n in (("full rank", 5 * dim), (f"{dim // 2} images of {dim} features", dim // 2)):
        a, b = (Statistics.of(torch.from_numpy(made(seed, n, dim)), "made").cov for seed in (1, 2))

        def by_scipy(a: np.ndarray = a.numpy(), b: np.ndarray = b.numpy()) -> float:
            return float(np.trace(scipy.linalg.sqrtm(a @ b)).real)

        def by_adm(a: torch.Tensor = a, b: torch.Tensor = b) -> float:
            return float(trace_of_root(a, b))

        theirs, mine = compare(f"trace of the root, {rank}: scipy's sqrtm against adm", by_scipy, by_adm, rounds)
        exact = float(trace_of_root(a, b, tolerance=0))
        errors = [abs(found - exact) / exact for found in (theirs, mine)]
        print(f"  off the sum of singular values, relative: sqrtm {errors[0]:.1e}, adm {errors[1]:.1e}")


def numpy_precision_recall(reference: np.ndarray, sample: np.ndarray, k: int = 3) -> Both:
    """evaluator.py's formula in numpy's float32, in its blocks."""

    def squares(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        out = np.empty((len(u), len(v)), np.float32)
        for start in range(0, len(v), BLOCK):
            w = v[start : start + BLOCK]
            out[:, start : start + BLOCK] = np.maximum((u * u).sum(1)[:, None] - 2 * (u @ w.T) + (w * w).sum(1), 0)
        return out

    def radii(x: np.ndarray) -> np.ndarray:
        parts = [squares(x[i : i + BLOCK], x) for i in range(0, len(x), BLOCK)]
        return np.concatenate([np.partition(part, range(k + 1), axis=1)[:, k] for part in parts])

    radius_ref, radius_gen = radii(reference), radii(sample)
    in_ref, in_gen = np.zeros(len(sample), bool), np.zeros(len(reference), bool)
    for i in range(0, len(reference), BLOCK):
        part = squares(reference[i : i + BLOCK], sample)
        in_gen[i : i + BLOCK] = (part <= radius_gen).any(1)
        in_ref |= (part <= radius_ref[i : i + BLOCK, None]).any(0)
    return float(in_ref.mean()), float(in_gen.mean())


def evaluator_precision_recall(checkout: Path) -> PrecisionAndRecall | None:
    """The checkout's own code in its own session, or None without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    tf: Any = importlib.import_module("tensorflow.compat.v1")
    if not hasattr(np, "bool"):  # numpy 1.24 to 1.26; evaluator.py is older
        np.bool = np.bool_  # type: ignore[misc]
    location = importlib.util.spec_from_file_location("evaluator", checkout / "evaluations" / "evaluator.py")
    if location is None or location.loader is None:
        sys.exit(f"{checkout}: there is no evaluations/evaluator.py. Give a checkout of guided-diffusion.")
    evaluator = importlib.util.module_from_spec(location)
    location.loader.exec_module(evaluator)
    estimator = evaluator.ManifoldEstimator(tf.Session(graph=tf.Graph()))
    estimator.warmup()

    def run(reference: np.ndarray, sample: np.ndarray) -> Both:
        radii = [estimator.manifold_radii(x) for x in (reference, sample)]
        precision, recall = estimator.evaluate_pr(reference, radii[0], sample, radii[1])
        return float(precision[0]), float(recall[0])

    return run


def benchmark_distances(num: int, rounds: int, checkout: Path | None) -> None:
    """Precision and recall of as many samples as references."""
    reference, sample = made(1, num), made(2, num, shift=0.1)
    sides = [Features(torch.from_numpy(x), "made") for x in (sample, reference)]
    peers: dict[str, PrecisionAndRecall] = {"the same formula in numpy, float32": numpy_precision_recall}
    if checkout is not None:
        theirs = evaluator_precision_recall(checkout)
        if theirs is None:
            print("TensorFlow is not installed: evaluator.py's own distance code does not run here")
        else:
            peers["evaluator.py under TensorFlow"] = theirs
    for name, peer in peers.items():
        for precision in PRECISIONS:
            found, mine = compare(
                f"precision and recall, {num} x {num}: {name} against adm {precision}",
                partial(peer, reference, sample),
                partial(PrecisionRecall(precision=precision), *sides),
                rounds,
            )
            print(f"  {found[0]:.4f} {found[1]:.4f} against {mine['precision']:.4f} {mine['recall']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the metrics against evaluator.py's")
    parser.add_argument("--guided-diffusion", type=Path, help="a checkout of openai/guided-diffusion")
    parser.add_argument("--num", type=int, default=10_000, help="images a side for the distances")
    parser.add_argument("--dim", type=int, default=2048, help="features for the traces")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads; torch {torch.__version__}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}"
    )
    benchmark_trace(args.dim, args.rounds)
    benchmark_distances(args.num, args.rounds, args.guided_diffusion)


if __name__ == "__main__":
    main()
