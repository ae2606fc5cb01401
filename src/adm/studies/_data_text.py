"""The report on data as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from adm.runtime.text import num_bytes, one_line

if TYPE_CHECKING:
    from adm.studies.data_check import DataReport

__all__ = ["report_lines"]

NUM_CLASSES = 12
NUM_BAD = 20
NUM_COPIES = 3


def report_lines(report: DataReport) -> list[str]:
    """About a screen, whatever the data; the lists in full are in the report itself."""
    rows = [*_rows(report)]
    width = max(len(what) for what, _ in rows)
    return [f"{what:<{width}}  {text}".rstrip() for what, text in rows]


def _rows(report: DataReport) -> Iterator[tuple[str, str]]:
    data = report.data
    left_out = f", {data['left_out']:,} more that are not used" if data["left_out"] else ""
    bad = list(report.unreadable.items())
    total = data["num"] + len(bad)
    of_them = f", {len(bad):,} of them unreadable" if bad else ""
    yield "data", f"{one_line(data['path'], 80)}: {_images(total)} ({data['kind']}){of_them}{left_out}"
    yield from _classes(report)
    if report.sizes:
        sizes = report.sizes
        names = ("smallest", "median", "largest")
        shown = ", ".join(f"{name} {sizes[name][0]}x{sizes[name][1]}" for name in names)
        low, middle, high = sizes["aspect"]
        all_same = sizes["distinct"] == 1
        yield (
            "sizes",
            f"all {sizes['smallest'][0]}x{sizes['smallest'][1]} (height x width)"
            if all_same
            else f"{sizes['distinct']:,} sizes (height x width): {shown}; width/height {low:g}, {middle:g}, {high:g}",
        )
    if data["num"]:
        yield "stored as", _counted(report.stored["modes"])
        if report.stored["formats"]:
            yield "formats", _counted(report.stored["formats"])
            yield from _treated(report)
    yield from _copies(report)
    yield from _training(report)
    speed = report.speed
    if data["num"]:
        each = f", {num_bytes(round(speed['bytes_per_image']))} a file" if speed["bytes_per_image"] else ""
        yield "decoding", f"{speed['images_per_second']:,.0f} images/s by {speed['threads']} threads here{each}"
    if report.skipped["files"]:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in list(report.skipped["suffixes"].items())[:6])
        hidden = [f"{report.skipped['hidden']} hidden"] if report.skipped["hidden"] else []
        yield "skipped", f"{report.skipped['files']:,} files: {', '.join([*hidden, *([kinds] if kinds else [])])}"
    for note in report.notes:
        yield "note", note
    for problem in report.problems:
        yield "problem", problem
    if bad:
        others = f"; what stands above is of the other {data['num']:,}" if data["num"] else ""
        yield "unreadable", f"{len(bad):,} of {_images(total)} ({100 * len(bad) / total:.2g} %){others}"
    for name, why in bad[:NUM_BAD]:
        yield "unreadable", f"{one_line(name, 60)}: {one_line(why, 80)}"
    if len(bad) > NUM_BAD:
        yield "unreadable", f"... and {len(bad) - NUM_BAD:,} more"
    for line in report.suggestions:
        yield "suggestion", line


def _classes(report: DataReport) -> Iterator[tuple[str, str]]:
    classes = report.classes
    if not classes["num"]:
        yield "classes", "none: unconditional"
        return
    counts = sorted(classes["counts"].items(), key=lambda item: -item[1])
    if len(counts) > NUM_CLASSES:
        half = NUM_CLASSES // 2
        shown = f"{_counted(dict(counts[:half]))}, ..., {_counted(dict(counts[-half:]))}"
    else:
        shown = _counted(dict(counts))
    skew = f"; largest/smallest {classes['skew']:.3g}" if classes["skew"] else ""
    unlabelled = f"; {classes['unlabelled']:,} without a label" if classes["unlabelled"] else ""
    yield "classes", f"{classes['num']}: {shown}{skew}{unlabelled}"


def _treated(report: DataReport) -> Iterator[tuple[str, str]]:
    stored, modes = report.stored, report.stored["modes"]
    wide = modes.get("16-bit grey", 0) + modes.get("16-bit colour", 0)
    parts = [
        (stored["laid_on_white"], "transparent, laid on white"),
        (stored["turned_by_exif"], "turned upright as EXIF says"),
        (wide, "of 16 bits, reduced to 8"),
        (modes.get("CMYK", 0), "CMYK, made RGB without a colour profile"),
    ]
    shown = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    if shown:
        yield "treated", shown


def _copies(report: DataReport) -> Iterator[tuple[str, str]]:
    copies = report.copies
    if not copies["groups"]:
        return
    across = copies["groups_across_classes"]
    under = f", {across:,} of the pictures under several labels" if across else ""
    yield "copies", f"{copies['images']:,} images repeat the pixels of others{under}"
    for names in copies["names"][:NUM_COPIES]:
        more = ", ..." if len(names) > 2 else ""
        yield "copies", " = ".join(one_line(name, 50) for name in names[:2]) + more


def _training(report: DataReport) -> Iterator[tuple[str, str]]:
    training, num = report.training, report.data["num"]
    colours = "grey" if training["channels"] == 1 else "RGB"
    if "bytes" not in training:
        if num:
            yield "training", f"in {training['channels']} channel(s), {colours}; the rest depends on --image-size"
        return
    height, width = training["image_size"]
    shares = [
        f"{training[what] / num:.1%} of the images {how}"
        for what, how in (("upscaled", "enlarged"), ("unchanged", "as they are"), ("cropped", "cropped"))
    ]
    cut = f" ({training['mean_share_cut_off']:.1%} of all the area cut off)" if training["cropped"] else ""
    yield "training", f"at {height}x{width} in {training['channels']} channel(s), {colours}: {', '.join(shares)}{cut}"
    fits = training["bytes"] <= training["loader_cache_bytes"]
    kept = "kept in memory once decoded" if fits else "more than is kept in memory, so decoded again each time"
    yield "memory", f"{num_bytes(training['bytes'])} at that size: {kept}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{one_line(name, 30)} {count:,}" for name, count in counts.items())
