"""What is known of a released checkpoint beside its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """What the authors report; None for what they do not. conditions: how the images were made."""

    conditions: str
    fid: float
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Recommended:
    """Settings that the authors used: steps of a sampler, and with the preset's classifier the guidance scale."""

    sampler: Literal["ddpm", "ddim"]
    steps: int
    scale: float | None = None


@dataclass(frozen=True)
class Preset:
    """A released checkpoint.

    file: its name, there and in the cache; url: where it was published; flags: the released flag string, complete.
    num_parameters: of its network, which need not be built to know its size. image_size: pixels of what comes out, or
    of what a classifier takes. class_table: the names of its labels. recommended: the first for a sampler is its
    default. classifier, upsampler: the presets that go with it; base: the preset whose images an upsampler takes;
    guides: the presets that a classifier guides. licence, limits: of the weights. unverified: what has not been seen to
    hold for the file itself.
    """

    name: str
    what: str
    kind: Literal["diffusion", "classifier", "upsampler"]
    file: str
    url: str
    flags: str
    num_parameters: int
    image_size: int
    licence: str
    limits: str
    class_table: Literal["imagenet"] | None = None
    scores: tuple[Score, ...] = ()
    recommended: tuple[Recommended, ...] = ()
    classifier: str | None = None
    upsampler: str | None = None
    base: str | None = None
    guides: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
