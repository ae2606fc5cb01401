"""Known answers, checked one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

__all__ = ["report"]


def report(checks: Mapping[str, Callable[[torch.device], str | None]], device: torch.device) -> int:
    """Print what each check found, None being nothing wrong; returns the exit code."""
    failed = 0
    for name, check in checks.items():
        problem = check(device)
        failed += problem is not None
        print(f"{'ok  ' if problem is None else 'FAIL'} {name}" + ("" if problem is None else f": {problem}"))
    print(f"{len(checks) - failed} of {len(checks)} checks passed on {device}")
    return 1 if failed else 0
