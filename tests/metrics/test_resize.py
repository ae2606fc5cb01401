"""The resize of TensorFlow 1: its recorded values, its closed forms, and that other grids are told apart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adm.metrics._resize import tf1_resize
from golden_inception import METRICS, gathered

RECORDED = dict(np.load(METRICS / "resize_tf1.npz"))
SIZES = [tuple(int(side) for side in name.split("x")) for name in RECORDED]


def noise(height: int, width: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (1, height, width, 3)))


@pytest.mark.parametrize("i", range(len(SIZES)), ids=list(RECORDED))
def test_it_is_tensorflows_to_a_thousandth_of_a_grey_level(i):
    height, width = SIZES[i]
    truth = torch.from_numpy(RECORDED[f"{height}x{width}"])
    resized = tf1_resize(noise(height, width, 30 + i).to(torch.uint8), 299)
    assert resized.shape == (1, 299, 299, 3) and resized.dtype == torch.float32
    assert (resized[:, ::13, ::13] - truth).abs().max() < 1e-3


@pytest.mark.parametrize("size", [s for s in SIZES if s != (299, 299)], ids=str)
@pytest.mark.parametrize("antialias", [False, True])
def test_torchs_own_grid_is_not_tensorflows(size, antialias):
    truth = torch.from_numpy(RECORDED[f"{size[0]}x{size[1]}"])
    x = noise(*size, 30 + SIZES.index(size)).permute(0, 3, 1, 2).float()
    other = F.interpolate(x, (299, 299), mode="bilinear", antialias=antialias).permute(0, 2, 3, 1)
    assert (other[:, ::13, ::13] - truth).abs().max() > 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (31, 64), (128, 128), (256, 256), (299, 512), (512, 299), (600, 40)])
def test_matrix_products_are_the_four_neighbours(size):
    images = noise(*size, 3)
    truth = gathered(images, 299)
    assert (tf1_resize(images, 299, torch.float64) - truth).abs().max() < 1e-11
    assert (tf1_resize(images, 299) - truth).abs().max() < 1e-4


def test_an_image_of_the_wanted_size_stays_as_it_is():
    images = noise(299, 299, 1)
    assert torch.equal(tf1_resize(images, 299), images.float())


def test_a_ramp_is_sampled_at_i_times_in_over_out_up_to_the_last_pixel():
    side, size = 64, 299
    ramp = torch.arange(side, dtype=torch.float64)[None, None, :, None].expand(1, side, side, 3)
    expected = (torch.arange(size, dtype=torch.float64) * side / size).clamp(max=side - 1)
    across, down = (tf1_resize(x, size, torch.float64) for x in (ramp, ramp.transpose(1, 2)))
    # 1e-5: TensorFlow takes the positions in float32.
    assert (across[0, :, :, 0] - expected).abs().max() < 1e-5
    assert (down[0, :, :, 2] - expected[:, None]).abs().max() < 1e-5
    assert torch.equal(across[0, 0, -4:, 0], torch.full((4,), side - 1.0, dtype=torch.float64))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_plain_image_stays_plain(value):
    resized = tf1_resize(torch.full((2, 17, 300, 1), value, dtype=torch.uint8), 299)
    assert (resized - value).abs().max() < 1e-4


def test_an_image_does_not_depend_on_its_batch():
    images = torch.cat([noise(40, 56, seed) for seed in range(5)])
    together = tf1_resize(images, 299)
    for i in range(5):
        assert (tf1_resize(images[i : i + 1], 299)[0] - together[i]).abs().max() < 1e-4
