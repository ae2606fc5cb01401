"""What measured values say: accuracy, calibration and a guidance scale, gaps, the best step, and when to worry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adm.training._calibration import Calibration, calibrate
from adm.training._guidance_advice import guidance_advice
from adm.training._noise_levels import CERTAIN, Level

__all__ = ["Report", "classification_report", "denoising_report"]

PATIENCE = 3
"""Rises in a row after which a held-out loss is called rising; the noise is the same each time."""


@dataclass(frozen=True)
class Report:
    """values: JSON-able. criterion: which of them is best when low. scalars: for a plot over training."""

    values: dict[str, Any]
    criterion: str
    scalars: dict[str, float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    def complete(
        self, result: dict[str, Any], step: int | None, history: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """`result` with the best step so far, "overfit", "scalars" and "lines" added."""
        before = earlier(history, self.criterion, step)
        series = [*before.items(), (step, float(result[self.criterion]))]
        best_step, best = min(series, key=lambda entry: entry[1])
        rises = rises_in_a_row([value for _, value in series])
        rising, gap = rising_note(words(result, self.criterion), rises, best_step), gap_note(result, best_step, step)
        notes = [*rising, *gap]
        lines = [f"validation on {num_images(result)}: {self.lines[0]}", *self.lines[1:]]
        if not result["held_out"]:
            lines.append("measured on the training images, so better than on others: set data.validation.")
        if before and best_step != step:
            lines.append(f"lowest {words(result, self.criterion)} so far: {best:.4g}, at step {best_step}.")
        return {
            **result,
            "best": {"step": best_step, self.criterion: best},
            "overfit": {"rises_in_a_row": rises, "alarm": bool(rising or (gap and best_step != step)), "notes": notes},
            "scalars": self.scalars,
            "lines": [*lines, *notes],
        }


def classification_report(
    logits: Tensor, label: Tensor, levels: Sequence[Level], num_classes: int | None = None
) -> Report:
    """Of logits (N, 1 + levels, K), first at t = 0, and labels (N,).

    Overall values are means over the levels, which are equally likely in training; t = 0 stands beside them.
    num_classes: of the K those that exist, None for all. top-5 is measured with more than 5 classes.
    """
    num_classes = num_classes or logits.shape[2]
    right = {"accuracy": within(logits, label, 1)}
    if num_classes > 5:
        right["accuracy_top5"] = within(logits, label, 5)
    loss = torch.stack([F.cross_entropy(v.double(), label, reduction="none") for v in logits.unbind(1)], dim=1)
    measured = {**right, "cross_entropy": loss}
    chance = float(label.bincount().max()) / len(label)
    overall = calibrate(logits[:, 1:], label)
    at_levels = [calibrate(logits[:, 1 + k], label) for k in range(len(levels))]
    by_level = [level.described() | means(measured, 1 + k) | described(at_levels[k]) for k, level in enumerate(levels)]
    values: dict[str, Any] = {name: float(v[:, 1:].mean()) for name, v in measured.items()}
    values |= {f"{name}_standard_error": standard_error(v[:, 1:].mean(1)) for name, v in right.items()}
    values |= {"chance": chance, **described(overall)}
    guidance = guidance_advice(overall, [row["accuracy"] for row in by_level], levels, chance, len(label))
    scalars = {name: values[name] for name in measured}
    scalars |= {f"{name}_t0": float(v[:, 0].mean()) for name, v in measured.items()}
    scalars |= {f"{name}_level_{k + 1}": row[name] for k, row in enumerate(by_level) for name in measured}
    if values["calibrated_scale"] is not None:
        scalars["calibrated_scale"] = values["calibrated_scale"]
    top5 = f", top-5 {values['accuracy_top5']:.1%}" if "accuracy_top5" in values else ""
    at_0 = float(right["accuracy"][:, 0].mean())
    lines = (
        f"top-1 {values['accuracy']:.1%}{top5} over all noise levels ({chance:.1%} by always naming the most common "
        f"class), top-1 {at_0:.1%} at t = 0; cross-entropy {values['cross_entropy']:.3f}.",
        "top-1 from little noise to much: " + ", ".join(f"{row['accuracy']:.0%}" for row in by_level) + ".",
        guidance["advice"],
    )
    values |= {"at_t0": means(measured, 0), "levels": by_level, "guidance": guidance}
    return Report(values, "cross_entropy", scalars, lines)


def denoising_report(
    held: Mapping[str, Tensor], training: Mapping[str, Tensor] | None, levels: Sequence[Level]
) -> Report:
    """Of terms by name, (N, levels) each, "loss" among them; row k of both sides has the same timesteps and noise."""
    by_level = [level.described() | losses_of(held, training, k) for k, level in enumerate(levels)]
    whole = losses_of(
        {name: v.mean(1, keepdim=True) for name, v in held.items()},
        None if training is None else {name: v.mean(1, keepdim=True) for name, v in training.items()},
        0,
    )
    names = [name for name in (*held, "training_loss", "gap") if name in whole]
    scalars = {name: whole[name] for name in names}
    shown = [name for name in ("loss", "training_loss", "gap") if name in whole]
    scalars |= {f"{name}_quartile_{k + 1}": row[name] for k, row in enumerate(by_level) for name in shown}
    line = f"loss {with_error(whole, 'loss')}"
    if training is not None:
        line += f", on training images {whole['training_loss']:.4g}: gap {with_error(whole, 'gap')}"
    quarters = ", ".join(f"{row['loss']:.3g}" for row in by_level)
    return Report(
        whole | {"levels": by_level}, "loss", scalars, (f"{line}.", f"from little noise to much: {quarters}.")
    )


def losses_of(held: Mapping[str, Tensor], training: Mapping[str, Tensor] | None, k: int) -> dict[str, Any]:
    """Means of column k; the gap's standard error is over pairs of images with the same noise."""
    found: dict[str, Any] = {name: float(values[:, k].mean()) for name, values in held.items()}
    found["loss_standard_error"] = standard_error(held["loss"][:, k])
    if training is not None:
        gap = held["loss"][:, k] - training["loss"][:, k]
        found |= {"training_loss": float(training["loss"][:, k].mean()), "gap": float(gap.mean())}
        found["gap_standard_error"] = standard_error(gap)
    return found


def rising_note(what: str, rises: int, best_step: int | None) -> list[str]:
    """A line when the loss on images that are not trained on has been rising for long."""
    if rises < PATIENCE:
        return []
    return [
        f"{what} has risen {rises} measurements in a row: the model overfits. Step {best_step} was the "
        "best; stop, or train on more images, with more regularization or a smaller network."
    ]


def gap_note(result: Mapping[str, Any], best_step: int | None, step: int | None) -> list[str]:
    """A line when training images are certainly easier than others, at one noise level at least.

    By level too, because losses at little noise vary so much that they may hide the others.
    """
    found = [row for row in (result, *result["levels"]) if row.get("gap_standard_error") is not None]
    certain = [row for row in found if row["gap"] > CERTAIN * row["gap_standard_error"]]
    if not certain:
        return []
    row = certain[0]
    where = f" at t = {row['t'][0]} to {row['t'][1]}" if "t" in row else ""
    what = (
        f"training images have a loss {row['gap'] / row['loss']:.1%} below others{where} (gap {with_error(row, 'gap')})"
    )
    if best_step == step:
        return [f"{what}: the model learns them by heart, or the others are of another kind; no harm while loss falls."]
    return [f"{what}, and the loss of the others was lowest at step {best_step}: the model overfits."]


def earlier(history: Sequence[Mapping[str, Any]], criterion: str, step: int | None) -> dict[int, float]:
    """The criterion by step, of the steps before this one, in their order; a step measured twice counts once."""
    found: dict[int, float] = {}
    for line in history:
        at, value = line.get("step"), line.get(criterion)
        if isinstance(at, int) and isinstance(value, int | float) and (step is None or at < step):
            found[at] = float(value)
    return dict(sorted(found.items()))


def rises_in_a_row(values: Sequence[float]) -> int:
    """How many of the last differences are above 0, counted from the end."""
    count = 0
    for before, after in zip(values[-2::-1], values[:0:-1], strict=False):
        if after <= before:
            break
        count += 1
    return count


def within(logits: Tensor, label: Tensor, k: int) -> Tensor:
    """(N, views): 1 where the label is among the k largest logits."""
    return (logits.topk(k, dim=2).indices == label[:, None, None]).any(2).double()


def means(measured: Mapping[str, Tensor], view: int) -> dict[str, float]:
    return {name: float(values[:, view].mean()) for name, values in measured.items()}


def described(calibration: Calibration) -> dict[str, Any]:
    """calibrated_scale is None where no finite one is the best."""
    return {
        "calibrated_scale": None if math.isinf(calibration.scale) else calibration.scale,
        "calibrated_scale_standard_error": calibration.standard_error,
        "calibrated_cross_entropy": calibration.cross_entropy,
    }


def standard_error(values: Tensor) -> float | None:
    """Of the mean of (N,) values; None for a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def with_error(found: Mapping[str, Any], name: str) -> str:
    error = found[f"{name}_standard_error"]
    return f"{found[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def num_images(result: Mapping[str, Any]) -> str:
    which = "held-out " if result["held_out"] else ""
    of = "" if result["num"] == result["num_available"] else f" of {result['num_available']}"
    return f"{result['num']}{of} {which}images"


def words(result: Mapping[str, Any], criterion: str) -> str:
    return ("held-out " if result["held_out"] else "") + criterion.replace("_", "-")
