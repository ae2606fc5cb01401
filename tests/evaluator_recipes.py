"""The recorded runs of OpenAI's evaluator under TensorFlow, and the recipe of the features that it was given."""

import json
from pathlib import Path

import numpy as np
import torch

from adm.metrics._features import Features

RECORDED = json.loads((Path(__file__).parent / "golden/metrics/evaluator_tf.json").read_text())


def made(seed: int, n: int, dim: int = 2048, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    """Rectified mixtures of 96 normals, float32."""
    mix = np.random.RandomState(7).standard_normal((96, dim)) / 9.8
    z = np.random.RandomState(seed).standard_normal((n, 96)) * spread + shift
    return np.maximum(z @ mix - 0.35, 0.0).astype(np.float32)


def recorded_features(recipe: dict[str, float], scale: float = 1.0) -> Features:
    return Features(torch.from_numpy(made(**recipe) * np.float32(scale)), "recorded")
