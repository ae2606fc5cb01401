"""What adm sample and adm upsample share: a request's images into PNGs or one .npz, by one process or many,
continued, stopped and shown."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from adm.data import SampleSet
    from adm.runtime.distributed import World
    from adm.studies.generate import Batch
    from adm.studies.request import Request

__all__ = ["Drawing", "check_out", "drawing_world"]

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

    def write(self, out: str, description: Mapping[str, object], world: World) -> None:
        """Into the sample set `out`, or the file of that name with .npz; process 0 prints where.

        description: `request.json`. Each of the processes makes every world.size-th block of images.
        """
        from adm.runtime.errors import UsageError

        world.agree("requests", "\n".join(f"{k}={json.dumps(v)}" for k, v in description.items()), UsageError)
        if out.lower().endswith(".npz"):
            self._to_npz(out, world)
        else:
            self._to_directory(Path(out), description, world)

    def _to_directory(self, out: Path, description: Mapping[str, object], world: World) -> None:
        from adm.cli._progress import say
        from adm.runtime.text import shown_path
        from adm.studies._cost import cost_text

        num, first = len(self.labels), world.rank == 0
        with self._opened(out, description, world) as samples:
            there = json.dumps([k for k in range(num) if not samples.has(k)]) if first else None
            missing = frozenset(json.loads(world.from_first(there)))
            if missing and len(missing) < num and first:
                say(f"{num - len(missing)} of {num} images are there; making the rest")
            with self._stoppable(lambda: sum(map(samples.has, range(num))), "continues", world) as check:
                for batch, more in self._made(missing, world):
                    made = () if batch is None else zip(batch.indices, batch.images, strict=True)
                    new = {k: image for k, image in made if k in missing}
                    for k, image in new.items():
                        samples.add(k, image)
                    added, mean = self._costs(world, len(new), batch)
                    if first:
                        samples.add_cost(added, mean)
                    check(more)
            if not first:
                return
            picture = samples.finish(self.labels, self.request.classes, self.seed)
            cost = samples.cost()
        said = "" if cost is None else f"; {cost_text(cost)}"
        print(f"{shown_path(samples.directory)} ({_counted(num, 'image')}{said}; overview: {shown_path(picture)})")

    @contextmanager
    def _opened(self, out: Path, description: Mapping[str, object], world: World) -> Iterator[SampleSet]:
        """Process 0 answers for the set, and holds its lock until the others are done."""
        from adm.data import SampleSet
        from adm.studies.sample_request import as_begun, refuse_newer_checkpoint

        if world.rank > 0:
            world.wait("process 0 to open the sample set")
            yield SampleSet(out.resolve())
            return
        refuse_newer_checkpoint(out, self.request)
        with SampleSet.open(out, as_begun(out, description)) as samples:
            world.wait("the others to come")
            yield samples

    def _to_npz(self, out: str, world: World) -> None:
        from adm.cli._progress import say
        from adm.data import write_npz
        from adm.runtime import files
        from adm.runtime.errors import UsageError
        from adm.runtime.text import shown_path
        from adm.studies._cost import cost_text

        first = world.rank == 0
        if first and Path(out).exists():
            raise UsageError(f"{shown_path(out)} exists. Choose another --out, or remove it.")
        if first:
            files.require_writable(out)
        world.wait("process 0 to look at --out")
        num = len(self.labels)
        made: list[Batch] = []
        parts: list[tuple[int, dict[str, float]]] = []
        again = "starts again: an .npz is written in one piece"
        with self._stoppable(lambda: sum(added for added, _ in parts), again, world) as check:
            for batch, more in self._made(frozenset(range(num)), world):
                if batch is not None:
                    made.append(batch)
                parts.append(self._costs(world, 0 if batch is None else len(batch.images), batch))
                check(more)
        images = self._gathered(made, world)
        if images is None:
            return
        write_npz(Path(out), images, self.labels)
        say(cost_text(_mean(parts)[1]))
        print(shown_path(Path(out)))

    def _gathered(self, made: list[Batch], world: World) -> NDArray[np.uint8] | None:
        """All images in their order, uint8 (N, H, W, C), in process 0."""
        import numpy as np
        import torch

        channels, *size = self.request.model.image_shape or (0,)
        none = np.empty((0, *size, channels), np.uint8)
        images = torch.from_numpy(np.concatenate([none, *(batch.images for batch in made)]))
        indices = torch.tensor([k for batch in made for k in batch.indices], dtype=torch.int64)
        counts = world.all_gather(torch.tensor([len(images)])).tolist()
        order, rows = world.gather(indices, counts), world.gather(images, counts)
        if order is None or rows is None:
            return None
        in_order = bool((order.diff() > 0).all())  # as from one process: no second copy of them all
        return (rows if in_order else rows[order.argsort()]).numpy()

    def _costs(self, world: World, num: int, batch: Batch | None) -> tuple[int, dict[str, float]]:
        """How many images the processes have made in this round, and what one of them cost. num: of this process."""
        mine = json.dumps([num, {} if batch is None else batch.cost.per_image()])
        return _mean([json.loads(text) for text in world.texts(mine)])

    def _made(self, wanted: frozenset[int], world: World) -> Iterator[tuple[Batch | None, bool]]:
        """This process's batches with a wanted image, with progress, and whether any process makes more after it.

        All have as many rounds; in the last one some may have nothing to do.
        """
        from adm.cli._progress import bar
        from adm.studies.generate import batches

        request, num, steps = self.request, len(self.labels), len(self.request.chain)
        size = min(self.batch_size, num)
        starts = sorted({k // size * size for k in wanted})
        mine = frozenset(starts[world.rank :: world.size])
        title = f"{self.doing} {_counted(num, 'image')} x {_counted(steps, 'step')}"
        with bar(title, num * steps, shown=world.rank == 0) as shown:

            def on_step(index: int, step: int) -> None:
                shown.update(index * steps + (step + 1) * min(size * world.size, num - index))
                world.phase(f"step {step + 1} of images {index} to {min(index + size, num) - 1}")

            def has_part(k: int) -> bool:
                return k in wanted and k // size * size in mine

            made = batches(request, self.labels, self.seed, size, has_part, on_step, self.low_res)
            for done in range(0, len(starts), world.size):
                yield next(made, None), done + world.size < len(starts)

    @contextmanager
    def _stoppable(self, num_done: Callable[[], int], again: str, world: World) -> Iterator[Callable[[bool], None]]:
        """Within the block, a first signal stops all processes at the function that is given, if there is more to do,
        and a second Ctrl-C at once; either says how many are done. again: what the same command does after that."""
        from adm.runtime.errors import StoppedError
        from adm.runtime.signals import stop_requests

        def stopped(how: str) -> StoppedError:
            return StoppedError(f"{how} after {num_done()} of {len(self.labels)} images; the same command {again}.")

        try:
            with stop_requests(told=world.rank == 0) as stop:

                def check(more: bool) -> None:
                    if world.any(stop()) and more:
                        raise stopped("stopped")

                yield check
        except KeyboardInterrupt as error:
            if world.size > 1:  # the others have not been asked
                raise
            raise stopped("interrupted") from error


@contextmanager
def drawing_world(device: torch.device) -> Iterator[World]:
    """The processes that share the images; what is worth a note, the first one notes."""
    from adm.runtime.distributed import join

    with join(device) as world, warnings.catch_warnings():
        if world.rank > 0:
            warnings.simplefilter("ignore")
        yield world


def _mean(parts: Sequence[tuple[int, Mapping[str, float]]]) -> tuple[int, dict[str, float]]:
    """(how many, what one costs) of several such."""
    total = sum(num for num, _ in parts)
    names = dict.fromkeys(name for _, cost in parts for name in cost)
    return total, {name: sum(num * cost.get(name, 0.0) for num, cost in parts) / max(total, 1) for name in names}


def _counted(num: int, what: str) -> str:
    return f"1 {what}" if num == 1 else f"{num} {what}s"
