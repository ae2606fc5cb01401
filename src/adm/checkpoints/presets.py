"""Named public models: the checkpoints that OpenAI released, by names such as "openai/imagenet64"."""

from __future__ import annotations

from adm.checkpoints import _released_2021_03, _released_2021_07, imagenet
from adm.checkpoints._preset import Preset, Recommended, Score
from adm.checkpoints.openai_flags import Spec, read_flags
from adm.runtime.errors import UsageError
from adm.runtime.text import nearest, one_line

__all__ = ["PRESETS", "Preset", "Recommended", "Score", "class_names", "find_preset", "is_preset", "preset_spec"]

PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (*_released_2021_07.PRESETS, *_released_2021_03.PRESETS)
}


def is_preset(text: str) -> bool:
    """Whether this is a preset's name."""
    return text in PRESETS


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises UsageError, with the most similar name, if there is none."""
    if name in PRESETS:
        return PRESETS[name]
    owned = f"openai/{name}"  # what is forgotten most
    hint = f"; did you mean {owned!r}?" if owned in PRESETS else nearest(name, PRESETS)
    raise UsageError(f"there is no preset {one_line(name, 60)!r}{hint} List them with `adm models list`.")


def preset_spec(preset: Preset) -> Spec:
    """What the preset's flags say."""
    return read_flags(preset.flags, preset.kind)


def class_names(preset: Preset) -> tuple[str, ...]:
    """The names of its classes in the order of its labels; none if it has no labels."""
    return imagenet.NAMES if preset.class_table == "imagenet" else ()
