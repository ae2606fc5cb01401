"""The networks, raw (x, t, label, low_res) -> output, and what describes them. Diffusion is unknown here."""

from .classifier import ClassifierConfig, EncoderClassifier
from .unet import UNet, UNetConfig

__all__ = ["ClassifierConfig", "EncoderClassifier", "UNet", "UNetConfig"]
