"""What a run is worth on images that it is not trained on, by noise level, with the same noise each time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adm.data import Dataset, center_crop, class_numbers, to_model_range
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.runtime import randomness
from adm.runtime.errors import DataError, DivergedError, UsageError
from adm.runtime.text import one_line
from adm.training._noise_levels import Level, noise_levels
from adm.training._noise_picture import draw
from adm.training._validation_report import classification_report, denoising_report
from adm.training.config import ClassifierTraining, TrainConfig
from adm.training.objectives import Examples, StepNoise
from adm.training.trainer import make_objective

__all__ = ["Validation", "draw"]

NUM_IMAGES = 1000
"""Enough for one percent of accuracy over all levels; a measurement then takes about as long as training on 3,000
(diffusion) to 4,000 (classifier) images."""

CLASSIFIER_LEVELS, DENOISING_LEVELS = 8, 4

KEPT_BYTES = 256 * 2**20
"""Images are kept between measurements, cropped, when they fit into this."""

VALIDATION_DATA = "validation data"

Progress = Callable[[int, int], None]


class Validation:
    """Measures weights on a data set whenever it is called, always with the same images, timesteps and noise.

    dataset: images that are not trained on. training: those that are; it names the classes, and a denoising loss is
    measured on as many of its images with the same noise. Where both are the same data the result says so. num: at most
    so many images, spread evenly over the data; None for 1,000. A classifier takes about 400 * num * classes bytes.

    Timestep and noise of an image are functions of (seed, its number in the data) alone: a difference between two
    measurements is one between weights. Labels go by name, so `dataset` may lack classes of the training data. Raises
    DataError for data that do not fit, UsageError for a num below 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        training: Dataset | None = None,
        num: int | None = None,
        processes: int = 1,
    ) -> None:
        if num is not None and num < 1:
            raise UsageError(f"validation on {num} images: ask for at least 1.")
        network = config.network
        if len(dataset) == 0 or dataset.channels != network.in_channels:
            what = (
                f"{dataset.channels} channel(s), the network takes {network.in_channels}" if len(dataset) else "empty"
            )
            raise DataError(f"validation data {one_line(dataset.name)!r}: {what}. Give images like the training data.")
        self.config = config
        self.batch_size = config.loop.microbatch or -(-config.loop.batch_size // processes)
        self.dataset = dataset
        self.held_out = training is None or dataset.fingerprint != training.fingerprint
        self.num = min(len(dataset), NUM_IMAGES if num is None else num)
        self.class_names = None if training is None else training.class_names
        if self.class_names is not None:
            class_numbers(dataset, self.class_names, network.num_classes, VALIDATION_DATA)
        self._images = _Images(dataset, self.num, network.size)
        compared = training is not None and self.held_out and not isinstance(config, ClassifierTraining)
        self._training = _Images(training, self.num, network.size) if compared and training is not None else None

    def __call__(
        self,
        model: DiffusionModel | NoisyClassifier,
        weights: Mapping[str, Tensor],
        on_progress: Progress = lambda done, total: None,
        step: int | None = None,
        history: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The model's numbers with `weights` in its network: JSON-able, "scalars" and "lines" among them.

        The model itself is not changed, nor are the weights copied. on_progress: called with (evaluations of an image
        done, in all); what it raises ends the measurement. step and history: this measurement's training step and
        earlier results with theirs, to say which was best and whether the model has begun to overfit. Raises
        DivergedError when a value is not finite.
        """
        shown = with_weights(model, weights)
        known = model.class_names if self.class_names is None else self.class_names
        numbers = class_numbers(self.dataset, known, model.num_classes, VALIDATION_DATA)
        num_levels = CLASSIFIER_LEVELS if isinstance(model, NoisyClassifier) else DENOISING_LEVELS
        assert model.schedule is not None, "models made from a training config have a schedule"
        levels = noise_levels(model.schedule, num_levels)
        if isinstance(shown, NoisyClassifier):
            num_classes = len(known) or None
            report = classification_report(*self._classify(shown, levels, numbers, on_progress), levels, num_classes)
        else:
            report = denoising_report(*self._denoise(shown, levels, numbers, on_progress), levels)
        result = {"job": self.config.job, **self._conditions(), **report.values}
        check_finite(result)
        return report.complete(result, step, history)

    def _conditions(self) -> dict[str, Any]:
        size = len(self.dataset)
        spread = "all" if self.num == size else "spread evenly: image k is number k * num_available // num"
        return {"num": self.num, "num_available": size, "images": spread, "held_out": self.held_out}

    def _classify(
        self, model: NoisyClassifier, levels: Sequence[Level], numbers: Sequence[int], on_progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """float32 logits (num, 1 + levels, classes), first at t = 0, and labels (num,), on the CPU."""
        schedule, labels, rows = model.schedule, [], []
        assert schedule is not None
        work = _Work(self.num * (len(levels) + 1), on_progress)
        for examples, eps, index in self._batches(self._images, numbers, model.device):
            t = self._timesteps(levels, index)
            t = torch.cat([torch.zeros(len(index), 1, dtype=torch.int64), t], dim=1)
            views = []
            for column in t.unbind(1):
                views.append(model(schedule.q_sample(examples.x0, column, eps), column).float().cpu())
                work.done(len(index))
            rows.append(torch.stack(views, dim=1))
            labels.append(examples.label.cpu())
        logits = torch.cat(rows)
        if not bool(torch.isfinite(logits).all()):
            raise not_finite()
        return logits, torch.cat(labels)

    def _denoise(
        self, model: DiffusionModel, levels: Sequence[Level], numbers: Sequence[int], on_progress: Progress
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Terms of the loss by name, (num, levels) each, of these images and of as many training images."""
        sides = [(self._images, numbers)]
        if self._training is not None:
            own = self._training.dataset
            sides.append((self._training, class_numbers(own, own.class_names, model.num_classes)))
        work = _Work(self.num * len(levels) * len(sides), on_progress)
        measured = [self._losses(model, levels, images, names, work) for images, names in sides]
        return measured[0], measured[1] if len(measured) > 1 else None

    def _losses(
        self, model: DiffusionModel, levels: Sequence[Level], images: _Images, numbers: Sequence[int], work: _Work
    ) -> dict[str, Tensor]:
        # What makes training harder is no part of the task.
        assert not isinstance(self.config, ClassifierTraining)
        objective = make_objective(model, replace(self.config, label_dropout=0.0, input_perturbation=0.0))
        terms: dict[str, list[Tensor]] = {}
        for examples, eps, index in self._batches(images, numbers, model.device):
            views: dict[str, list[Tensor]] = {}
            for column in self._timesteps(levels, index).unbind(1):
                result = objective(model, examples, StepNoise(column, eps, self.config.loop.seed, index))
                for name, values in ({"loss": result.loss} | dict(result.terms)).items():
                    views.setdefault(name, []).append(values.cpu().double())
                work.done(len(index))
            for name, columns in views.items():
                terms.setdefault(name, []).append(torch.stack(columns, dim=1))
        return {name: torch.cat(parts) for name, parts in terms.items()}

    def _batches(
        self, images: _Images, numbers: Sequence[int], device: torch.device | None
    ) -> Iterator[tuple[Examples, Tensor, list[int]]]:
        """Images with labels, their eps, and the numbers of the images whose noise it is, a microbatch at a time."""
        loop = self.config.loop
        size = self.batch_size
        with torch.no_grad():
            for start in range(0, self.num, size):
                rows = range(start, min(start + size, self.num))
                index = [self._images.index(k) for k in rows]
                x0 = to_model_range(np.stack([images.image(k) for k in rows]))
                own = [images.dataset.label(images.index(k)) for k in rows]
                label = torch.tensor([numbers[y] if numbers else -1 for y in own])
                stream = "validation noise"
                eps = randomness.normal_rows(x0.shape[1:], seed=loop.seed, stream=stream, indices=index)
                yield Examples(x0.to(device), label.to(device)), eps.to(device), index

    def _timesteps(self, levels: Sequence[Level], index: Sequence[int]) -> Tensor:
        """(N, levels) int64, on the CPU: one for each image in each level."""
        stream, seed = "validation timestep", self.config.loop.seed
        u = randomness.uniform_rows((len(levels),), seed=seed, stream=stream, indices=index)
        first = torch.tensor([level.first for level in levels])
        return first + (u * (torch.tensor([level.stop for level in levels]) - first)).long()


class _Images:
    """`num` images of a data set, spread evenly over it (a smaller one repeats), centrally cropped."""

    def __init__(self, dataset: Dataset, num: int, size: tuple[int, int]) -> None:
        self.dataset = dataset
        self.num = num
        self.size = size
        self._keep = num * size[0] * size[1] * dataset.channels <= KEPT_BYTES
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def index(self, k: int) -> int:
        """The number in the data set of image k of these."""
        return k * len(self.dataset) // self.num

    def image(self, k: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C) of the network's size."""
        i = self.index(k)
        if i in self._kept:
            return self._kept[i]
        image = center_crop(self.dataset.image(i), self.size)
        if self._keep:
            self._kept[i] = image
        return image


@dataclass
class _Work:
    """Counts towards `on_progress`."""

    total: int
    on_progress: Progress
    count: int = 0

    def done(self, more: int) -> None:
        self.count += more
        self.on_progress(self.count, self.total)


def with_weights(
    model: DiffusionModel | NoisyClassifier, weights: Mapping[str, Tensor]
) -> DiffusionModel | NoisyClassifier:
    """The model in eval mode with other weights in its network, without a copy of either."""
    memo: dict[int, Any] = {}
    for name, p in model.network.named_parameters():
        memo[id(p)] = nn.Parameter(weights[name].to(p.device), requires_grad=False)
    for name, buffer in model.network.named_buffers():
        memo[id(buffer)] = weights[name].to(buffer.device) if name in weights else buffer
    shown = copy.copy(model)
    # A deep copy that finds each tensor in the memo takes that one instead.
    shown._modules = {**model._modules, "network": copy.deepcopy(model.network, memo)}
    return shown.eval()


def check_finite(result: Mapping[str, Any]) -> None:
    """DivergedError for a NaN or an infinity anywhere in it: none is written to a file."""
    try:
        json.dumps(result, allow_nan=False)
    except ValueError:
        raise not_finite() from None


def not_finite() -> DivergedError:
    return DivergedError(
        "validation: a value is not finite, though the weights are. Lower optimizer.lr, or set loop.precision=float32."
    )
