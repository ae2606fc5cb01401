"""The Inception network of 2015 and its preprocessing: the features of FID, sFID, precision, recall and IS."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adm.checkpoints.store import INCEPTION, cached_file
from adm.checkpoints.torch_file import read_state_dict
from adm.metrics._extractor import as_device, checked_images, exact_float32, in_batches, marked_name, repeated_grey
from adm.metrics._inception import IMAGE_SIZE, InceptionNetwork, InceptionOutput
from adm.metrics._inception_weights import inception_network
from adm.metrics._resize import tf1_resize
from adm.runtime import files
from adm.runtime.errors import DamagedError, DataError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["InceptionExtractor"]

WEIGHTS_VARIABLE = "ADM_INCEPTION_WEIGHTS"
NAME = "inception-2015-12-05"
# Largest difference over the largest value, as benchmarks/inception.py measures it on the recorded images.
BFLOAT16_DIFFERENCE = {"pool": 0.004, "spatial": 0.017, "logits": 0.005}

Precision = Literal["float32", "bfloat16"]


class InceptionExtractor:
    """uint8 images of any size -> {"pool": (n, 2048), "spatial": (n, 2023), "logits": (n, 1008)}, float32.

    pool is behind the average over the last 8 x 8 pixels, spatial the first 7 channels of Mixed_6d.branch1x1 (index
    (row * 17 + column) * 7 + channel), logits have no bias, as the Inception Score wants them. Grey images are
    repeated as three channels. Resized to 299 x 299 in TensorFlow 1's grid, then (v - 128) / 128.

    weights: a file of the network's weights; None: $ADM_INCEPTION_WEIGHTS, else what `adm models get inception`
    fetched. allow_other_weights: take a file of another hash than the published; then ``name`` ends in "@" and its
    first 8 digits. precision: bfloat16 is faster where the machine has it, and moves the features. compile: by
    torch.compile, which takes minutes on a CPU. Raises UsageError when there are no weights, DamagedError for a file
    that is refused. Source: OpenAI's evaluator of ADM; Heusel et al. 2017; Nash et al. 2021.
    """

    taps = ("pool", "spatial", "logits")
    widths: ClassVar = {"pool": 2048, "spatial": 2023, "logits": 1008}

    def __init__(
        self,
        weights: str | Path | None = None,
        allow_other_weights: bool = False,
        *,
        precision: Precision = "float32",
        compile: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise UsageError(f"precision {precision!r}: choose float32 or bfloat16.")
        self.device = as_device(device)
        path, sha256 = located_weights(weights, allow_other_weights)
        self._path = path
        self.name = marked_name(NAME, sha256, INCEPTION.sha256)
        self.dtype = getattr(torch, precision)
        network = inception_network(read_state_dict(path), shown_path(path), self.dtype).to(self.device)
        self.network: Callable[[Tensor], InceptionOutput] = network
        self.batch_size = 8 if self.device.type == "cpu" else 32
        self.conditions: dict[str, object] = {
            "weights_sha256": sha256,
            "preprocessing": f"TensorFlow 1 bilinear resize to {IMAGE_SIZE}, (v - 128) / 128",
            "precision": precision,
            "compiled": compile,
        }
        if precision == "bfloat16":
            self.conditions["relative_difference_from_float32"] = dict(BFLOAT16_DIFFERENCE)
        if compile:
            self._compile(network)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images (n, H, W, C) with C = 1 or 3."""
        with exact_float32():
            compiled = bool(self.conditions["compiled"])
            return in_batches(self._features, checked_images(images), self.batch_size, self.device, not compiled)

    @property
    def is_exact(self) -> bool:
        """Whether this is the plain float32 network, in which published numbers are made."""
        return self.dtype == torch.float32 and not self.conditions["compiled"]

    def difference_from_exact(self, images: Tensor) -> dict[str, float]:
        """By tap, the largest difference from the plain float32 network over the largest value, for these images."""
        exact = InceptionExtractor(self._path, allow_other_weights=True, device=self.device)(images)
        found = self(images)
        return {tap: float((found[tap] - exact[tap]).abs().max() / exact[tap].abs().max()) for tap in self.taps}

    def _compile(self, network: InceptionNetwork) -> None:
        """Compiled now, for the one shape that is ever asked for: what fails, fails before any work."""
        self.network = torch.compile(network, dynamic=False)
        try:
            self(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
        except RuntimeError as error:
            raise UsageError(f"torch.compile fails here ({one_line(error, 160)}). Leave it out.") from error

    def _features(self, images: Tensor) -> Mapping[str, Tensor]:
        x = tf1_resize(repeated_grey(images), IMAGE_SIZE).sub_(128).mul_(1 / 128)
        # The pixels already lie in memory as channels last has them.
        x = x.contiguous().permute(0, 3, 1, 2).to(self.dtype)
        return dict(zip(self.taps, self.network(x), strict=True))


def located_weights(weights: str | Path | None, allow_other: bool) -> tuple[Path, str]:
    """The file of the weights and its sha256, checked against the published one unless another is allowed."""
    given = weights or os.environ.get(WEIGHTS_VARIABLE)
    path = Path(given).expanduser() if given else cached_file(INCEPTION)
    if path is None:
        raise UsageError(
            "the weights of the Inception network are not on this machine. Fetch them: adm models get inception, or "
            f"download {' or '.join(INCEPTION.urls)} and give the file by --weights (or in ${WEIGHTS_VARIABLE})."
        )
    if not path.exists():
        source = "--weights" if weights else f"${WEIGHTS_VARIABLE}"
        raise DataError(f"{shown_path(path)}: no such file, which {source} gives as weights. Correct the path.")
    sha256 = files.sha256_file(path)
    if sha256 != INCEPTION.sha256 and not allow_other:
        raise DamagedError(
            f"{shown_path(path)} has sha256 {sha256}, not the published {INCEPTION.sha256}: its numbers would not be "
            "comparable. Fetch that: adm models get inception, or give --allow-other-weights."
        )
    return path, sha256
