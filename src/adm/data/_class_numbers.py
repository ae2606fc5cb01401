"""The classes of one data set in the numbers of a model that was trained on another."""

from __future__ import annotations

from collections.abc import Sequence

from adm.data._dataset import Dataset
from adm.runtime.errors import DataError
from adm.runtime.text import nearest, one_line

__all__ = ["class_numbers"]


def class_numbers(dataset: Dataset, known: Sequence[str], num_classes: int | None, what: str = "") -> list[int]:
    """The model's number for each class of the data, by name where both have names; empty for a model without classes.

    known: the names of the model's classes, in order; none where they are not known, and then numbers are taken as they
    are. what: what the data are, for a message. Raises DataError for data without classes, or with others.
    """
    names, where = dataset.class_names, one_line(dataset.name)
    where = f"{what} {where!r}" if what else where
    if num_classes is None:
        return []
    if not names:
        raise DataError(
            f"{where}: no classes, but the model was trained with {num_classes}. "
            "Put the images of each class into a folder of its own, or give a table of labels."
        )
    if not known:
        if len(names) > num_classes:
            raise DataError(
                f"{where}: {len(names)} classes, but the model has {num_classes}. Give data of its classes."
            )
        return list(range(len(names)))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"{where}: the model knows no class {one_line(unknown[0], 40)!r}{nearest(unknown[0], known)} "
            f"Its classes are {one_line(', '.join(known), 120)}. Rename it, or take it out."
        )
    return [list(known).index(name) for name in names]
