"""What to do about what a check of data found, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from adm.runtime.text import num_bytes, one_line
from adm.training.presets import PRESETS

if TYPE_CHECKING:
    from adm.studies.data_check import DataReport

__all__ = ["suggestions"]

SKEWED = 10
MANY_UPSCALED = 0.1
SIDES = (512, 256, 128, 64, 32, 16, 8)
MANY = 10_000
SLOW = 1000
"""Images a second, below which decoding may hold a small network up."""


def suggestions(report: DataReport) -> DataReport:
    """The report with its suggestions."""
    lines = (*_about_size(report), *_about_speed(report), *_about_classes(report))
    return replace(report, suggestions=lines)


def _about_size(report: DataReport) -> Iterator[str]:
    wanted, num = report.training["image_size"], report.data["num"]
    if not num:
        return
    if wanted is None:
        side = next((side for side in SIDES if side <= min(report.sizes["median"])), SIDES[-1])
        yield f"sizes differ: say --image-size {side}, which few of these images have to be enlarged to"
        return
    upscaled = report.training["upscaled"] / num
    if upscaled > MANY_UPSCALED:
        yield f"{upscaled:.0%} of the images are smaller than {_size(wanted)} and become blurred: choose a smaller size"
    if names := [name for name in PRESETS if _suits(name, report)]:
        yield f"presets for such images: {', '.join(names)}"


def _suits(name: str, report: DataReport) -> bool:
    """A preset made for such images: of their size, and grey or in colour as they are."""
    networks = [config.network for config in PRESETS[name].configs]
    wanted = (tuple(report.training["image_size"]), report.training["channels"])
    return any((tuple(network.size), network.in_channels) == wanted for network in networks)


def _about_speed(report: DataReport) -> Iterator[str]:
    training, path = report.training, report.data["path"]
    if report.data["kind"] not in ("folder", "zip") or "bytes" not in training:
        return
    fits = training["bytes"] <= training["loader_cache_bytes"]
    if fits:
        yield f"all images fit into memory ({num_bytes(training['bytes'])}): one decoding a run, without random crops"
    if not fits or (report.data["num"] >= MANY and report.speed["images_per_second"] < SLOW):
        height, width = training["image_size"]
        size = f"{height}" if height == width else f"{height}x{width}"
        yield (
            f"adm data pack {one_line(path, 60)} PACK --image-size {size} decodes once and for all runs "
            f"({num_bytes(training['bytes'])} on disk)"
        )


def _about_classes(report: DataReport) -> Iterator[str]:
    counts, skew = report.classes["counts"], report.classes["skew"]
    if skew is not None and skew > SKEWED:
        there = {name: count for name, count in counts.items() if count}
        least, most = min(there, key=there.__getitem__), max(there, key=there.__getitem__)
        yield (
            f"class {one_line(most, 30)!r} has {skew:.0f} times the images of {one_line(least, 30)!r}: "
            "what is sampled of rare classes will look like their few images"
        )
    if report.copies["groups_across_classes"]:
        yield f"{report.copies['groups_across_classes']} pictures are under several labels: decide for one, see copies"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
