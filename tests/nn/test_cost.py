"""What networks cost, against counts of the released code, the paper's rounded sizes and sums done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adm.checkpoints.presets import PRESETS, preset_spec
from adm.nn import ClassifierConfig, UNet, UNetConfig
from adm.nn.cost import Cost, _Tally, cost

RELEASED = json.loads((Path(__file__).parents[1] / "golden" / "released" / "presets.json").read_text())["files"]
# adm-spec 1.10: parameters in millions, GFLOPs of a forward pass; None: not in its table.
TABLE = {
    "openai/imagenet64": (295.90, 219.4),
    "openai/imagenet128": (421.53, 613.9),
    "openai/imagenet256": (553.84, 2239.7),
    "openai/imagenet256-uncond": (552.81, 2239.7),
    "openai/imagenet512": (559.00, 3964.7),
    "openai/imagenet64-to-256": (311.80, 1263.3),
    "openai/imagenet128-to-512": (308.84, 5009.6),
    "openai/imagenet64-classifier": (65.44, 38.2),
    "openai/imagenet128-classifier": (42.57, 42.1),
    "openai/imagenet256-classifier": (54.10, 146.7),
    "openai/imagenet512-classifier": (54.45, 225.5),
    "openai/iddpm-imagenet64-uncond": None,
    "openai/iddpm-imagenet64": None,
    "openai/iddpm-cifar10-uncond": None,
    "openai/iddpm-imagenet64-to-256": None,
    "openai/iddpm-lsun-bs128": None,
}
QUICK = ("openai/imagenet64", "openai/imagenet512-classifier", "openai/imagenet64-to-256", "openai/iddpm-lsun-bs128")


def skipped_by_the_pool(config: UNetConfig | ClassifierConfig) -> int:
    """FLOPs that the released attention pool spends on tokens other than the first, whose results it drops."""
    if isinstance(config, UNetConfig):
        return 0
    tokens = (config.size[0] // 2 ** (config.num_levels - 1)) ** 2 + 1
    channels = config.level_channels[-1]
    attention, projection = 2 * tokens * channels, channels * config.num_classes
    return 2 * (tokens - 1) * (attention + projection)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE]
)
def test_released_networks_cost_what_the_released_code_counts(name: str):
    preset, expected = PRESETS[name], TABLE[name]
    config = preset_spec(preset).network
    found, released = cost(config), RELEASED[preset.file]
    assert found.num_parameters == released["num_parameters"]
    assert found.forward_flops + skipped_by_the_pool(config) == released["forward_flops"]
    if expected is not None:
        assert round(found.num_parameters / 1e6, 2) == expected[0]
        assert abs(released["forward_flops"] / 1e9 - expected[1]) < 0.051
    # Of the last decoder stage alone: its input with the skip, and a tensor of its width, both at full size.
    assert found.peak_bytes > 4 * config.size[0] * config.size[1] * config.level_channels[0] * 3


SMALL = UNetConfig(
    image_size=8,
    in_channels=3,
    model_channels=32,
    channel_mult=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    out_channels=6,
)
WIDER = replace(SMALL, image_size=64, channel_mult=(1, 2))


def test_a_small_network_counted_by_hand():
    c, e, pixels = 32, 128, 64
    conv3 = lambda i, o: 9 * i * o + o  # noqa: E731
    linear = lambda i, o: i * o + o  # noqa: E731
    block = lambda i: 2 * i + conv3(i, c) + linear(e, 2 * c) + 2 * c + conv3(c, c) + (linear(i, c) if i != c else 0)  # noqa: E731
    attention = 2 * c + linear(c, 3 * c) + linear(c, c)
    parameters = linear(c, e) + linear(e, e) + conv3(3, c) + 3 * block(c) + attention + 2 * block(2 * c)
    parameters += 2 * c + conv3(c, 6)
    macs = c * e + e * e + 9 * 3 * c * pixels + 9 * c * 6 * pixels
    macs += 3 * (2 * 9 * c * c * pixels + e * 2 * c) + 2 * (
        (2 + 1) * 9 * c * c * pixels + e * 2 * c + 2 * c * c * pixels
    )
    macs += 4 * c * c * pixels + 2 * pixels * pixels * c
    found = cost(SMALL)
    assert (found.num_parameters, found.forward_flops) == (parameters, 2 * macs)


def test_memory_counts_what_lives_and_grows_with_the_pixels():
    weight, x = torch.empty(1000, 1000, device="meta"), torch.empty(4, 1000, device="meta")
    with _Tally([weight, x]) as memory:
        y = x @ weight  # 16 kB
        z = y.view(2, 2, 1000)  # the same memory
        w = y + 1  # 16 kB more
        assert memory.live == memory.peak == 32_000
        del y, z
        assert memory.live == 16_000
        w = (w * 2).sum()  # 16 kB more for the product, 4 bytes for the sum
        assert (memory.live, memory.peak) == (4, 32_004)
    small, large = cost(SMALL), cost(replace(SMALL, image_size=16))
    assert 3.5 < large.peak_bytes / small.peak_bytes < 4.5
    assert large.num_parameters == small.num_parameters


def test_counting_makes_no_memory_and_draws_nothing():
    state = torch.get_rng_state()
    config = UNetConfig(image_size=2048, model_channels=1024, out_channels=6)
    found = cost(replace(config, low_res_channels=3, num_classes=10))
    assert isinstance(found, Cost) and 4 * found.num_parameters > 20e9 and found.peak_bytes > 30e9
    assert torch.equal(torch.get_rng_state(), state)


def test_peak_memory_is_what_a_real_forward_pass_allocates():
    network = UNet(WIDER).eval()
    x, t = torch.randn(1, 3, 64, 64), torch.zeros(1)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        network(x, t)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    # Convolutions and attention allocate working memory of their own here, which is not counted.
    assert 0.75 < cost(WIDER).peak_bytes / peak < 1.05
