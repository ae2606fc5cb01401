"""Sample sets on disk: PNGs, `labels.csv`, `request.json` and `cost.json`; or one .npz in OpenAI's layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adm.data._images import decode
from adm.data._overview import overview
from adm.data._pictures import png_bytes, save_png
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["SampleSet", "write_npz"]

NUM_SHOWN = 100
COST = "cost.json"


class SampleSet:
    """A directory that fills up with images, and can be continued. An image has its final name when it is complete."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._costed: tuple[int, dict[str, float]] | None = None

    @classmethod
    @contextmanager
    def open(cls, directory: Path, request: Mapping[str, Any]) -> Iterator[SampleSet]:
        """The set in `directory`, new or continued, with this process as its only writer.

        request: all that the images are a function of, JSON-able. A directory with images of another request is
        refused with a UsageError that names what differs; so is one that holds something else.
        """
        directory = directory.resolve()
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{shown_path(directory)} is a file. Choose another --out.")
        with files.lock(directory / ".lock", f"sample set {shown_path(directory)!r}"):
            files.remove_partials(directory)
            path = directory / "request.json"
            if path.exists() and any(directory.glob("*.png")):
                _refuse_other(path, files.read_json(path), request)
            elif any(entry.name not in (path.name, COST, ".lock") for entry in directory.iterdir()):
                raise UsageError(f"{shown_path(directory)} is not empty and holds no sample set. Choose another --out.")
            else:
                files.write_json(path, dict(request))
            yield cls(directory)

    def path(self, index: int) -> Path:
        return self.directory / f"{index:06d}.png"

    def has(self, index: int) -> bool:
        return self.path(index).exists()

    def add(self, index: int, image: NDArray[np.uint8]) -> None:
        """Write image `index`, uint8 (H, W, C)."""
        files.write_bytes(self.path(index), png_bytes(image))

    def add_cost(self, num: int, per_image: Mapping[str, float]) -> None:
        """Take what each of the last `num` images cost into `cost.json`: how many images it speaks of, and the means.

        Of images that were there before, what it said counts as often as there are of them.
        """
        if self._costed is None:
            before = self.cost() or {}
            others = sum(1 for _ in self.directory.glob("*.png")) - num
            self._costed = min(int(before.pop("images", 0)), others), before
        known, means = self._costed
        total = known + num
        names = [*per_image, *(name for name in means if name not in per_image)]
        sums = {name: known * means.get(name, 0.0) + num * per_image.get(name, 0.0) for name in names}
        self._costed = total, {name: round(value / total, 9) for name, value in sums.items()}
        files.write_json(self.directory / COST, {"images": total, **self._costed[1]})

    def cost(self) -> dict[str, float] | None:
        """What `cost.json` says; None where there is none to be read."""
        try:
            document = files.read_json(self.directory / COST) if (self.directory / COST).exists() else None
        except DamagedError:
            return None
        if not isinstance(document, dict) or not all(isinstance(value, int | float) for value in document.values()):
            return None
        return document

    def finish(self, labels: Sequence[int], names: Sequence[str], first_seed: int) -> Path:
        """Write `labels.csv`: file, label, class name and seed of each image; and beside the directory, so that no
        reader takes it for a sample, a picture of the first images and their classes. Returns the picture's path."""
        classes = [names[label] if 0 <= label < len(names) else "" for label in labels]
        if self._num_listed() < len(labels):
            text = io.StringIO()
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(["file", "label", "class", "seed"])
            for index, (label, name) in enumerate(zip(labels, classes, strict=True)):
                rows.writerow([self.path(index).name, label, name, first_seed + index])
            files.write_text(self.directory / "labels.csv", text.getvalue())
        images = np.stack([decode(self.path(k)) for k in range(min(len(labels), NUM_SHOWN))])
        picture = self.directory.with_name(f"{self.directory.name}-overview.png")
        save_png(picture, overview(images, classes[:NUM_SHOWN]))
        return picture

    def _num_listed(self) -> int:
        path = self.directory / "labels.csv"
        if not path.exists():
            return 0
        with path.open(newline="", encoding="utf-8") as stream:
            return sum(1 for _ in csv.reader(stream)) - 1


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
                f"{shown_path(path.parent)} was made with {name}={_value(before, name)}, you asked for "
                f"{_value(request, name)}. Choose another --out."
            )


def _value(request: Mapping[str, Any], name: str) -> str:
    if name == "grid" and name not in request:  # the sampler's own, of which a request says the number of steps alone
        return f"the sampler's own, {one_line(request.get('steps'), 20)} steps"
    return one_line(request.get(name), 40)
