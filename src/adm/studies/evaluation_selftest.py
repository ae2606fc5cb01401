"""Whether the metrics give on this computer what other programs gave: recorded values, without any download.

The recorded numbers are those of OpenAI's evaluator.py under TensorFlow 2.21 and of torch-fidelity's network, for
features, images and weights that numpy's frozen generator makes anew on every computer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adm.checkpoints._safetensors import write_tensors
from adm.metrics import Features
from adm.metrics._inception import InceptionNetwork
from adm.metrics._inception_weights import expected_shapes
from adm.metrics._resize import tf1_resize
from adm.metrics.extractors.inception import InceptionExtractor
from adm.metrics.fid import FID
from adm.metrics.inception_score import InceptionScore
from adm.metrics.precision_recall import PrecisionRecall
from adm.runtime import files

__all__ = ["CHECKS"]

Check = Callable[[torch.device], str | None]
"""device -> None, or what is wrong."""

# Columns of the recorded output for the first image of 32 x 32, and what they hold.
RECORDED = {
    "pool": {0: 14.97598, 511: 3.926756, 1023: 8.920609, 1535: 0.5825282, 2047: 44.4063},
    "spatial": {0: 0.0, 505: 4.066344, 1011: 0.0, 1516: 11.0126, 2022: 3.430101},
    "logits": {0: -11.33417, 251: 5.267746, 503: 21.02957, 755: -28.37167, 1007: -12.03048},
}
LARGEST = {"pool": 72.8, "spatial": 12.7, "logits": 58.6}


def resize_is_tensorflows(device: torch.device) -> str | None:
    """Three pixels of an 8 x 8 image at 299 x 299, on TensorFlow 1's grid."""
    image = torch.from_numpy(np.random.RandomState(30).randint(0, 256, (1, 8, 8, 3)).astype(np.uint8))
    resized = tf1_resize(image.to(device), 299)[0, ::13, ::13].cpu()
    recorded = torch.tensor([92.70511, 142.64839, 155.78261])
    return _far(resized[5, 7], recorded, 1e-3)


def network_is_the_recorded_one(device: torch.device) -> str | None:
    """Outputs of the Inception network with made weights, as torch-fidelity's gave them."""
    images = torch.from_numpy(np.random.RandomState(40).randint(0, 256, (2, 32, 32, 3)).astype(np.uint8))
    found = _extractor(device)(images)
    for tap, recorded in RECORDED.items():
        values = found[tap][0, list(recorded)].cpu()
        problem = _far(values, torch.tensor(list(recorded.values())), 1e-4 * LARGEST[tap])
        if problem:
            return f"{tap}: {problem}"
    return None


def a_set_against_itself(device: torch.device) -> str | None:
    """FID 0, sFID 0, precision 1, recall 1."""
    rng = np.random.RandomState(0)
    images = np.repeat(np.repeat(rng.randint(0, 256, (12, 4, 4, 3)).astype(np.uint8), 8, axis=1), 8, axis=2)
    extractor = _extractor(device)
    rows = extractor(torch.from_numpy(images))
    pool, spatial = (Features(rows[tap].cpu(), f"{extractor.name}.{tap}") for tap in ("pool", "spatial"))
    scores = dict(FID()(pool, pool)) | {"sfid": FID()(spatial, spatial)["fid"]} | dict(PrecisionRecall()(pool, pool))
    size = float(pool.values.square().sum(1).mean())
    expected = {"fid": 0.0, "sfid": 0.0, "precision": 1.0, "recall": 1.0}
    wrong = [f"{name} {scores[name]}" for name, value in expected.items() if abs(scores[name] - value) > 1e-9 * size]
    return ", ".join(wrong) or None


def frechet_distance_is_the_originals(device: torch.device) -> str | None:
    """Of 100 and 90 samples in 300 dimensions, where the covariances lack rank."""
    a, b = (_features(seed, n, 300) for seed, n in ((13, 100), (14, 90)))
    return _off("FID", FID()(a, b)["fid"], 51.41160286715177, 1e-4)


def inception_score_is_the_originals(device: torch.device) -> str | None:
    """Of 12,001 rows: two splits of 5000 and a short one."""
    weight = (np.random.RandomState(9).standard_normal((2048, 1008)) * 0.05).astype(np.float32)
    logits = Features(_features(21, 12001).values @ torch.from_numpy(weight), "made.logits")
    return _off("Inception Score", InceptionScore()(logits, None)["inception_score"], 1.7181137800216675, 1e-4)


def precision_and_recall_are_the_originals(device: torch.device) -> str | None:
    """Of 1,200 references and 2,000 samples, in float16 as the original computes."""
    reference, sample = _features(1, 1200), _features(2, 2000)
    scores = PrecisionRecall(precision="fp16")(sample, reference)
    off = {"precision": scores["precision"] - 0.3835, "recall": scores["recall"] - 0.36666666666666664}
    wrong = [f"{name} is off by {value:+.4f}" for name, value in off.items() if abs(value) > 2e-3]
    return ", ".join(wrong) or None


CHECKS: Mapping[str, Check] = {
    "the resize is TensorFlow 1's (recorded pixels, to 1e-3 grey levels)": resize_is_tensorflows,
    "the Inception network gives the recorded features, spatial features and logits (to 1e-4)": (
        network_is_the_recorded_one
    ),
    "a set against itself: FID 0, sFID 0, precision 1, recall 1": a_set_against_itself,
    "FID is evaluator.py's (51.4116, to 1e-4)": frechet_distance_is_the_originals,
    "Inception Score is evaluator.py's (1.71811, to 1e-4)": inception_score_is_the_originals,
    "precision and recall are evaluator.py's (.3835 and .3667, to .002)": precision_and_recall_are_the_originals,
}


@cache
def _extractor(device: torch.device) -> InceptionExtractor:
    """The network with weights that numpy makes."""
    with torch.device("meta"):
        shapes = expected_shapes(InceptionNetwork())
    gammas = {name.replace("bn.bias", "bn.weight"): shape for name, shape in shapes.items() if name.endswith("bn.bias")}
    shapes = {**shapes, **gammas, "fc.bias": (1008,)}
    rng = np.random.RandomState(77)
    weights = {name: torch.from_numpy(_weight(name, rng.standard_normal(shapes[name]))) for name in sorted(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.safetensors"
        with files.new_file(path, needed=0) as stream:
            write_tensors(stream, weights)
        return InceptionExtractor(path, allow_other_weights=True, device=device)


def _weight(name: str, z: np.ndarray) -> np.ndarray:
    if name.endswith("running_var"):
        z = 0.5 + 0.5 * np.abs(z)
    elif name.endswith("bn.weight"):
        z = np.ones_like(z)
    elif name.endswith("weight"):
        z = z * math.sqrt(2 / math.prod(z.shape[1:]))
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def _features(seed: int, n: int, dim: int = 2048) -> Features:
    """The made features for which evaluator.py's numbers were recorded."""
    mix = np.random.RandomState(7).standard_normal((96, dim)) / 9.8
    z = np.random.RandomState(seed).standard_normal((n, 96))
    return Features(torch.from_numpy(np.maximum(z @ mix - 0.35, 0.0).astype(np.float32)), "made")


def _far(found: Tensor, recorded: Tensor, tolerance: float) -> str | None:
    error = float((found - recorded).abs().max())
    return None if error <= tolerance else f"off by {error:.2g}, more than {tolerance:.2g}"


def _off(name: str, found: float, recorded: float, relative: float) -> str | None:
    return None if abs(found / recorded - 1) <= relative else f"{name} is {found:.6g}, not {recorded:.6g}"
