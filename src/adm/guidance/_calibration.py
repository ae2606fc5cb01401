"""Making an ordinary classifier fit to guide: its probabilities honest, its gradients smooth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from adm.diffusion.model import NoisyClassifier, of_label
from adm.guidance.classifier import Classifier
from adm.runtime.errors import is_out_of_memory
from adm.runtime.text import one_line

__all__ = ["ImageClassifier", "fit_temperature", "logits_of", "smoothed"]

ImageClassifier = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) -> logits (N, K)."""

Module = TypeVar("Module", bound=nn.Module)
TEMPERATURES = (1e-4, 1e4)


def logits_of(classifier: Classifier | ImageClassifier, images: Tensor) -> Tensor:
    """Logits (N, K) in the dtype of the images, (N, C, H, W). A noisy classifier is asked at t = 0, almost clean.

    Raises ValueError for anything but one row of logits to an image, for a classifier that fails on such images, and
    for a module in training mode.
    """
    if isinstance(classifier, nn.Module) and any(map(_depends_on_mode, classifier.modules())):
        raise ValueError("the classifier is in training mode, where it mixes or drops: call classifier.eval() first")
    parameters = getattr(classifier, "parameters", None)
    first = None if parameters is None else next(iter(parameters()), None)
    x = images if first is None else images.to(first.dtype)
    try:
        if isinstance(classifier, NoisyClassifier) or hasattr(classifier, "grad_log_prob"):
            logits = cast(Callable[[Tensor, int], Tensor], classifier)(x, 0)
        else:
            logits = classifier(x)
    except RuntimeError as error:  # torch's, for shapes that do not fit
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the classifier cannot take images of shape {tuple(x.shape)} ({one_line(error, 150)}): give one for such "
            "images, or a function that converts them before it asks"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the classifier returned {shape} for {len(images)} images: it must return logits of shape "
            f"({len(images)}, num_classes)"
        )
    return logits.to(images.dtype)


@torch.no_grad()
def fit_temperature(
    classifier: Classifier | ImageClassifier, images: Tensor, labels: Tensor, batch_size: int = 64
) -> float:
    """The temperature at which softmax(logits / temperature) gives these labels the highest likelihood (Guo et al.
    2017, section 4.2). The larger it is, the more the classifier overstates what it knows.

    classifier: as CleanClassifierGuidance takes it, or the `logits` of one, with its normalisation. images:
    (N, C, H, W) in [-1, 1], that it has not been trained on; labels: (N,). Raises ValueError where no temperature is
    best: for a classifier that no image contradicts, which would be ever surer, and for one that knows less than
    nothing.
    """
    if len(images) == 0 or tuple(labels.shape) != (len(images),):
        raise ValueError(
            f"{tuple(labels.shape)} labels for {len(images)} images: give at least one image, a label to each"
        )
    batches = images.split(batch_size)
    logits = torch.cat([logits_of(classifier, batch).double().cpu() for batch in batches])
    if bool((labels.cpu() < 0).any()):
        raise ValueError("label -1 is no class: fit the temperature on images whose classes are known")
    correct = of_label(logits, labels.cpu())

    def slope(temperature: float) -> float:
        """d NLL / d (1 / temperature): the mean logit that is expected less the one that is right; rises with 1 / T."""
        return float(((logits / temperature).softmax(1) * logits).sum(1).mean() - correct.mean())

    low, high = TEMPERATURES
    if slope(low) <= 0:
        raise ValueError(
            "no image contradicts the classifier, so no temperature is best: give it more images, unseen ones"
        )
    if slope(high) >= 0:
        raise ValueError(
            "the classifier does no better than chance here: check the order of its classes, and how it wants images "
            "normalised"
        )
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low * high) ** 0.5


def smoothed(module: Module, beta: float = 3.0) -> Module:
    """The module, on the same weights, with Softplus(beta) in place of each nn.ReLU: a classifier whose gradient varies
    smoothly guides better (EluCD, Ma et al. 2023). As beta grows it becomes the module again.

    Raises ValueError for a module without nn.ReLU: one that calls torch.relu by itself cannot be changed from outside.
    """
    if not beta > 0:
        raise ValueError(f"beta {beta}: choose a positive number; 3 was published")
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    smooth = copy.deepcopy(module, shared)
    # Not named_children(), which leaves out the second place of an activation that is used twice.
    places = [(parent, name) for parent in smooth.modules() for name, m in parent._modules.items() if _is_relu(m)]
    if not places:
        raise ValueError(
            f"a {type(module).__name__} has no nn.ReLU to smooth: write its activations as modules, or guide with it "
            "as it is"
        )
    for parent, name in places:
        setattr(parent, name, nn.Softplus(beta=beta))
    return smooth


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether it is in training mode and computes something else there."""
    dropout, batch_norm = nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm
    return module.training and (isinstance(module, batch_norm) or (isinstance(module, dropout) and module.p > 0))


def _is_relu(module: nn.Module | None) -> bool:
    return isinstance(module, nn.ReLU)
