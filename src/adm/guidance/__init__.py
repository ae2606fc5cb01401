"""Denoiser -> denoiser: a file for each guidance, named as on the command line."""

from adm.guidance._protocol import Guidance, GuidedDenoiser, Stage, guide

__all__ = ["Guidance", "GuidedDenoiser", "Stage", "guide"]
