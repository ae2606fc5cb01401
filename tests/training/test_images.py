"""Training and validation images as a config names them, each with the classes that its own files have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adm.runtime.errors import AdmError, DataError
from adm.training.config import DataConfig
from adm.training.images import open_held_out, open_training
from adm.training.request import Request, plan

TRAINING = {"a.png": "cat", "b.png": "dog", "c.png": "dog"}
HELD_OUT = {"x.png": "dog", "y.png": "cat"}


def write(root: Path, labels: dict[str, str], folders: bool = False) -> Path:
    """An image for each label, flat or in class folders."""
    for k, (name, label) in enumerate(labels.items()):
        path = root / label / name if folders else root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 40 * k, np.uint8)).save(path)
    return root


def table(path: Path, labels: dict[str, str]) -> str:
    path.write_text("file,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))
    return str(path)


def classes(dataset: Any) -> list[str]:
    """Of each image, by its grey level, which tells the files apart."""
    order = sorted(range(len(dataset)), key=lambda i: int(dataset.image(i)[0, 0, 0]))
    return [dataset.class_names[dataset.label(i)] for i in order]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", TRAINING)


def opened(**fields: Any) -> tuple[list[str], list[str]]:
    data = DataConfig(**{name: str(value) for name, value in fields.items()})
    held_out = open_held_out(data, None)
    assert held_out is not None
    return classes(open_training(data, None)), classes(held_out)


def test_a_table_of_the_training_files_leaves_validation_to_its_own_labels(photos: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", TRAINING)
    in_folders = write(tmp_path / "folders", HELD_OUT, folders=True)
    flat = write(tmp_path / "flat", HELD_OUT)
    table(flat / "labels.csv", HELD_OUT)
    for held_out in (in_folders, flat):
        assert opened(path=photos, labels_from=labels, validation=held_out) == (["cat", "dog", "dog"], ["dog", "cat"])


def test_validation_may_have_a_table_of_its_own(photos: Path, tmp_path: Path) -> None:
    labels, own = table(tmp_path / "labels.csv", TRAINING), table(tmp_path / "held-out.csv", HELD_OUT)
    held_out = write(tmp_path / "held-out", HELD_OUT)
    fields = {"path": photos, "labels_from": labels, "validation": held_out}
    assert opened(**fields, validation_labels_from=own)[1] == ["dog", "cat"]
    with pytest.raises(DataError, match="lists 3 files that are not there"):  # the twin: the training files' table
        opened(**fields, validation_labels_from=labels)


def test_a_word_and_a_table_within_the_data_hold_for_both(tmp_path: Path) -> None:
    by_name = [{f"{label}_{name}": label for name, label in part.items()} for part in (TRAINING, HELD_OUT)]
    training, held_out = (write(tmp_path / f"{k}", part) for k, part in enumerate(by_name))
    both = (["cat", "dog", "dog"], ["dog", "cat"])
    assert opened(path=training, labels_from="prefix", validation=held_out) == both
    for root, part in ((training, by_name[0]), (held_out, by_name[1])):
        table(root / "mine.csv", part)
    assert opened(path=training, labels_from="mine.csv", validation=held_out) == both


def test_the_training_images_themselves_keep_their_table(photos: Path, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", {"a.png": "cat", "b.png": "dog"})
    assert opened(path=photos, labels_from=labels, validation=photos) == (["cat", "dog"], ["cat", "dog"])


def test_a_source_of_validation_labels_without_validation_is_refused(photos: Path, tmp_path: Path) -> None:
    asked = Request("diffusion", str(photos), tmp_path / "run", settings=("data.validation_labels_from=prefix",))
    with pytest.raises(
        AdmError, match=r"validation_labels_from prefix does nothing without data\.validation: set both"
    ):
        plan(asked)
