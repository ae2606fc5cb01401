"""The built-in data: handwritten digits of 8 x 8 pixels, which come with scikit-learn."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from adm.runtime.errors import DataError
from adm.runtime.randomness import permutation

__all__ = ["Digits"]

NUM_LEVELS = 17
SPLITS = ("train", "test", "all")


class Digits:
    """1,797 digits of 8 x 8 grey pixels in 17 levels, 10 classes; two thirds to train on, the rest held out.

    split: "train" (1,198, two thirds of each class), "test" (599) or "all"; which digit is where is fixed.
    Images are uint8 (8, 8, 1), level k (0: paper, 16: ink) as round(255 k / 16). Raises DataError.
    Source: the test part of Optdigits (Alpaydin and Kaynak 1998) as in ``sklearn.datasets.load_digits``.
    """

    default_flip = False
    channels = 1
    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: str = "train", channels: int | None = None) -> None:
        if split not in SPLITS:
            raise DataError(f"digits have no split {split!r}: use one of {', '.join(SPLITS)}")
        if channels not in (None, 1):
            raise DataError(f"digits have 1 channel (grey), not {channels}: use them with a model of grey images")
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        chosen = _split(labels, split)
        self.split = split
        self.name = f"digits:{split}"
        self.images = levels_to_uint8(levels.reshape(-1, 8, 8, 1)[chosen])
        self.labels = labels[chosen].astype(np.int64)
        self.images.setflags(write=False)
        self.labels.setflags(write=False)
        content = self.images.tobytes() + self.labels.astype("<i8").tobytes()
        self.fingerprint = hashlib.sha256(f"{self.name}/".encode() + content).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[i]
        return image

    def label(self, i: int) -> int:
        return int(self.labels[i])


def levels_to_uint8(levels: NDArray[np.floating | np.integer]) -> NDArray[np.uint8]:
    """Level k in 0..16 as round(255 k / 16): 0, 16, 32, ..., 255, each level another value."""
    return ((levels.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)


def uint8_to_levels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The nearest level 0..16 of any grey value: inverse of ``levels_to_uint8`` on its 17 values."""
    return ((images.astype(np.int64) * 32 + 255) // 510).astype(np.uint8)


def _split(labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Ascending indices of a split: of each class, in a fixed shuffled order, the first two thirds train."""
    if split == "all":
        return np.arange(len(labels))
    shuffled = permutation(len(labels), seed=0, stream="digits split").numpy()
    of_class = [shuffled[labels[shuffled] == k] for k in range(10)]
    cuts = [round(len(members) * 2 / 3) for members in of_class]
    parts = [m[:c] if split == "train" else m[c:] for m, c in zip(of_class, cuts, strict=True)]
    return np.sort(np.concatenate(parts))
