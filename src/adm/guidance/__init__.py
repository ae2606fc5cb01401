"""Denoiser -> denoiser: a file for each guidance, named as on the command line."""

from adm.guidance._calibration import fit_temperature, smoothed
from adm.guidance._protocol import Guidance, GuidedDenoiser, Stage, guide

__all__ = ["Guidance", "GuidedDenoiser", "Stage", "fit_temperature", "guide", "smoothed"]
