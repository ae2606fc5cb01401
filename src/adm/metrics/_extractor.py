"""What turns images into features: the protocol, and what the files of ``extractors`` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from adm.runtime.device import pick_device
from adm.runtime.errors import UsageError

__all__ = [
    "Extractor",
    "as_device",
    "checked_images",
    "exact_float32",
    "in_batches",
    "marked_name",
    "repeated_grey",
]

MAX_WORKERS = 16
"""So many batches of the Inception network at once take less than 1.5 GB."""


class Extractor(Protocol):
    """Images -> features. A file of ``metrics/extractors`` holds one, and is found by its name.

    ``name``: as it appears in results; under weights that are not the published ones it ends in "@" and the first 8
    digits of their hash. ``taps``: the outputs that it has, the main one first; one called "logits" is a classifier's.
    ``conditions``: what the numbers depend on, as JSON: hash of the weights, preprocessing, precision.
    """

    name: str
    taps: tuple[str, ...]
    conditions: dict[str, object]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (n, H, W, C), n may be 0, on any device -> of each tap (n, d), float32, on the extractor's device."""
        ...


def checked_images(images: Tensor, channels: tuple[int, ...] = (1, 3)) -> Tensor:
    """The images themselves. Raises UsageError for anything but uint8 (n, H, W, C) with such a C."""
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[3] not in channels or 0 in images.shape[1:]:
        counts = " or ".join(str(count) for count in channels)
        raise UsageError(
            f"images of shape {tuple(images.shape)} and {images.dtype} have no features: give uint8 (n, H, W, C) with "
            f"C = {counts}"
        )
    return images


def repeated_grey(images: Tensor) -> Tensor:
    """Images (n, H, W, C) with three channels: the one of grey images three times."""
    return images.expand(-1, -1, -1, 3) if images.shape[3] == 1 else images


def marked_name(name: str, sha256: str, published: str | None) -> str:
    """The name, and behind an "@" the first 8 digits of a hash that is not the published one."""
    return name if sha256 == published else f"{name}@{sha256[:8]}"


def as_device(device: str | torch.device) -> torch.device:
    """The device of that name: auto, cpu, cuda, cuda:1, mps. Raises UsageError for one that is not there."""
    return device if isinstance(device, torch.device) else pick_device(device)


def in_batches(
    network: Callable[[Tensor], Mapping[str, Tensor]],
    images: Tensor,
    batch_size: int,
    device: torch.device,
    side_by_side: bool = True,
) -> dict[str, Tensor]:
    """``network`` of (batch_size, H, W, C) at a time, the last filled up with black images, whose rows are dropped.

    A product of another shape, or shared by another number of threads, is summed in another order. Filled up, and on
    a CPU each batch by one thread, the features of an image are the same to the bit in whatever company it comes, and
    in one process as in many. (Several batches at once are also faster than several threads for each.)
    side_by_side: False for a compiled network, in which the number of threads is fixed.
    """

    def rows_of(start: int) -> Mapping[str, Tensor]:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            batch = images[start : start + batch_size].to(device)
            filling = batch.new_zeros(batch_size - len(batch), *batch.shape[1:])
            found = network(torch.cat([batch, filling]))
            return {tap: rows[: len(batch)].to(torch.float32) for tap, rows in found.items()}

    starts = range(0, max(len(images), 1), batch_size)
    parts = list(_on_workers(rows_of, starts) if side_by_side and device.type == "cpu" else map(rows_of, starts))
    return {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]}


def _on_workers(work: Callable[[int], Mapping[str, Tensor]], starts: range) -> Iterator[Mapping[str, Tensor]]:
    num_workers = min(torch.get_num_threads(), MAX_WORKERS)
    if num_workers == 1:
        yield from map(work, starts)
        return
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, starts)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it float32 products on all devices are of float32, not of TF32 or bfloat16, and cuDNN is deterministic.

    Both of torch's settings for this, the old flags and the newer precisions, are as before afterwards.
    """
    backends: Any = torch.backends
    newer = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    newer += [backends.mkldnn.matmul, backends.mkldnn.conv]
    with ExitStack() as after:
        for one in newer:
            after.callback(_set_precision, one, one.fp32_precision)
        # The old flags first: where they and the newer ones disagree, torch raises an error when it looks.
        matmul: Any = _readable(torch.get_float32_matmul_precision)
        if matmul not in (None, "highest"):
            after.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        if _readable(lambda: backends.cudnn.allow_tf32):
            after.callback(setattr, backends.cudnn, "allow_tf32", True)
            backends.cudnn.allow_tf32 = False
        for one in newer:
            if one.fp32_precision not in ("none", "ieee"):
                one.fp32_precision = "ieee"
        for name, value in (("deterministic", True), ("benchmark", False)):
            after.callback(setattr, backends.cudnn, name, getattr(backends.cudnn, name))
            setattr(backends.cudnn, name, value)
        yield


def _set_precision(setting: Any, value: str) -> None:
    if setting.fp32_precision != value:
        setting.fp32_precision = value


def _readable(read: Callable[[], object]) -> object:
    """What the flag says, or None where the newer settings were used, which it then refuses to answer for."""
    try:
        return read()
    except RuntimeError:
        return None
