"""What adm sample and adm upsample share: a request's images into PNGs or one .npz, continued, stopped and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from adm.studies.generate import Batch
    from adm.studies.request import Request

__all__ = ["Drawing"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """Image k with labels[k] from seed + k, batch_size at once; low_res: of an upsampler, see `batches`."""

    request: Request
    labels: list[int]
    seed: int
    batch_size: int
    doing: str = "sampling"
    low_res: Callable[[range], Tensor] | None = None

    def write(self, out: str, description: Mapping[str, object]) -> None:
        """Into the sample set `out`, or the file of that name with .npz; prints where. description: `request.json`."""
        if out.endswith(".npz"):
            self._to_npz(out)
        else:
            self._to_directory(Path(out), description)

    def _to_directory(self, out: Path, description: Mapping[str, object]) -> None:
        from adm.cli._progress import say
        from adm.data import SampleSet
        from adm.runtime.text import shown_path
        from adm.studies._cost import cost_text
        from adm.studies.sample_request import as_begun, refuse_newer_checkpoint

        num = len(self.labels)
        refuse_newer_checkpoint(out, self.request)
        with SampleSet.open(out, as_begun(out, description)) as samples:
            missing = frozenset(k for k in range(num) if not samples.has(k))
            if missing and len(missing) < num:
                say(f"{num - len(missing)} of {num} images are there; making the rest")
            for batch in self._made(missing, "continues"):
                new = [k for k in range(batch.index, batch.index + len(batch.images)) if k in missing]
                for k in new:
                    samples.add(k, batch.images[k - batch.index])
                samples.add_cost(len(new), batch.cost.per_image())
            picture = samples.finish(self.labels, self.request.classes, self.seed)
            cost = samples.cost()
        said = "" if cost is None else f"; {cost_text(cost)}"
        print(f"{shown_path(samples.directory)} ({_images(num)}{said}; overview: {shown_path(picture)})")

    def _to_npz(self, out: str) -> None:
        import numpy as np

        from adm.cli._progress import say
        from adm.data import write_npz
        from adm.runtime import files
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path
        from adm.studies._cost import cost_text

        if Path(out).exists():
            raise UsageError(f"{shown_path(out)} exists. Choose another --out, or remove it.")
        files.require_writable(out)
        num = len(self.labels)
        made = list(self._made(frozenset(range(num)), "starts again: an .npz is written in one piece"))
        write_npz(Path(out), np.concatenate([batch.images for batch in made]), self.labels)
        costs = [(len(batch.images) / num, batch.cost.per_image()) for batch in made]
        mean = {name: sum(share * cost[name] for share, cost in costs) for name in costs[0][1]}
        say(cost_text(mean))
        print(shown_path(Path(out)))

    def _made(self, wanted: frozenset[int], again: str) -> Iterator[Batch]:
        """The batches with a wanted image, with progress; stops between two of them when asked to.

        again: what the same command does after that.
        """
        from adm.cli._progress import bar
        from adm.runtime.errors import StoppedError
        from adm.runtime.signals import stop_requests
        from adm.studies.generate import batches

        request, num, steps = self.request, len(self.labels), len(self.request.chain)
        size = min(self.batch_size, num)
        with bar(f"{self.doing} {_images(num)} x {steps} steps", num * steps) as shown, stop_requests() as stop:

            def on_step(index: int, step: int) -> None:
                shown.update(index * steps + (step + 1) * min(size, num - index))

            for batch in batches(request, self.labels, self.seed, size, wanted.__contains__, on_step, self.low_res):
                yield batch
                done = batch.index + len(batch.images)
                if stop() and done < num:
                    raise StoppedError(f"stopped after {done} of {num} images; the same command {again}.")


def _images(num: int) -> str:
    return "1 image" if num == 1 else f"{num} images"
