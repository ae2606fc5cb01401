"""What must hold on a GPU too: `pytest -m slow tests/test_cuda.py` on a machine with one; skipped elsewhere."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import adm
from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.convert import model_from_released
from adm.checkpoints.openai import read_flags
from adm.nn import UNetConfig
from adm.training.config import DataConfig, DiffusionTraining, LoopConfig
from adm.training.run import train
from golden_weights import recorded_case, recorded_weights, released_shapes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASES = ["unet_cond_learned_legacy", "unet_cond_learned_neworder", "unet_uncond_fixed_legacy"]


@pytest.fixture(autouse=True)
def _exact_float32():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def recorded_model(flags):
    spec = read_flags(flags)
    return model_from_released(recorded_weights(released_shapes(spec), flags["weight_seed"]), spec).cuda()


def error(ours, truth):
    truth = torch.as_tensor(truth).double()
    return float((ours.detach().cpu().double() - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_network_outputs_are_the_recorded_ones(name):
    flags, arrays = recorded_case(name)
    model = recorded_model(flags)
    with torch.no_grad():
        raw = model.network(arrays["x"].cuda(), arrays["t"].cuda(), arrays["y"].cuda())
    print(f"{name}: float32 {error(raw, arrays['model_output']):.1e}")
    assert error(raw, arrays["model_output"]) < 2e-5


@pytest.mark.parametrize("run", ["ddpm_guided", "ddim_guided", "ddim_eta0.7"])
@pytest.mark.parametrize("name", CASES)
def test_trajectories_are_the_recorded_ones(name, run):
    flags, arrays = recorded_case(name)
    model = recorded_model(flags)
    guide = flags["guide"] | {key: flags[key] for key in ("noise_schedule", "diffusion_steps", "rescale_timesteps")}
    guidance = [adm.ClassifierGuidance(recorded_model(guide), guide["guidance_scale"])] if "guided" in run else []
    counts = flags[f"{run[:4]}_respacing"]
    grid = adm.strided if counts.startswith("ddim") else adm.spaced
    chain = adm.Chain(model.schedule, grid(model.schedule.num_timesteps, counts))
    sampler = adm.DDPM() if run.startswith("ddpm") else adm.DDIM(eta=0.7 if "eta" in run else 0.0)
    recorded = arrays[f"{run}_samples"]
    noise, cond = adm.RecordedNoise(arrays[f"{run}_noise"]), adm.Condition(label=arrays["y"])
    out = adm.sample(adm.guide(model, adm.Clip(), *guidance), chain, sampler, noise, recorded[0].shape, cond)
    assert out.device.type == "cuda"
    print(f"{name} {run}: {error(out, recorded[-1]):.1e}")
    assert error(out, recorded[-1]) < (2e-3 if flags["noise_schedule"] == "cosine" else 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_autocast_is_near_float32_and_returns_float32(name):
    flags, arrays = recorded_case(name)
    model = recorded_model(flags)
    model.precision = torch.bfloat16
    with torch.no_grad():
        output = model.output(arrays["x"].cuda(), arrays["t"].cuda(), adm.Condition(label=arrays["y"].cuda()))
    assert output.mean.dtype == torch.float32
    whole = output.mean if output.variance is None else torch.cat([output.mean, output.variance], dim=1)
    print(f"{name}: bfloat16 {error(whole, arrays['model_output']):.1e}")
    assert error(whole, arrays["model_output"]) < 3e-2


def test_a_compiled_network_and_a_captured_graph_give_the_same():
    flags, arrays = recorded_case(CASES[0])
    network = recorded_model(flags).network
    inputs = arrays["x"].cuda(), arrays["t"].cuda(), arrays["y"].cuda()
    with torch.no_grad():
        compiled = torch.compile(network)(*inputs)
        assert error(compiled, arrays["model_output"]) < 2e-5
        for _ in range(3):
            network(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = network(*inputs)
        inputs[0].copy_(inputs[0] * 2)
        graph.replay()
        torch.testing.assert_close(captured, network(*inputs), rtol=1e-5, atol=1e-5)


def test_guided_samples_agree_with_the_cpu():
    flags, _ = recorded_case(CASES[0])
    model = recorded_model(flags)
    cpu = copy.deepcopy(model).cpu()
    chain = adm.Chain(model.schedule, adm.spaced(1000, 10))
    noise, cond = adm.SeededNoise(range(4)), adm.Condition(label=[0, 1, 2, 3])
    a, b = (adm.sample(adm.guide(m, adm.Clip()), chain, adm.DDPM(), noise, (4, 3, 16, 16), cond) for m in (model, cpu))
    assert error(a, b) < 1e-3


def training(steps, dropout=0.1, precision="float32"):
    network = UNetConfig(
        image_size=8, in_channels=1, out_channels=2, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,), num_heads=1, num_classes=10, dropout=dropout,
    )  # fmt: skip
    loop = LoopConfig(steps=steps, batch_size=32, save_every=10, sample_every=10, precision=precision)
    return DiffusionTraining("diffusion", DataConfig("digits"), network, loop=loop)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_continues_where_it_stopped(tmp_path, precision):
    whole = train(training(20, precision=precision), tmp_path / "a", "cuda")
    train(training(10, precision=precision), tmp_path / "b", "cuda")
    parts = train(training(20, precision=precision), tmp_path / "b", "cuda")
    a, b = (checkpoint_format.load(path).tensors for path in (whole, parts))
    worst = max(float((a[g][n].double() - b[g][n].double()).abs().max()) for g in ("model", "ema") for n in a[g])
    print(f"{precision}: 20 against 10 + 10 steps, largest difference of a weight {worst:.1e}")
    assert worst <= 1e-6


def test_global_generators_stay_as_they_were(tmp_path):
    torch.cuda.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(replace(training(2)), tmp_path / "run", "cuda")
    after = torch.get_rng_state(), torch.cuda.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2:] == after[2:]
