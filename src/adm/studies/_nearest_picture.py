"""The samples that are nearest to training images, beside those."""

from __future__ import annotations

import numpy as np

from adm.data import ImageSource
from adm.metrics._nearest_report import NearestReport

__all__ = ["nearest_picture"]

NUM_SHOWN = 10
MAX_SHOWN = 192
"""Pixels of an image's side in a picture of several."""


def nearest_picture(report: NearestReport, samples: ImageSource, training: ImageSource, extractor: str) -> bytes:
    """A PNG: the samples that are nearest to a training image, and that image under each."""
    from adm.studies._mosaics import NeighbourBlock, nearest_images  # matplotlib, which no other number needs

    closest = report.closest(NUM_SHOWN).tolist()
    images = [_image(samples, k) for k in closest]
    nearest = [_image(training, int(report.index[k, 0])) for k in closest]
    block = NeighbourBlock(
        f"The {len(closest)} samples nearest to a training image",
        np.stack(images),
        np.stack(nearest),
        [float(report.distance[k, 0]) for k in closest],
    )
    unit = "grey levels" if extractor == "pixels" else extractor
    return nearest_images([block], unit)


def _image(source: ImageSource, index: int) -> np.ndarray:
    """Image `index`, made small enough for a picture of several."""
    (image,) = (batch[0] for batch in source.batches(1, index, index + 1))
    factor = -(-max(image.shape) // MAX_SHOWN)
    return image[::factor, ::factor]
