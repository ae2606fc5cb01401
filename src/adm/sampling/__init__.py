"""The one loop, noise, and a file for each sampler. A component file's name is the sampler's name."""

from adm.sampling._loop import StepEvent, sample, timesteps_for
from adm.sampling._noise import Noise, RecordedNoise, SeededNoise
from adm.sampling._protocol import Denoise, Draw, Sampler, State, guided

__all__ = [
    "Denoise",
    "Draw",
    "Noise",
    "RecordedNoise",
    "Sampler",
    "SeededNoise",
    "State",
    "StepEvent",
    "guided",
    "sample",
    "timesteps_for",
]
