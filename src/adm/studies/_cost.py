"""What images really cost: every row that went through a network, forwards and backwards, for each image."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adm.diffusion.model import DiffusionModel, NoisyClassifier

__all__ = ["Cost", "cost_text", "counted", "models_in"]

DEPTH = 10
"""How far into things models are looked for."""

LIBRARIES = frozenset({"adm", "numpy", "torch"}) | sys.stdlib_module_names
"""Whose functions know no model by a global name."""


@dataclass
class Cost:
    """Evaluations of each image, on average over `images` of them; it grows while `counted` counts.

    network: of diffusion models, both halves of a classifier-free batch among them. classifier: of noisy classifiers
    and of any other module that guides. gradients: how many of all these were gone through backwards too.
    """

    images: int = 1
    network_rows: int = 0
    classifier_rows: int = 0
    gradient_rows: int = 0

    @property
    def network(self) -> float:
        return self.network_rows / self.images

    @property
    def classifier(self) -> float:
        return self.classifier_rows / self.images

    @property
    def gradients(self) -> float:
        return self.gradient_rows / self.images

    def per_image(self) -> dict[str, float]:
        """As it is written beside samples."""
        return {"network": self.network, "classifier": self.classifier, "gradients": self.gradients}


def cost_text(per_image: Mapping[str, float]) -> str:
    """`Cost.per_image` in words: "10 network and 10 classifier evaluations an image, 10 with gradients"."""
    network, classifier, gradients = (
        f"{per_image.get(name, 0):.4g}" for name in ("network", "classifier", "gradients")
    )
    guided = f" and {classifier} classifier" if classifier != "0" else ""
    word = "evaluation" if network == "1" and classifier in ("0", "1") else "evaluations"
    return f"{network} network{guided} {word} an image" + (f", {gradients} with gradients" if gradients != "0" else "")


@contextmanager
def counted(*things: object, images: int = 1) -> Iterator[Cost]:
    """Count what is evaluated inside the block in all models of these things: models, denoisers, guidances.

    images: by which the counts are divided. Models are found in the things' attributes and in what functions hold:
    closures, defaults, arguments bound by functools.partial and globals that they name. One that a function builds or
    looks up on its way is not.
    """
    cost = Cost(images)
    handles = [
        module.register_forward_hook(_counter(cost, is_network)) for module, is_network in _networks(things).values()
    ]
    try:
        yield cost
    finally:
        for handle in handles:
            handle.remove()


def models_in(*things: object) -> list[DiffusionModel | NoisyClassifier]:
    """The models that these hold as attributes, at any depth, each once, in order; not those inside of functions."""
    return [thing for thing in _modules(things, False) if isinstance(thing, DiffusionModel | NoisyClassifier)]


def _networks(things: object) -> dict[int, tuple[nn.Module, bool]]:
    """Each module by its identity, as models may share a network, and whether it is a diffusion model's network."""
    found: dict[int, tuple[nn.Module, bool]] = {}
    for thing in _modules(things, closures=True):
        known = isinstance(thing, DiffusionModel | NoisyClassifier)
        network: nn.Module = thing.network if known else thing  # type: ignore[assignment]
        found.setdefault(id(network), (network, isinstance(thing, DiffusionModel)))
    return found


def _modules(thing: object, closures: bool, seen: set[int] | None = None, depth: int = DEPTH) -> Iterator[nn.Module]:
    """The outermost modules in a thing, each once; closures: also those that functions hold."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    for part in _parts(thing, closures):
        yield from _modules(part, closures, seen, depth - 1)


def _parts(thing: object, closures: bool) -> list[object]:
    """What may hold a model, one level down."""
    if isinstance(thing, Tensor | type | types.ModuleType):
        return []
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__] if closures else []
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()] if closures else []
    own = list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, types.FunctionType):
        return [*own, *_held(thing)] if closures else []
    call = vars(type(thing)).get("__call__")  # a class that a function made may hold what was around it
    return [*own, call] if closures and isinstance(call, types.FunctionType) else own


def _held(function: types.FunctionType) -> list[object]:
    """What a function can reach without being given it."""
    found: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    if (function.__module__ or "").partition(".")[0] not in LIBRARIES:
        found += [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that code names, and the functions and comprehensions inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _counter(cost: Cost, is_network: bool) -> Callable[..., None]:
    def backwards(gradient: Tensor) -> None:
        cost.gradient_rows += len(gradient)

    def forwards(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        rows = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
        number = len(rows) if isinstance(rows, Tensor) and rows.ndim > 0 else 1
        if is_network:
            cost.network_rows += number
        else:
            cost.classifier_rows += number
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(backwards)

    return forwards
