"""Images a second that the loader prepares, from image files and from a pack of them, with 0, 2 and 4 threads.

    python benchmarks/data.py photos                            # a folder or a zip of images
    python benchmarks/data.py photos --enlarged 400x500         # of which JPEGs of that size are made first
    python benchmarks/data.py photos --sizes 64,128 --random-crop

Each round measures every combination once, in turns; printed are the median of the rounds, the smallest and the
largest, and the time of a processor that an image takes, which other work on the machine moves less. Loaders keep
nothing in memory here, unless it says so, and run for at least --seconds. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, features

from adm.data import Dataset, Loader, open_dataset
from adm.data._pack_writer import pack_images
from adm.data.pack import Pack

BATCH = 64


def enlarged(dataset: Dataset, size: tuple[int, int], num: int, root: Path) -> Dataset:
    """JPEGs of quality 90, (height, width), of the first images that are spread over the data, with some fine grain."""
    rng = np.random.RandomState(0)
    root.mkdir()
    for k in range(num):
        picture = Image.fromarray(dataset.image(k * len(dataset) // num)).convert("RGB")
        pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = rng.normal(0, 6, pixels.shape).astype(np.float32)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(root / f"{k:05d}.jpg", quality=90)
    return open_dataset(str(root))


def speed(dataset: Dataset, size: int, workers: int, seconds: float, crop: bool, kept: bool) -> tuple[float, float]:
    """(images a second, processor seconds an image) of batches as a run takes them, after the first few."""
    cache_bytes = 2**40 if kept else 0
    loader = Loader(dataset, size, BATCH, workers=workers, random_crop=crop, cache_bytes=cache_bytes)
    if kept:
        for position in range(0, len(dataset), BATCH):
            loader.batch(position)
    batches = loader.batches(0)
    for _ in range(workers + 2):
        next(batches)
    started, worked, count = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        next(batches)
        count += BATCH
    worked = time.process_time() - worked
    batches.close()  # type: ignore[attr-defined]
    return count / elapsed, worked / count


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the loader with and without a pack")
    parser.add_argument("data", help="a folder or a zip of images")
    parser.add_argument("--sizes", default="32,64")
    parser.add_argument("--workers", default="0,2,4")
    parser.add_argument("--num", type=int, default=2000, help="images that are made with --enlarged")
    parser.add_argument("--enlarged", help="HEIGHTxWIDTH: JPEGs of that size are made of the images first")
    parser.add_argument("--random-crop", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jpeg = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    jpeg += f" {features.version('jpg')}"
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, Pillow {PIL.__version__} ({jpeg}), torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = open_dataset(args.data)
        if args.enlarged:
            height, width = map(int, args.enlarged.split("x"))
            files = enlarged(files, (height, width), args.num, Path(scratch) / "enlarged")
        if len(files) < BATCH:
            sys.exit(f"{args.data}: fewer than {BATCH} images. Give more.")
        print(f"{len(files)} images, the first {'x'.join(map(str, files.image(0).shape))}, batches of {BATCH}")
        for size in map(int, args.sizes.split(",")):
            started = time.perf_counter()
            out = pack_images(files, Path(scratch) / f"pack-{size}", size, for_random_crop=args.random_crop)
            seconds = time.perf_counter() - started
            pack = Pack(out)
            print(
                f"{size} px: packed in {seconds:.1f} s ({len(files) / seconds:.0f} images/s), "
                f"{pack.num_bytes / 1e6:.1f} MB"
            )
            measure(files, pack, size, args)


def measure(files: Dataset, pack: Pack, size: int, args: argparse.Namespace) -> None:
    combinations = [
        (what, dataset, workers, kept)
        for workers in map(int, args.workers.split(","))
        for what, dataset, kept in (("files", files, False), ("pack", pack, False), ("kept in memory", files, True))
        if not (kept and args.random_crop)
    ]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for what, dataset, workers, kept in combinations:
            rate = speed(dataset, size, workers, args.seconds, args.random_crop, kept)
            found.setdefault((what, workers), []).append(rate)
    for (what, workers), measured in found.items():
        rates, costs = zip(*measured, strict=True)
        print(
            f"{size} px, {workers} threads, {what}: {statistics.median(rates):,.0f} images/s "
            f"({min(rates):,.0f} to {max(rates):,.0f}), {statistics.median(costs) * 1e3:.3f} ms of processor an image",
            flush=True,
        )


if __name__ == "__main__":
    main()
