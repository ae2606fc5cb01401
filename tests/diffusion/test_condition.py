"""What a condition accepts."""

import pytest
import torch

import adm


@pytest.mark.parametrize("label", [["cat"], ["3"], [None], "cat", object(), [[1], [2, 3]], 1.5, [0.5], [True], 3])
def test_labels_that_are_no_whole_numbers_are_one_line(label):
    with pytest.raises(ValueError, match="whole number") as error:
        adm.Condition(label=label)
    assert "\n" not in str(error.value)


def test_labels_may_be_a_list_or_any_integers():
    for label in ([2, -1], torch.tensor([2, -1], dtype=torch.int32)):
        assert adm.Condition(label=label).label.tolist() == [2, -1]
    assert adm.Condition(label=[2, -1]).label.dtype == torch.int64
