"""What was found in data, counted: classes, sizes, how images are stored, copies, and what training does to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data import Dataset
from adm.data._image_look import Look
from adm.data._images import image_size_pair
from adm.data._loader import CACHE_BYTES

__all__ = ["Seen", "counts", "mean", "of_classes", "of_copies", "of_sizes", "of_storage", "of_training", "wanted_size"]

NUM_GROUPS = 1000
"""Groups of copies that are listed by name."""


@dataclass
class Seen:
    """What looking found: of each image its name, size, pixels and, in files, how it is stored."""

    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[bytes] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def chosen(self, names: set[str]) -> Seen:
        """The images of these names alone."""
        at = [k for k, name in enumerate(self.names) if name in names]
        return Seen(
            [self.names[k] for k in at],
            [self.sizes[k] for k in at],
            [self.pixels[k] for k in at],
            [self.looks[k] for k in at],
            self.bad,
            self.others,
            self.seconds,
        )


def counts(values: Iterable[str]) -> dict[str, int]:
    """How often each is there, the commonest first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def of_classes(dataset: Dataset | None, labels: NDArray[np.int64], labels_from: str | None) -> dict[str, Any]:
    names = dataset.class_names if dataset else ()
    per_class = np.bincount(labels[labels >= 0], minlength=len(names))
    there = per_class[per_class > 0]
    return {
        "num": len(names),
        "labels_from": labels_from,
        "counts": {name: int(count) for name, count in zip(names, per_class, strict=True)},
        "empty": [name for name, count in zip(names, per_class, strict=True) if not count],
        "skew": float(there.max() / there.min()) if len(there) else None,
        "unlabelled": int((labels < 0).sum()),
    }


def of_sizes(sizes: NDArray[np.int64]) -> dict[str, Any]:
    if not len(sizes):
        return {}
    areas, aspect = sizes.prod(axis=1), sizes[:, 1] / sizes[:, 0]
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    return {
        "distinct": len(distinct),
        "commonest": distinct[counts.argmax()].tolist(),
        "smallest": sizes[areas.argmin()].tolist(),
        "median": np.median(sizes, axis=0).astype(int).tolist(),
        "largest": sizes[areas.argmax()].tolist(),
        "aspect": [round(float(value), 3) for value in (aspect.min(), np.median(aspect), aspect.max())],
    }


def of_storage(seen: Seen, channels: int) -> dict[str, Any]:
    if not seen.looks:
        return {"modes": {"grey" if channels == 1 else "colour": len(seen.names)}, "formats": {}}
    return {
        "modes": counts(look.stored for look in seen.looks),
        "formats": counts(look.format for look in seen.looks),
        "with_alpha": sum(look.alpha for look in seen.looks),
        "laid_on_white": sum(look.transparent for look in seen.looks),
        "turned_by_exif": sum(look.turned for look in seen.looks),
    }


def of_copies(seen: Seen, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Images with the same pixels, in groups, those under several labels first."""
    of_pixels: dict[bytes, list[int]] = {}
    for k, pixels in enumerate(seen.pixels):
        of_pixels.setdefault(pixels, []).append(k)
    groups = [group for group in of_pixels.values() if len(group) > 1]
    across = [group for group in groups if len(set(labels[group].tolist())) > 1]
    within = [group for group in groups if len(set(labels[group].tolist())) == 1]
    return {
        "groups": len(groups),
        "images": sum(len(group) - 1 for group in groups),
        "groups_across_classes": len(across),
        "names": [names for part in (across, within) for names in _named(seen, part)][:NUM_GROUPS],
    }


def _named(seen: Seen, groups: list[list[int]]) -> list[list[str]]:
    return sorted(sorted(seen.names[k] for k in group) for group in groups)


def wanted_size(sizes: NDArray[np.int64], image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is not None:
        return image_size_pair(image_size)
    same = len(sizes) > 0 and bool((sizes == sizes[0]).all())
    return (int(sizes[0, 0]), int(sizes[0, 1])) if same else None


def of_training(sizes: NDArray[np.int64], wanted: tuple[int, int] | None, channels: int) -> dict[str, Any]:
    """What scaling and cropping to the wanted size does, and the memory that a loader keeps the images in."""
    found: dict[str, Any] = {"channels": channels, "image_size": wanted, "loader_cache_bytes": CACHE_BYTES}
    if wanted is None or not len(sizes):
        return found
    scale = (np.array(wanted) / sizes).max(axis=1)
    kept = math.prod(wanted) / (sizes.prod(axis=1) * scale**2)
    return found | {
        "upscaled": int((scale > 1).sum()),
        "unchanged": int((sizes == np.array(wanted)).all(axis=1).sum()),
        "cropped": int((kept < 1 - 1e-9).sum()),
        "mean_share_cut_off": round(float(1 - kept.mean()), 4),
        "bytes": len(sizes) * math.prod(wanted) * channels,
    }


def mean(values: list[int]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None
