"""adm: the system of "Diffusion Models Beat GANs on Image Synthesis" (ADM, ADM-G, ADM-U).

Names are loaded when they are first used, so `import adm` costs almost nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adm.checkpoints.convert import convert
    from adm.checkpoints.load import load
    from adm.diffusion.chain import Chain, Link
    from adm.diffusion.condition import Condition
    from adm.diffusion.losses import LossTerms
    from adm.diffusion.model import Denoiser, DiffusionModel, NoisyClassifier
    from adm.diffusion.prediction import Prediction
    from adm.diffusion.schedule import Schedule, cosine, edm, flow, linear, spaced, strided
    from adm.guidance import Guidance, guide
    from adm.guidance.apg import AdaptiveProjectedGuidance
    from adm.guidance.autoguidance import Autoguidance
    from adm.guidance.classifier import ClassifierGuidance
    from adm.guidance.classifier_free import ClassifierFreeGuidance
    from adm.guidance.clean_classifier import CleanClassifierGuidance
    from adm.guidance.clip import Clip
    from adm.guidance.dynamic_threshold import DynamicThreshold
    from adm.guidance.epsilon_scaling import EpsilonScaling
    from adm.guidance.interval import Interval
    from adm.guidance.loss import LossGuidance
    from adm.guidance.perturbed_attention import PerturbedAttention
    from adm.metrics import Features, Metric, Statistics
    from adm.metrics._evaluator import Evaluator
    from adm.sampling import Noise, RecordedNoise, Sampler, SeededNoise, State, sample
    from adm.sampling.ddim import DDIM
    from adm.sampling.ddpm import DDPM
    from adm.sampling.dpm_solver_2m import DPMSolver2M
    from adm.sampling.dpm_solver_3m import DPMSolver3M
    from adm.sampling.dpm_solver_sde import DPMSolverSDE
    from adm.sampling.euler import Euler
    from adm.sampling.heun import Heun
    from adm.sampling.ipndm import IPNDM
    from adm.sampling.unipc import UniPC
    from adm.studies.evaluation import evaluate
    from adm.studies.generate import generate
    from adm.studies.upsample import upsample
    from adm.training.objectives import Objective

_HOMES = {
    "Chain": "adm.diffusion.chain",
    "Condition": "adm.diffusion.condition",
    "Denoiser": "adm.diffusion.model",
    "DiffusionModel": "adm.diffusion.model",
    "Evaluator": "adm.metrics._evaluator",
    "Features": "adm.metrics",
    "Guidance": "adm.guidance",
    "Link": "adm.diffusion.chain",
    "LossTerms": "adm.diffusion.losses",
    "Metric": "adm.metrics",
    "Noise": "adm.sampling",
    "NoisyClassifier": "adm.diffusion.model",
    "Objective": "adm.training.objectives",
    "Prediction": "adm.diffusion.prediction",
    "RecordedNoise": "adm.sampling",
    "Sampler": "adm.sampling",
    "Schedule": "adm.diffusion.schedule",
    "SeededNoise": "adm.sampling",
    "State": "adm.sampling",
    "Statistics": "adm.metrics",
    "convert": "adm.checkpoints.convert",
    "cosine": "adm.diffusion.schedule",
    "edm": "adm.diffusion.schedule",
    "evaluate": "adm.studies.evaluation",
    "flow": "adm.diffusion.schedule",
    "generate": "adm.studies.generate",
    "guide": "adm.guidance",
    "linear": "adm.diffusion.schedule",
    "load": "adm.checkpoints.load",
    "sample": "adm.sampling",
    "spaced": "adm.diffusion.schedule",
    "strided": "adm.diffusion.schedule",
    "upsample": "adm.studies.upsample",
}

_COMPONENT_ROOMS = ("adm.sampling", "adm.guidance")
"""Rooms whose every file is one component: its class is public under its own name, without an entry above."""

__all__ = [
    "DDIM",
    "DDPM",
    "IPNDM",
    "AdaptiveProjectedGuidance",
    "Autoguidance",
    "Chain",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "Clip",
    "Condition",
    "DPMSolver2M",
    "DPMSolver3M",
    "DPMSolverSDE",
    "Denoiser",
    "DiffusionModel",
    "DynamicThreshold",
    "EpsilonScaling",
    "Euler",
    "Evaluator",
    "Features",
    "Guidance",
    "Heun",
    "Interval",
    "Link",
    "LossGuidance",
    "LossTerms",
    "Metric",
    "Noise",
    "NoisyClassifier",
    "Objective",
    "PerturbedAttention",
    "Prediction",
    "RecordedNoise",
    "Sampler",
    "Schedule",
    "SeededNoise",
    "State",
    "Statistics",
    "UniPC",
    "convert",
    "cosine",
    "edm",
    "evaluate",
    "flow",
    "generate",
    "guide",
    "linear",
    "load",
    "sample",
    "spaced",
    "strided",
    "upsample",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from adm.runtime.version import version

        return version()
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'adm' has no attribute {name!r}")
    else:
        value = _component(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _component(name: str) -> Any:
    for room in _COMPONENT_ROOMS:
        package = importlib.import_module(room)
        for file in pkgutil.iter_modules(package.__path__):
            if not file.name.startswith("_"):
                module = importlib.import_module(f"{room}.{file.name}")
                if name in module.__all__:
                    return getattr(module, name)
    raise AttributeError(f"module 'adm' has no attribute {name!r}")
