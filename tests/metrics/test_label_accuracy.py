"""The share of samples that show what was asked for."""

import pytest
import torch

from adm.metrics._features import Features
from adm.metrics.label_accuracy import LabelAccuracy
from adm.runtime.errors import UsageError


def judged(asked: list[int] | None, read: list[int] | None) -> Features:
    column = [None if x is None else torch.tensor(x) for x in (asked, read)]
    return Features(torch.ones(4, 2), "judge", label=column[0], predicted=column[1])


def test_three_of_four():
    assert LabelAccuracy()(judged([0, 1, 2, 3], [0, 1, 2, 0])) == {"label_accuracy": 0.75}


@pytest.mark.parametrize("asked, read", [(None, [0] * 4), ([0] * 4, None), ([0, 1, -1, 2], [0] * 4)])
def test_what_was_not_asked_or_not_read_cannot_be_right(asked, read):
    with pytest.raises(UsageError, match="label"):
        LabelAccuracy()(judged(asked, read))


def test_each_class_by_itself():
    scores = LabelAccuracy(per_class=True)(judged([0, 0, 2, 2], [0, 1, 2, 2]))
    assert scores == {"label_accuracy": 0.75, "label_accuracy_0": 0.5, "label_accuracy_2": 1.0}
