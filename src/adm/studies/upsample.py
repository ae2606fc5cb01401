"""From small images to large ones: what `adm upsample` does, and the same from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adm.checkpoints.openai_flags import check_flags
from adm.checkpoints.presets import find_preset, is_preset
from adm.diffusion.grids import Steps
from adm.diffusion.model import DiffusionModel
from adm.runtime import files
from adm.runtime.errors import DataError, UsageError
from adm.runtime.text import one_line, shown_path
from adm.sampling import Sampler
from adm.studies.choices import Guidances, choose
from adm.studies.generate import batches, check_seeds, resolve_labels
from adm.studies.labels import class_number
from adm.studies.request import Request, prepare, prepare_named
from adm.studies.small_images import SmallImages, of_array, open_small

__all__ = ["channels_of", "check_small", "labels_of", "trained_size", "upsample"]

Pixels = NDArray[np.uint8]


def upsample(
    model: str | Path | DiffusionModel,
    images: str | Path | Pixels,
    labels: Sequence[int | str] | None = None,
    steps: Steps | None = None,
    sampler: str | Sampler = "ddim",
    seed: int = 0,
    guidance: Guidances = (),
    num: int | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> Pixels:
    """Enlarged images, uint8 (n, H, W, C), in the order of the small ones.

    model: an upsampler, or what `adm.load` takes. images: uint8 (n, h, w, C), or what `open_small` takes. labels: names
    or numbers, taken in turn; None for those that the images have. num: how many to make, the small images taken in
    turn. Image k depends on seed + k, on the small one and on its label alone. The rest as for `adm.generate`. Raises
    UsageError, DataError, and DivergedError where an image is not finite.
    """
    if isinstance(model, DiffusionModel):
        choice = choose(None, "a model that is passed as an object", sampler, steps, guidance)
        request = prepare(model, choice.steps, sampler, choice.guidance, kind="upsampler")
    else:
        request = prepare_named(model, steps, sampler, guidance, device, kind="upsampler")
    channels = channels_of(request)
    small = of_array(images, channels) if isinstance(images, np.ndarray) else open_small(images, channels)
    check_small(request, small)
    chosen = labels_of(request, small, labels, num)
    check_seeds(seed, len(chosen))
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}: must be at least 1.")
    return np.concatenate([b.images for b in batches(request, chosen, seed, batch_size, low_res=small.low_res)])


def channels_of(request: Request) -> int:
    """Of the images that the upsampler takes and makes."""
    if request.model.image_shape is None:
        raise UsageError("this model's network does not say what images it makes. Use a network with image_shape.")
    return request.model.image_shape[0]


def trained_size(request: Request) -> tuple[int, int] | None:
    """(height, width) of what the upsampler was trained to enlarge; None when neither its run nor its flags say."""
    if request.preset is not None:
        return _said_by(request.preset.flags)
    if request.checkpoint is None or not request.checkpoint.is_dir():
        return None
    config = _document(request.checkpoint / "config.json")
    if config.get("job") == "upsampler":
        size = config.get("low_res_size")
        return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[arg-type]
    provenance = _document(request.checkpoint / "provenance.json")
    like = provenance.get("like")
    said = _said_by(provenance["flags"]) if provenance.get("flags") else None
    return said or (_said_by(find_preset(like).flags) if isinstance(like, str) and is_preset(like) else None)


def _said_by(flags: Any) -> tuple[int, int] | None:
    size = check_flags(flags).get("small_size")
    return None if size is None else (int(size), int(size))


def _document(path: Path) -> Mapping[str, Any]:
    document = files.read_json(path) if path.exists() else None
    return document if isinstance(document, Mapping) else {}


def check_small(request: Request, small: SmallImages, where: str | Path = "the images") -> str | None:
    """A note when nothing says which size the model was trained to enlarge. Raises DataError for images of another
    size, and for a size that cannot be."""
    assert request.model.image_shape is not None  # else it has no channels either
    where, size, large = shown_path(where), small.size, request.model.image_shape[1:]
    trained = trained_size(request)
    if trained is None:
        fits = all(own > given and own % given == 0 for own, given in zip(large, size, strict=True))
        if not fits:
            raise DataError(
                f"{where}: images of {_by(size)} cannot be enlarged to {_by(large)} by this model: give images whose "
                "sides are a half, a third, a quarter, ... of that, as it was trained with"
            )
        return (
            f"the model does not say which size it was trained to enlarge to {_by(large)}; make sure that it is "
            f"{_by(size)}"
        )
    if size == trained:
        return None
    remedy = f"give images of {_by(trained)}"
    if all(given >= own for given, own in zip(size, trained, strict=True)):
        (height, width), (rows, columns) = size, trained
        average = f"image.resize(({columns}, {rows}), Image.Resampling.BOX)"
        if height % rows == 0 and width % columns == 0:
            average = f"image.reduce(({width // columns}, {height // rows}))"
        remedy = f"make them {_by(trained)} first, by averaging areas as in training (in Pillow, {average})"
    raise DataError(f"{where}: images are {_by(size)}, and the model enlarges {_by(trained)} to {_by(large)}: {remedy}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def labels_of(
    request: Request,
    small: SmallImages,
    given: Sequence[int | str] | None,
    num: int | None = None,
    where: str | Path = "the images",
) -> list[int]:
    """A label for each image that is made: of those given, in turn, else the small image's own; -1 for none.

    num: how many are made, the small images in turn; None for one of each. Labels of the images are found by the names
    of their classes where both sides have names, else taken as numbers. Raises UsageError when a model or guidance that
    needs labels gets none, and DataError for a label of the images that is no class of the model.
    """
    count = small.num if num is None else num
    if given:
        labels = resolve_labels(request, given, None)
        if len(labels) > count:
            raise UsageError(f"{len(labels)} labels for {count} images: give one for each, or fewer to take in turn.")
        return resolve_labels(request, given, count)
    if count < 1:
        raise UsageError(f"{count} images were asked for. Ask for at least 1.")
    own = [-1] * small.num if small.labels is None else small.labels.tolist()
    if request.num_classes is not None:
        own = _as_classes(request, small, own, shown_path(where))
    return [own[k % small.num] for k in range(count)]


def _as_classes(request: Request, small: SmallImages, labels: list[int], where: str) -> list[int]:
    """The labels of the images as the model's; what cannot be is refused."""
    if min(labels) < 0:
        which = "have no labels" if max(labels) < 0 else f"have no label at image {labels.index(-1)} and elsewhere"
        names = ", ".join(one_line(name, 30) for name in request.classes[:2]) or "0,1"
        raise UsageError(
            f"{where}: the model is class-conditional ({request.num_classes} classes), and the images {which}. Say "
            f"what is on them: --labels NAME for all, or --labels A,B,... for each (such as {names})."
        )
    number = {label: _class_of(request, small, label, where) for label in set(labels)}
    return [number[label] for label in labels]


def _class_of(request: Request, small: SmallImages, label: int, where: str) -> int:
    name, classes, num_classes = small.class_names.get(label), request.classes, request.num_classes or 0
    if name is None or not classes:
        if label >= num_classes:
            raise DataError(
                f"{where}: label {label} is no class of the model, which has {num_classes}: say the classes by --labels"
            )
        return label
    if label < len(classes) and classes[label] == name:
        return label
    try:
        if name.isdecimal() and name not in classes:  # folders that somebody has numbered are not numbered as these
            raise UsageError(f"class {name!r} is none of the model's.")
        return class_number(name, classes, num_classes)
    except UsageError as error:
        raise DataError(f"{where}: {error} Or say the classes by --labels.") from error
