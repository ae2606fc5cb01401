"""With which scale to begin guiding by a classifier, from how it is calibrated."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adm.runtime.errors import UsageError
from adm.runtime.lookup import parse_spec
from adm.training._calibration import Calibration
from adm.training._noise_levels import CERTAIN, Level

__all__ = ["guidance_advice", "naming_run"]


def guidance_advice(
    overall: Calibration, accuracy: Sequence[float], levels: Sequence[Level], chance: float, num: int
) -> dict[str, Any]:
    """A scale to start with, None where the classifier is too weak to guide, and the advice in words.

    overall: over all levels. accuracy: in each, on num images. chance: of always naming the most common class.
    Guidance follows s grad log p; multiplied by the calibrated scale, log p is as sure as it is right, which makes that
    scale the unit of s (the paper's own are from 0.5 to 10, ADM section 4.3).
    """
    k = min(range(len(levels)), key=lambda k: abs(levels[k].log_snr))
    found = {"equal_signal_and_noise": levels[k].described() | {"accuracy": accuracy[k]}}
    weakness = why_weak(overall, accuracy[k], levels[k], chance, num)
    if weakness is not None:
        advice = f"the classifier is too weak to guide: {weakness}. Train it longer, or on more images."
        return found | {"weak": True, "scale": None, "advice": advice}
    # A classifier that is never wrong on these images leaves nothing to calibrate with.
    scale = 1.0 if math.isinf(overall.scale) else float(f"{overall.scale:.2g}")
    advice = (
        f"the classifier is {confidence(overall)}; start with --guidance {guidance_spec('RUN', scale)} on a "
        "model that knows the classes (the paper used 0.5 to 4), and well above on one that does not (the paper "
        "used 10)."
    )
    return found | {"weak": False, "scale": scale, "advice": advice}


def naming_run(line: str, run: Path) -> str:
    """The line with the run's directory in place of RUN, so that what it advises can be copied to a shell.

    What is recorded says RUN: a run has the same files wherever it lies, and may be moved.
    """
    match = re.search(rf"--guidance {re.escape(guidance_spec('RUN', 0.0).rpartition('=')[0])}=(\S+)", line)
    name = str(run)
    if match is None or not name.isprintable():
        return line
    spec = guidance_spec(name, float(match[1]))
    try:
        copies = parse_spec(spec).options.get("classifier") == name
    except UsageError:
        copies = False
    return line.replace(match[0], f"--guidance {shlex.quote(spec)}") if copies else line


def guidance_spec(run: str, scale: float) -> str:
    """As adm sample takes it."""
    return f"classifier:classifier={run},scale={scale:g}"


def why_weak(overall: Calibration, accuracy: float, level: Level, chance: float, num: int) -> str | None:
    """The reason why nothing certain is known of the classes; None where something is.

    level: the one whose log-SNR is nearest to 0, where signal and noise are equally strong.
    """
    if accuracy - chance <= CERTAIN * math.sqrt(chance * (1 - chance) / num):
        return (
            f"top-1 is {accuracy:.1%} where signal and noise are equally strong ({level}), and always naming the most "
            f"common class gives {chance:.1%}"
        )
    error = overall.standard_error or 0.0
    if overall.scale <= CERTAIN * error:
        return f"the best scale of its log-probabilities, {overall.scale:.2f} ± {error:.2f}, cannot be told from 0"
    return None


def confidence(calibration: Calibration) -> str:
    if math.isinf(calibration.scale):
        return "right on every image"
    error = calibration.standard_error or 0.0
    shown = f"best calibrated at {calibration.scale:.2f} ± {error:.2f} times its log-probabilities"
    if abs(calibration.scale - 1) <= CERTAIN * error:
        return f"calibrated ({shown})"
    return f"{'too sure' if calibration.scale < 1 else 'too unsure'} of itself ({shown})"
