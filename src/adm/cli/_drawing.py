"""What adm sample and adm upsample share: a request's images into PNGs or one .npz, continued, stopped and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from adm.studies.generate import Batch
    from adm.studies.request import Request

__all__ = ["Drawing", "check_out"]

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}


def check_out(out: str) -> None:
    """UsageError for the name of a picture: a directory would get it. One that is there, of a set begun before, has
    it already, and what to say of a file is said where it is in the way."""
    from adm.runtime.errors import UsageError
    from adm.runtime.text import shown_path

    path = Path(out)
    if path.suffix.lower() in PICTURES and not path.exists():
        raise UsageError(
            f"--out {shown_path(path)}: a picture's name, but --out is the name of a directory for the images, or of "
            f"an .npz. Write --out {shown_path(path.with_suffix(''))}."
        )


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
        if out.lower().endswith(".npz"):
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
            with self._stoppable(lambda: sum(map(samples.has, range(num))), "continues") as check:
                for batch in self._made(missing):
                    new = [k for k in range(batch.index, batch.index + len(batch.images)) if k in missing]
                    for k in new:
                        samples.add(k, batch.images[k - batch.index])
                    samples.add_cost(len(new), batch.cost.per_image())
                    check()
            picture = samples.finish(self.labels, self.request.classes, self.seed)
            cost = samples.cost()
        said = "" if cost is None else f"; {cost_text(cost)}"
        print(f"{shown_path(samples.directory)} ({_counted(num, 'image')}{said}; overview: {shown_path(picture)})")

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
        made: list[Batch] = []
        again = "starts again: an .npz is written in one piece"
        with self._stoppable(lambda: sum(len(batch.images) for batch in made), again) as check:
            for batch in self._made(frozenset(range(num))):
                made.append(batch)
                check()
        write_npz(Path(out), np.concatenate([batch.images for batch in made]), self.labels)
        costs = [(len(batch.images) / num, batch.cost.per_image()) for batch in made]
        mean = {name: sum(share * cost[name] for share, cost in costs) for name in costs[0][1]}
        say(cost_text(mean))
        print(shown_path(Path(out)))

    def _made(self, wanted: frozenset[int]) -> Iterator[Batch]:
        """The batches with a wanted image, with progress."""
        from adm.cli._progress import bar
        from adm.studies.generate import batches

        request, num, steps = self.request, len(self.labels), len(self.request.chain)
        size = min(self.batch_size, num)
        with bar(f"{self.doing} {_counted(num, 'image')} x {_counted(steps, 'step')}", num * steps) as shown:

            def on_step(index: int, step: int) -> None:
                shown.update(index * steps + (step + 1) * min(size, num - index))

            yield from batches(request, self.labels, self.seed, size, wanted.__contains__, on_step, self.low_res)

    @contextmanager
    def _stoppable(self, num_done: Callable[[], int], again: str) -> Iterator[Callable[[], None]]:
        """Within the block, a first signal stops at the function that is given, unless all images are done, and a
        second one at once; either says how many are. again: what the same command does after that."""
        from adm.runtime.errors import StoppedError
        from adm.runtime.signals import stop_requests

        def stopped(how: str) -> StoppedError:
            return StoppedError(f"{how} after {num_done()} of {num} images; the same command {again}.")

        num = len(self.labels)
        try:
            with stop_requests() as stop:

                def check() -> None:
                    if stop() and num_done() < num:
                        raise stopped("stopped")

                yield check
        except KeyboardInterrupt as error:
            raise stopped("interrupted") from error


def _counted(num: int, what: str) -> str:
    return f"1 {what}" if num == 1 else f"{num} {what}s"
