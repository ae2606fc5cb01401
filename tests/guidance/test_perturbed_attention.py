"""Perturbed-attention guidance: the same weights, some attention maps the identity, and what is made of the two."""

from dataclasses import dataclass, replace

import pytest
import torch

import adm
from adm.checkpoints.openai_keys import layers as released_layers
from adm.guidance import GuidedDenoiser
from adm.nn import UNet, UNetConfig
from adm.nn.blocks import Attention
from adm.nn.perturbed import identity_attention

CONFIG = UNetConfig(
    16,
    in_channels=1,
    out_channels=2,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_heads=2,
    num_classes=3,
)
PATHS = ("encoder.blocks.2.1", "encoder.middle.1", "decoder.blocks.0.1", "decoder.blocks.1.1")
COND = adm.Condition(label=[0, 2])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made(config=CONFIG, dtype=torch.float64):
    network = UNet(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return adm.DiffusionModel(network, adm.cosine(1000))


def noisy(dtype=torch.float64):
    return torch.randn(2, 1, 16, 16, dtype=dtype)


def without_maps(network, paths, *inputs):
    """The network's answer when softmax(q k^T) v is made to be I v at these attentions, computed from the outside."""
    block = {id(network.get_submodule(path)) for path in paths}

    def forward(module, args, output):
        (x,) = args
        heads, channels = module.num_heads, x.shape[1]
        tokens = module.norm(x).flatten(2).transpose(1, 2)
        n, length, _ = tokens.shape
        _, _, v = (tokens @ module.qkv.weight.T + module.qkv.bias).split(channels, dim=-1)
        v = v.reshape(n, length, heads, channels // heads).transpose(1, 2)
        eye = torch.eye(length, dtype=x.dtype).expand(n, heads, length, length)
        h = (eye @ v).transpose(1, 2).reshape(n, length, channels) @ module.proj.weight.T + module.proj.bias
        return x + h.transpose(1, 2).reshape(x.shape)

    hooks = [m.register_forward_hook(forward) for m in network.modules() if id(m) in block]
    try:
        return network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("layers", "paths"),
    [
        (["middle"], PATHS[1:2]),
        (["encoder"], PATHS[:2]),
        (["encoder.blocks.2", "decoder.blocks.1.1"], [PATHS[0], PATHS[3]]),
        (["middle", "encoder.middle.1", "decoder"], PATHS[1:]),
    ],
)
def test_the_identity_stands_where_the_softmax_stood(layers, paths):
    network, x, t, y = made().network, noisy(), torch.tensor([3, 700]), torch.tensor([1, -1])
    perturbed = identity_attention(network, layers)
    expected = without_maps(network, paths, x, t, y)
    torch.testing.assert_close(perturbed(x, t, y), expected, rtol=0, atol=1e-12)
    assert (expected - network(x, t, y)).abs().max() > 1e-3
    assert (expected - without_maps(network, paths[:-1], x, t, y)).abs().max() > 1e-3


def test_one_token_attends_to_itself_anyway():
    block = Attention(8, num_heads=2).double()
    torch.nn.init.normal_(block.proj.weight)
    x = torch.randn(3, 8, 1, 1, dtype=torch.float64)
    before = block(x)
    block.identity = True
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-14)


def test_the_weights_are_the_same_tensors_and_a_change_is_seen():
    network = made().network
    perturbed = identity_attention(network, ["middle"])
    ours, theirs = dict(network.named_parameters()), dict(perturbed.named_parameters())
    assert list(ours) == list(theirs) and all(ours[name] is theirs[name] for name in ours)
    x, t, y = noisy(), torch.tensor([3, 700]), torch.tensor([1, 2])
    before = perturbed(x, t, y)
    network.load_state_dict({name: 1.1 * tensor for name, tensor in network.state_dict().items()})
    assert (perturbed(x, t, y) - before).abs().max() > 1e-3
    torch.testing.assert_close(perturbed(x, t, y), without_maps(network, PATHS[1:2], x, t, y), rtol=0, atol=1e-12)
    network.to(torch.float32)
    assert next(perturbed.parameters()).dtype == torch.float32


def test_the_network_itself_and_what_is_saved_of_it_stay_as_they_were():
    model, x, t, y = made(), noisy(), torch.tensor([3, 700]), torch.tensor([1, 2])
    names, before = list(model.state_dict()), model.network(x, t, y)
    perturbed = model.with_identity_attention(["encoder", "decoder"])
    assert torch.equal(model.network(x, t, y), before)
    assert list(model.state_dict()) == list(perturbed.state_dict()) == names
    assert not any(m.identity for m in model.modules() if isinstance(m, Attention))


def test_a_perturbed_model_differs_in_its_network_alone():
    model = made()
    model.class_names, model.precision = ("a", "b", "c"), torch.bfloat16
    perturbed = model.with_identity_attention(["middle"])
    assert type(perturbed) is adm.DiffusionModel and perturbed.network is not model.network
    for name in ("schedule", "mean", "variance", "time_scale", "class_names", "precision", "image_shape", "device"):
        assert getattr(perturbed, name) == getattr(model, name)


@pytest.mark.parametrize("scale", [1.0, 2.5, -0.5])
def test_x_0_moves_away_from_what_the_perturbed_model_says(scale):
    model, x = made(), noisy()
    guided = adm.guide(model, adm.PerturbedAttention(scale, ("middle", "decoder")))(x, 400, COND)
    plain, perturbed = model(x, 400, COND), model.with_identity_attention(["middle", "decoder"])(x, 400, COND)
    torch.testing.assert_close(guided.x0, plain.x0 + scale * (plain.x0 - perturbed.x0))
    # In eps, as the paper writes it: eps + s (eps - eps').
    torch.testing.assert_close(guided.eps, plain.eps + scale * (plain.eps - perturbed.eps))
    assert torch.equal(guided.var_frac, plain.var_frac) and not torch.equal(plain.x0, perturbed.x0)


def test_scale_0_is_the_denoiser_itself_whatever_it_is():
    model = made()
    assert adm.PerturbedAttention(0)(model) is model

    def bare(x_t, t, cond=adm.Condition()):
        raise AssertionError("not asked")

    assert adm.PerturbedAttention(0)(bare) is bare


class Doubled(GuidedDenoiser):
    def __call__(self, x_t, t, cond=adm.Condition()):
        prediction = self.denoiser(x_t, t, cond)
        return replace(prediction, x0=2 * prediction.x0)


def test_around_others_the_model_s_own_difference_is_added():
    """As the paper adds it to classifier-free guidance: the difference is not multiplied by the other's weight."""
    model, x = made(), noisy()
    guided = adm.guide(model, Doubled, Doubled, adm.PerturbedAttention(0.7))(x, 400, COND)
    plain, perturbed = model(x, 400, COND), model.with_identity_attention(["middle"])(x, 400, COND)
    torch.testing.assert_close(guided.x0, 4 * plain.x0 + 0.7 * (plain.x0 - perturbed.x0))


def test_it_costs_one_evaluation_of_the_perturbed_network_and_two_around_others():
    for others, expected in (((), (1, 1)), ((Doubled,), (2, 1))):
        model, calls = made(), []
        guided = adm.guide(model, *others, adm.PerturbedAttention())
        model.network.register_forward_hook(lambda *_, calls=calls: calls.append("plain"))
        guided.perturbed.network.register_forward_hook(lambda *_, calls=calls: calls.append("perturbed"))
        guided(noisy(), 10, COND)
        assert (calls.count("plain"), calls.count("perturbed")) == expected


def test_it_samples_in_the_precision_of_the_model():
    model = made(dtype=torch.float32)
    model.precision = torch.bfloat16
    seen = []
    guided = adm.guide(model, adm.PerturbedAttention(1.0, PATHS[1:2]), adm.Clip())
    attention = guided.denoiser.perturbed.network.get_submodule(PATHS[1])
    attention.proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    chain = adm.Chain(model.schedule, adm.strided(1000, 4))
    x = adm.sample(guided, chain, adm.DDIM(), adm.SeededNoise(range(2)), (2, 1, 16, 16), COND)
    assert torch.isfinite(x).all() and seen == [torch.bfloat16] * 4


def test_a_network_that_recomputes_its_activations_gives_the_same():
    model = made()
    recomputed = adm.DiffusionModel(UNet(replace(CONFIG, checkpoint_blocks=True)).double().eval(), model.schedule)
    recomputed.load_state_dict(model.state_dict())
    gradients = []
    for one in (model, recomputed):
        x = noisy_leaf()
        adm.guide(one, adm.PerturbedAttention())(x, 400, COND).x0.square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def noisy_leaf():
    return torch.linspace(-2, 2, 512, dtype=torch.float64).reshape(2, 1, 16, 16).requires_grad_()


class TestRefusals:
    def test_a_layer_without_attention_names_those_that_there_are(self):
        with pytest.raises(
            ValueError, match=r"no self-attention in layer 'encoder.blocks.0': give some of middle, enc"
        ):
            adm.PerturbedAttention(layers=("middle", "encoder.blocks.0"))(made())
        with pytest.raises(ValueError, match=", ".join(PATHS)):
            adm.PerturbedAttention(layers=("bottom",))(made())

    def test_half_a_name_is_no_name(self):
        with pytest.raises(ValueError, match=r"no self-attention in layer 'encoder\.bl'"):
            adm.PerturbedAttention(layers=("encoder.bl",))(made())

    def test_no_layer_at_all(self):
        with pytest.raises(ValueError, match="no layer was named: give some of middle"):
            adm.PerturbedAttention(layers=())(made())

    def test_one_name_in_place_of_a_list(self):
        with pytest.raises(ValueError, match=r"is one name: give a list of them, such as \('middle',\)"):
            adm.PerturbedAttention(layers="middle")

    def test_a_denoiser_whose_attention_is_out_of_reach(self):
        @dataclass
        class Foreign:
            schedule: adm.Schedule

        for denoiser in (Foreign(adm.cosine(10)), Doubled(Foreign(adm.cosine(10)))):
            with pytest.raises(ValueError, match=r"self-attention be perturbed: guide an adm\.DiffusionModel"):
                adm.PerturbedAttention()(denoiser)

    def test_a_model_of_a_foreign_network(self):
        model = adm.DiffusionModel(torch.nn.Conv2d(1, 2, 1), adm.cosine(10))
        with pytest.raises(ValueError, match="a Conv2d, cannot have its attention perturbed: use a UNet, or give it"):
            adm.PerturbedAttention()(model)


def test_the_published_layers_of_the_256_models_under_our_names():
    """input_blocks 14, 16, 17 and the middle, walked off the map of the released names."""
    config = UNetConfig(
        256,
        out_channels=6,
        model_channels=256,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_resolutions=(32, 16, 8),
        num_head_channels=64,
        num_classes=1000,
    )
    with torch.device("meta"):
        network = UNet(config)
    blocks = ("input_blocks.14.", "input_blocks.16.", "input_blocks.17.", "middle_block.")
    published = [
        ours
        for ours, released, layer in released_layers(network)
        if isinstance(layer, Attention) and released.startswith(blocks)
    ]
    named = ("encoder.blocks.13", "encoder.blocks.15", "encoder.blocks.16", "middle")
    assert all(name in " ".join(adm.PerturbedAttention.__doc__.split()) for name in named)
    perturbed = network.with_identity_attention(named)
    found = [path for path, m in perturbed.named_modules() if isinstance(m, Attention) and m.identity]
    assert found == published and len(found) == 4


def test_in_an_attention_that_sees_only_equal_pixels_nothing_changes():
    """All tokens equal: any map that averages gives v, the identity too."""
    block = Attention(8, num_heads=2).double()
    torch.nn.init.normal_(block.proj.weight)
    x = torch.randn(2, 8, 1, 1, dtype=torch.float64).expand(2, 8, 3, 3)
    before = block(x)
    block.identity = True
    torch.testing.assert_close(block(x), before, rtol=0, atol=1e-12)
