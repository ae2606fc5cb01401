"""What to say when memory runs out in the middle of training."""

from __future__ import annotations

import torch

from adm.runtime.device import available_memory
from adm.runtime.text import one_line
from adm.training.config import TrainConfig
from adm.training.cost import microbatch_that_fits

__all__ = ["too_little_memory"]

USABLE = 0.9
"""Of the memory: allocators lose some in pieces that are too small."""


def too_little_memory(
    config: TrainConfig, step: int, error: BaseException, device: torch.device, processes: int = 1
) -> str:
    """One line with the microbatch that fits, by shapes, or half of the present one where shapes say that it should
    have fitted (something else uses the memory)."""
    share = -(-config.loop.batch_size // processes)
    now = min(config.loop.microbatch or (1 if config.loop.exact else share), share)
    available = available_memory(device)
    fits = None if available is None else microbatch_that_fits(config, int(USABLE * available), processes)
    what = f"out of memory in step {step}, with {now} images at once ({one_line(error, 120) or 'no more was given'})"
    if now == 1:
        return (
            f"{what}. One image is the least: use a smaller network, --set network.checkpoint_blocks=true in a new run."
        )
    smaller = fits if fits is not None and fits < now else max(1, now // 2)
    same = "" if config.loop.exact else ", and the update is the same"
    return f"{what}. Add --set loop.microbatch={smaller} to the same command: it continues{same}."
