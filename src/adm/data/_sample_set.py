"""Sample sets on disk: PNGs, `labels.csv` and `request.json`; or one .npz in OpenAI's layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data._images import decode, grid, png_bytes, save_png
from adm.runtime import files
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["SampleSet", "write_npz"]


class SampleSet:
    """A directory that fills up with images, and can be continued.

    request: all that the images are a function of, JSON-able; a directory with another request is refused, naming
    what differs. An image has its final name only when it is complete.
    """

    def __init__(self, directory: Path, request: Mapping[str, Any]) -> None:
        self.directory = directory
        path = directory / "request.json"
        if path.exists():
            _refuse_other(path, files.read_json(path), request)
        elif directory.exists() and any(directory.iterdir()):
            raise UsageError(f"{shown_path(directory)} is not empty and holds no sample set. Choose another --out.")
        else:
            files.make_directory(directory)
            files.write_json(path, dict(request))

    def path(self, index: int) -> Path:
        return self.directory / f"{index:06d}.png"

    def has(self, index: int) -> bool:
        return self.path(index).exists()

    def add(self, index: int, image: NDArray[np.uint8]) -> None:
        """Write image `index`, uint8 (H, W, C)."""
        files.write_bytes(self.path(index), png_bytes(image))

    def finish(self, labels: Sequence[int], names: Sequence[str], first_seed: int) -> None:
        """Write `labels.csv`: file, label, class name and seed of each image."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["file", "label", "class", "seed"])
        for index, label in enumerate(labels):
            name = names[label] if 0 <= label < len(names) else ""
            rows.writerow([self.path(index).name, label, name, first_seed + index])
        files.write_text(self.directory / "labels.csv", text.getvalue())

    def save_overview(self, path: Path, num: int, largest: int = 100) -> None:
        """One picture of the first images."""
        images = np.stack([decode(self.path(k)) for k in range(min(num, largest))])
        save_png(path, grid(images, scale=max(1, 64 // images.shape[1])))


def write_npz(path: Path, images: NDArray[np.uint8], labels: Sequence[int]) -> None:
    """OpenAI's layout: arr_0 uint8 (N, H, W, C), and arr_1 int64 (N,) where there are labels."""
    arrays = [images]
    if any(label >= 0 for label in labels):
        arrays.append(np.asarray(labels, np.int64))
    with files.write_stream(path) as stream:
        np.savez(stream, *arrays)


def _refuse_other(path: Path, before: Any, request: Mapping[str, Any]) -> None:
    if not isinstance(before, Mapping):
        raise UsageError(f"{shown_path(path)}: not a request. Choose another --out.")
    for name in {**before, **request}:
        if before.get(name) != request.get(name):
            raise UsageError(
                f"{shown_path(path.parent)} was made with {name}={one_line(before.get(name), 40)}, you asked for "
                f"{one_line(request.get(name), 40)}. Choose another --out."
            )
