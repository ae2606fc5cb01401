"""Bits per dimension of a data set: an even spread of it, and the noise of an image its own."""

import numpy as np
import pytest
import torch

import adm
from adm.diffusion.likelihood import bits_per_dim
from adm.runtime.errors import DivergedError
from adm.studies.likelihood import conditions_line, measure_likelihood


class Sorted:
    """Twelve grey images, sorted by class; image i is 20 * i everywhere, and is noted when it is asked for."""

    name, channels, class_names, fingerprint, default_flip = "sorted", 1, ("dark", "mid", "light"), "", False

    def __init__(self, size=(4, 4)):
        self.size, self.seen = size, []

    def __len__(self):
        return 12

    def image(self, i):
        self.seen.append(i)
        return np.full((*self.size, 1), 20 * i, np.uint8)

    def label(self, i):
        return i // 4


@pytest.fixture
def model():
    class Half(torch.nn.Module):
        image_shape = (1, 4, 4)

        def forward(self, x, t, label, low_res):
            return x / 2  # so that the noise matters

    return adm.DiffusionModel(Half(), adm.cosine(20), mean="x0", variance="small")


def test_a_subset_is_spread_evenly_over_sorted_data(model):
    data = Sorted()
    result = measure_likelihood(model, data, num=3, batch_size=2)
    assert data.seen == [0, 4, 8]  # one of each class, where the first three would all be dark
    assert (result["num"], result["num_available"], result["num_resized"]) == (3, 12, 0)
    everything = Sorted()
    assert measure_likelihood(model, everything, num=99)["images"] == "all" and everything.seen == list(range(12))


def test_it_is_the_bound_of_the_core_with_the_noise_of_each_image_its_own(model):
    chain, clipped = adm.Chain(model.schedule, range(20)), adm.guide(model, adm.Clip())
    alone = [
        float(
            bits_per_dim(clipped, chain, torch.full((1, 1, 4, 4), 20 * i / 127.5 - 1), adm.SeededNoise([7 + i])).total
        )
        for i in (0, 4, 8)
    ]
    for batch_size in (1, 2, 3):
        result = measure_likelihood(model, Sorted(), num=3, batch_size=batch_size, seed=7)
        assert result["bits_per_dim"] == pytest.approx(np.mean(alone), rel=1e-5)
        assert result["standard_error"] == pytest.approx(np.std(alone, ddof=1) / 3**0.5, rel=1e-5)


def test_images_of_another_size_are_counted(model):
    assert measure_likelihood(model, Sorted((5, 8)), num=4)["num_resized"] == 4


def test_what_is_said_of_the_number_names_what_was_changed(model):
    def said(data, **options):
        return conditions_line(measure_likelihood(model, data, **options), (1, 4, 4))

    assert said(Sorted()) == "12 images"
    assert said(Sorted(), num=3) == "3 of 12 images, spread evenly"
    assert said(Sorted((8, 8)), num=12) == "12 images; cropped and scaled to 4x4, so not of the data as they are"
    assert said(Sorted(), steps=5) == (
        "12 images; 5 of 20 timesteps: another bound than that of all, compare only alike"
    )


def test_a_bound_that_is_not_finite_is_no_number(model):
    data = Sorted()
    model.network.forward = lambda x, t, label, low_res: torch.where(x.mean((1, 2, 3), True) < 0.5, x / 2, torch.nan)
    with pytest.raises(
        DivergedError, match=r"^sorted: the bound of image (9|10|11) is not finite\. Take another checkpoint\.$"
    ):
        measure_likelihood(model, data)
