"""What a run is said to need, against what torch keeps and allocates when it really trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adm.nn import ClassifierConfig, UNetConfig
from adm.runtime.config import override
from adm.training.build import new_model
from adm.training.config import ClassifierTraining, DataConfig, DiffusionTraining, LoopConfig, TrainConfig
from adm.training.cost import largest_batch, microbatch_that_fits, training_cost
from adm.training.objectives import Examples, StepNoise
from adm.training.trainer import Trainer

LOOP = LoopConfig(batch_size=4)
UNET: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "num_head_channels": 32,
}


def diffusion(*settings: str, variance: Any = "learned", **network: Any) -> TrainConfig:
    channels = {"out_channels": 6 if variance == "learned" else 3}
    config = DiffusionTraining(
        "diffusion", DataConfig("none"), UNetConfig(**UNET | channels | network), loop=LOOP, variance=variance
    )
    return override(config, settings)


CONFIGS: dict[str, TrainConfig] = {
    "plain": diffusion(),
    "classes, dropout, every size attends": diffusion(num_classes=3, dropout=0.1, attention_resolutions=(16, 8)),
    "added embeddings, convolutions that resample": diffusion(scale_shift_norm=False, resblock_updown=False),
    "recomputed": diffusion("network.checkpoint_blocks=true"),
    "bfloat16": diffusion("loop.precision=bfloat16"),
    "fixed variance, three levels": diffusion("loss=simple", variance="small", channel_mult=(1, 1, 2), image_size=32),
    "classifier": ClassifierTraining(
        "classifier", DataConfig("none"), ClassifierConfig(**UNET, num_classes=5), loop=LOOP
    ),
}


def kept_by_torch(config: TrainConfig) -> int:
    """Bytes of the distinct tensors, but parameters, that autograd keeps of a microbatch."""
    trainer = Trainer(new_model(config), config)
    parameters = {p.untyped_storage().data_ptr() for p in trainer.model.network.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    n = config.loop.microbatch or config.loop.batch_size
    x0 = torch.zeros(n, config.network.in_channels, *config.network.size)
    noise = StepNoise(torch.arange(n), torch.randn_like(x0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.objective(trainer.model, Examples(x0, torch.zeros(n, dtype=torch.long)), noise).loss.sum()
    return sum(kept.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_kept_activations_are_those_that_autograd_keeps(name: str) -> None:
    counted, real = training_cost(CONFIGS[name]).activations, kept_by_torch(CONFIGS[name])
    print(name, counted / real)
    assert counted == pytest.approx(real, rel=0.1)


def peak_of(config: TrainConfig, batch: int, microbatch: int | None = None) -> int:
    return training_cost(replace(config, loop=replace(config.loop, batch_size=batch, microbatch=microbatch))).peak


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("plain", marks=pytest.mark.slow),
        pytest.param("recomputed", marks=pytest.mark.slow),
        pytest.param("bfloat16", marks=pytest.mark.slow),
        "classifier",
    ],
)
def test_what_fits_is_the_most_that_does(name: str) -> None:
    config = replace(CONFIGS[name], loop=replace(CONFIGS[name].loop, batch_size=60))
    for wanted in (1, 3, 7, 23):
        available = peak_of(config, wanted)
        assert largest_batch(config, available) == wanted, wanted
        assert largest_batch(config, available - 1) == wanted - 1
        available = peak_of(config, 60, wanted)
        fits = microbatch_that_fits(config, available)
        assert fits is not None and peak_of(config, 60, fits) <= available
        # No fewer passes are possible, and all passes are as small as that allows.
        passes = -(-60 // wanted)
        assert fits == -(-60 // passes)
    assert microbatch_that_fits(config, peak_of(config, 60)) == 60
    assert microbatch_that_fits(config, peak_of(config, 60, 1) - 1) is None


def test_weights_gradients_averages_and_disk_are_four_bytes_a_number() -> None:
    config = override(CONFIGS["plain"], ["ema.others=16.97,2"])
    model = new_model(config)
    num = sum(p.numel() for p in model.network.parameters())
    trainer = Trainer(model, config)
    cost = training_cost(config)
    assert (cost.num_parameters, cost.weights, cost.gradients, cost.optimizer) == (num, 4 * num, 4 * num, 8 * num)
    averaged = sum(v.numel() * v.element_size() for average in trainer.ema.averages for v in average.values())
    assert cost.ema == averaged == 12 * num
    assert cost.checkpoint == 4 * num + 8 * num + 12 * num
    assert cost.peak >= cost.weights + cost.optimizer + cost.ema + cost.activations


def test_a_step_takes_three_forward_passes_and_recomputing_almost_another() -> None:
    plain, again = training_cost(CONFIGS["plain"]), training_cost(CONFIGS["recomputed"])
    assert again.forward_flops == plain.forward_flops
    # Each product is differentiated by both factors, but for the images, which need no gradient.
    assert 2.9 < plain.step_flops / plain.forward_flops <= 3.05
    # All but what comes last in each block, whose result nothing keeps.
    assert 3.5 < again.step_flops / again.forward_flops < 4
    assert again.activations < 0.4 * plain.activations


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for name in ("plain", "recomputed"):
        trainer = Trainer(new_model(CONFIGS[name]), CONFIGS[name])
        x0 = torch.linspace(-1, 1, 4 * 3 * 256).reshape(4, 3, 16, 16)
        noise = StepNoise(torch.arange(4) * 200, x0.flip(0).roll(7, 2))
        trainer.objective(trainer.model, Examples(x0, torch.zeros(4, dtype=torch.long)), noise).loss.sum().backward()
        gradients.append([p.grad for p in trainer.model.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_flops_of_a_pass_are_those_that_torch_counts() -> None:
    config = CONFIGS["added embeddings, convolutions that resample"]
    n = config.loop.batch_size
    trainer = Trainer(new_model(config), config)
    x0 = torch.zeros(n, 3, 16, 16)
    with FlopCounterMode(display=False) as counted:
        noise = StepNoise(torch.arange(n), torch.zeros_like(x0))
        trainer.objective(trainer.model, Examples(x0, torch.zeros(n, dtype=torch.long)), noise).loss.sum().backward()
    by_torch = counted.get_total_flops()
    # torch does not count fused attention on a CPU: 2 products forward, 5 back, of 64 channels at 8x8 pixels, in the
    # encoder, the middle and twice in the decoder.
    assert training_cost(config).step_flops * n == by_torch + 4 * 7 * 2 * n * 64 * 64 * 64


def test_many_processes_share_the_batch_and_accumulated_gradients_are_there_twice() -> None:
    config = replace(CONFIGS["plain"], loop=replace(CONFIGS["plain"].loop, batch_size=8))
    assert training_cost(config, processes=4).microbatch == 2
    assert training_cost(config, processes=4).peak == peak_of(config, 2)
    apart, whole = peak_of(config, 8, 4), peak_of(config, 4)
    assert apart > whole  # the gradients of the first half wait while the second is computed
