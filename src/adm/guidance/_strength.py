"""Strengths of guidance are numbers."""

from __future__ import annotations

import math

__all__ = ["check_finite", "check_scale", "check_weight"]


def check_finite(name: str, value: float, meaning: str) -> None:
    """Raise ValueError for inf and nan, which would make images of nan; meaning: of some values, to choose by."""
    if not math.isfinite(value):
        raise ValueError(f"{name} {value}: choose a number; {meaning}")


def check_scale(scale: float) -> None:
    """`check_finite` for a strength that is added."""
    check_finite("scale", scale, "0 is no guidance, 2 is twice as strong as 1")


def check_weight(weight: float) -> None:
    """`check_finite` for a strength of an extrapolation."""
    check_finite("weight", weight, "1 is no guidance, 2 doubles the difference")
