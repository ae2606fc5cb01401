"""What a sample is conditioned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Condition"]


@dataclass(frozen=True, eq=False)
class Condition:
    """Conditions of a batch of N images; what is not given is None.

    label: (N,) int64 class numbers, -1 for "no label"; a list is accepted. low_res: (N, C, h, w) in [-1, 1], what an
    upsampler enlarges. extra: further tensors with N rows each, by name, for denoisers and guidance of your own.
    """

    label: Tensor | None = None
    low_res: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.label is None:
            return
        try:
            label = torch.as_tensor(self.label)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "labels must be whole numbers, one per image: look a class's name up with model.class_names.index(name)"
            ) from None
        if label.ndim != 1 or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(f"labels of shape {tuple(label.shape)} and {label.dtype}: give one whole number per image")
        object.__setattr__(self, "label", label.long())

    def __getitem__(self, rows: int | slice | Tensor) -> Condition:
        """The conditions of some images, by slice, mask, indices, or the number of one image."""
        some = slice(rows, rows + 1 or None) if isinstance(rows, int) else rows
        return self._map(lambda tensor: tensor[some])

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda tensor: tensor.to(device))

    def cat(self, *others: Condition) -> Condition:
        """These conditions and then the others'; all must have the same fields."""
        conditions = (self, *others)
        for name in ("label", "low_res"):
            if len({getattr(c, name) is None for c in conditions}) > 1:
                raise ValueError(f"cannot join conditions with and without {name}: give it to all or to none")
        if len({frozenset(c.extra) for c in conditions}) > 1:
            raise ValueError("cannot join conditions with different extra names: give the same to all")
        return Condition(
            label=_cat([c.label for c in conditions if c.label is not None]),
            low_res=_cat([c.low_res for c in conditions if c.low_res is not None]),
            extra={name: torch.cat([c.extra[name] for c in conditions]) for name in self.extra},
        )

    def null(self) -> Condition:
        """The same without class: every label is -1."""
        label = None if self.label is None else torch.full_like(self.label, -1)
        return Condition(label=label, low_res=self.low_res, extra=self.extra)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(
            label=None if self.label is None else change(self.label),
            low_res=None if self.low_res is None else change(self.low_res),
            extra={name: change(tensor) for name, tensor in self.extra.items()},
        )


def _cat(tensors: list[Tensor]) -> Tensor | None:
    return torch.cat(tensors) if tensors else None
