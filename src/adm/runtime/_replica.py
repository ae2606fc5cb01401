"""A network whose gradients are summed over the processes of a job."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket, ProcessGroup, all_reduce
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Replica", "summing"]


class Replica(DistributedDataParallel):
    """The network, the same in each process; `backward` leaves the sum over the processes of each gradient.

    A sum and no mean: each process divides by the number of images of all, so shares may differ in size. Attributes
    and `state_dict` are the network's.
    """

    def __init__(self, network: nn.Module, device: torch.device, group: ProcessGroup | None) -> None:
        super().__init__(
            network,
            device_ids=None if device.type == "cpu" else [device],
            process_group=group,
            gradient_as_bucket_view=True,
        )
        self.register_comm_hook(group, _sum)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        return self.module.load_state_dict(*args, **options)


# No `from __future__ import annotations` in this file: torch compares the annotations of the function with its types.
def _sum(group: ProcessGroup, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    future = all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def summing(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a microbatch: only in the last one do the processes exchange gradients."""
    return nullcontext() if last or not isinstance(network, Replica) else network.no_sync()
