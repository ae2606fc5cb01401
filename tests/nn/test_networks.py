"""The networks take what they should, refuse the rest, and compute the same however they are run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.nn.blocks import Attention, ResBlock
from adm.nn.layers import GroupNorm, timestep_embedding

SMALL = UNetConfig(
    16,
    out_channels=6,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_classes=5,
)
CLASSIFIER = ClassifierConfig(
    16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=16,
    num_classes=5,
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomised(network):
    """The network in float64 with no weight left at zero, so that every path shows in the output."""
    network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def inputs(config, n=3, size=None):
    h, w = size or config.size
    x = torch.randn(n, config.in_channels, h, w, dtype=torch.float64)
    return x, torch.arange(n) * 300 + 7, torch.arange(n) % 5


def test_time_embedding_is_cosines_then_sines_with_the_divisor_half():
    # The released embedding: t = 1, dim = 4 -> [cos 1, cos .01, sin 1, sin .01].
    t = torch.tensor([1])
    angles = torch.tensor([1.0, 0.01], dtype=torch.float64)
    expected = torch.cat([angles.cos(), angles.sin()])[None]
    assert torch.allclose(timestep_embedding(t, 4, torch.float64), expected, rtol=0, atol=1e-15)
    assert timestep_embedding(t, 4).dtype == torch.float32
    assert timestep_embedding(t, 4, torch.float16).dtype == torch.float32


def test_real_timesteps_lie_between_whole_ones():
    network = randomised(UNet(replace(SMALL, num_classes=None)))
    x, _, _ = inputs(SMALL, 1)
    at = [network(x, torch.tensor([t], dtype=torch.float64)) for t in (500.0, 500.5, 501.0)]
    assert torch.allclose(network(x, torch.tensor([500])), at[0], rtol=0, atol=1e-12)
    middle = (at[0] + at[2]) / 2
    assert (at[1] - middle).abs().max() < 0.3 * (at[2] - at[0]).abs().max()


def test_attention_is_the_textbook_formula():
    block = randomised(Attention(8, num_heads=2))
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w.T + b for w, b in zip(block.qkv.weight.split(8), block.qkv.bias.split(8), strict=True))
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weight = torch.softmax(q[..., head] @ k[..., head].transpose(1, 2) / 2.0, dim=-1)
        heads.append(weight @ v[..., head])
    expected = x + block.proj(torch.cat(heads, dim=-1)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [32, 96, 48, 20, 7, 1])
def test_groups_divide_the_channels_and_are_32_where_that_divides(channels):
    groups = GroupNorm(channels).num_groups
    assert channels % groups == 0 and groups <= 32 and (groups == 32 or channels % 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_taken_in_float32_at_least(dtype, monkeypatch):
    # Of half input, CUDA's kernel would round the mean and 1/std to half; the CPU's would not show it.
    norm = GroupNorm(32).to(dtype)
    x = (3 + torch.randn(2, 32, 8, 8)).to(dtype)
    seen = []
    kernel = torch.group_norm
    monkeypatch.setattr(torch, "group_norm", lambda x, *rest: seen.append(x.dtype) or kernel(x, *rest))
    output = norm(x)
    assert seen == [torch.promote_types(dtype, torch.float32)]
    assert output.dtype == dtype
    exact = nn.functional.group_norm(x.double(), 32)
    assert (output.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps


def test_networks_start_as_zero_and_blocks_as_the_identity():
    x, t, y = inputs(SMALL)
    assert torch.equal(UNet(SMALL)(x.float(), t, y), torch.zeros(3, 6, 16, 16))
    block = ResBlock(32, 32, 64)
    h = torch.randn(2, 32, 4, 4)
    assert torch.equal(block(h, torch.randn(2, 64)), h)
    assert torch.allclose(ResBlock(32, 32, 64, rescale=True)(h, torch.randn(2, 64)), h / 2**0.5)


def test_rescaled_residuals_keep_the_variance_of_two_equal_branches():
    plain, rescaled = (randomised(ResBlock(32, 32, 64, rescale=rescale)) for rescale in (False, True))
    rescaled.load_state_dict(plain.state_dict())
    h, emb = torch.randn(2, 32, 4, 4, dtype=torch.float64), torch.randn(2, 64, dtype=torch.float64)
    assert torch.allclose(rescaled(h, emb) * 2**0.5, plain(h, emb))


VARIANTS = [
    SMALL,
    replace(SMALL, resblock_updown=False, scale_shift_norm=False),
    replace(SMALL, resblock_updown=False, resample_conv=False, num_head_channels=8),
    replace(SMALL, in_channels=1, out_channels=1, image_size=(8, 24), attention_resolutions=(4,)),
    replace(SMALL, in_channels=4, channel_mult=(0.5, 1, 1.5), num_res_blocks=2, rescale_skips=True),
]


@pytest.mark.parametrize("config", VARIANTS)
def test_any_size_and_channels_and_each_image_by_itself(config):
    network = randomised(UNet(config))
    x, t, y = inputs(config)
    output = network(x, t, y)
    assert output.shape == (3, config.out_channels, *config.size) and output.dtype == torch.float64
    assert network.image_shape == x.shape[1:]
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(output, alone, rtol=0, atol=1e-11)
    assert output.std() > 1e-3


def test_attention_follows_the_shorter_side():
    def attends(**changes):
        network = UNet(replace(SMALL, **changes))
        return [any(isinstance(layer, Attention) for layer in block) for block in network.encoder.blocks]

    # Blocks: one at full size, the way down, one at half size.
    assert attends(attention_resolutions=(8,)) == [False, False, True]
    assert attends(image_size=(32, 16), attention_resolutions=(8,)) == [False, False, True]
    assert attends(image_size=(16, 32), attention_resolutions=(16,)) == [True, False, False]
    assert attends(image_size=(32, 64), attention_resolutions=(8,)) == [False, False, False]


def test_other_sizes_than_the_configs_are_taken():
    network = randomised(UNet(SMALL))
    x, t, y = inputs(SMALL, size=(10, 22))
    assert network(x, t, y).shape == (3, 6, 10, 22)


def test_no_label_is_a_label_embedding_of_zero():
    network = randomised(UNet(SMALL))
    x, t, _ = inputs(SMALL)
    mixed = network(x, t, torch.tensor([2, -1, 4]))
    with torch.no_grad():
        network.label_embed.weight[3] = 0
    assert torch.allclose(mixed, network(x, t, torch.tensor([2, 3, 4])), rtol=0, atol=1e-12)
    unconditional = randomised(UNet(replace(SMALL, num_classes=None)))
    assert torch.equal(unconditional(x, t), unconditional(x, t, torch.tensor([0, 99, -1])))


def test_an_upsampler_sees_the_low_resolution_image_enlarged_bilinearly():
    config = replace(SMALL, low_res_channels=3)
    network = randomised(UNet(config))
    x, t, y = inputs(config)
    low = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    seen = []
    network.encoder.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x, t, y, low)
    assert torch.equal(seen[0][:, :3], x)
    # Pixels of the enlarged image lie a quarter of a pixel from the nearest: weights 3/4 and 1/4 each way.
    row = 0.75 * low[:, :, 2] + 0.25 * low[:, :, 3]
    assert torch.allclose(seen[0][:, 3:, 5, 7], 0.75 * row[:, :, 3] + 0.25 * row[:, :, 4], rtol=0, atol=1e-12)


FROZEN = {
    "none": lambda name: False,
    "all": lambda name: True,
    "blocks": lambda name: ".blocks." in name or name.startswith("middle"),
    "embeddings and heads": lambda name: "embed" in name or name.startswith("out"),
    "every other": lambda name: sum(map(ord, name)) % 2 == 0,
}


@pytest.mark.parametrize(("frozen", "through_x"), [*((frozen, True) for frozen in FROZEN), ("every other", False)])
@pytest.mark.parametrize(
    "make", [lambda c: UNet(replace(SMALL, **c)), lambda c: EncoderClassifier(replace(CLASSIFIER, **c))]
)
def test_recomputed_activations_give_the_same_gradients(make, frozen, through_x):
    kept = randomised(make({}))
    recomputed = make({"checkpoint_blocks": True}).double().eval()
    recomputed.load_state_dict(kept.state_dict())
    x, t, y = inputs(SMALL)
    gradients = []
    for network in (kept, recomputed):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))
        leaf = x.clone().requires_grad_(through_x)
        output = network(leaf, t, y) if isinstance(network, UNet) else network(leaf, t)
        output.square().sum().backward()
        gradients.append({"x": leaf.grad} | {name: p.grad for name, p in network.named_parameters()})
    trained = {name for name, p in kept.named_parameters() if p.requires_grad}
    assert (len(trained) == 0, len(trained) == len(list(kept.parameters()))) == (frozen == "all", frozen == "none")
    for name, one in gradients[0].items():
        other = gradients[1][name]
        if name in trained or (name == "x" and through_x):
            assert torch.equal(one, other) and one.abs().max() > 0, name
        else:
            assert one is None and other is None, name


@pytest.mark.parametrize("frozen", FROZEN)
def test_recomputed_activations_are_not_kept(frozen):
    """What autograd holds between the passes, counted once each and without the weights."""
    x, t, y = inputs(SMALL)

    def kept_bytes(checkpoint_blocks):
        network = randomised(UNet(replace(SMALL, checkpoint_blocks=checkpoint_blocks)))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        held = {}

        def hold(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage  # kept alive, so that no address comes twice
            return tensor

        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            network(leaf, t, y)
        return sum(storage.nbytes() for storage in held.values())

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


@pytest.mark.parametrize("training", [True, False])
def test_recomputed_dropout_is_the_same_dropout(training):
    """d/dx of a frozen network that drops out: recomputing must drop what was dropped."""
    x, t, y = inputs(SMALL)
    gradients = []
    for checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        network = randomised(UNet(replace(SMALL, dropout=0.3, checkpoint_blocks=checkpoint_blocks)))
        network.train(training).requires_grad_(False)
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        network(leaf, t, y).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_embeddings_and_heads_in_float32(dtype):
    x, t, y = inputs(SMALL)
    for network in (randomised(UNet(SMALL)).float(), randomised(EncoderClassifier(CLASSIFIER)).float()):
        labels = (y,) if isinstance(network, UNet) else ()
        dtypes = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(lambda m, i, o, name=name, dtypes=dtypes: dtypes.update({name: o.dtype}))
        exact = network(x.float(), t, *labels)
        with torch.autocast("cpu", dtype=dtype):
            output = network(x.float(), t, *labels)
        assert output.dtype == torch.float32
        assert (output - exact).abs().max() < 0.1 * exact.abs().max()
        for name, found in dtypes.items():
            full = name.startswith(("time_embed", "out.")) or name.endswith(".embed")
            assert found == (torch.float32 if full else dtype), name


def test_convolutions_alone_in_half_precision_as_the_released_rule():
    network = randomised(UNet(SMALL)).float()
    x, t, y = inputs(SMALL)
    exact = network(x.float(), t, y)
    for module in (network.encoder, network.decoder):
        for part in module.modules():
            if isinstance(part, nn.Conv2d) or (isinstance(part, nn.Linear) and part.in_features != 128):
                part.half()
    output = network(x.float(), t, y)
    assert output.dtype == torch.float32
    assert (output - exact).abs().max() < 0.02 * exact.abs().max()


def test_all_in_half_precision():
    x, t, y = inputs(SMALL)
    assert randomised(UNet(SMALL)).bfloat16()(x.bfloat16(), t, y).isfinite().all()
    assert randomised(EncoderClassifier(CLASSIFIER)).bfloat16()(x.bfloat16(), t).isfinite().all()


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_classifiers_judge_each_image_by_itself(pool):
    network = randomised(EncoderClassifier(replace(CLASSIFIER, pool=pool, in_channels=1, image_size=(8, 12))))
    x, t, _ = inputs(network.config)
    logits = network(x, t)
    assert logits.shape == (3, 5) and network.image_shape == (1, 8, 12)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert torch.allclose(logits, alone, rtol=0, atol=1e-11) and logits.std() > 1e-3


def test_networks_are_built_on_the_meta_device_without_a_draw():
    state = torch.get_rng_state()
    with torch.device("meta"):
        networks = UNet(SMALL), EncoderClassifier(CLASSIFIER)
        x, t, y = torch.empty(2, 3, 16, 16), torch.empty(2), torch.empty(2, dtype=torch.long)
        assert networks[0](x, t, y).shape == (2, 6, 16, 16) and networks[1](x, t).shape == (2, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_are_made_in_the_order_of_use():
    for network in (randomised(UNet(SMALL)), randomised(EncoderClassifier(CLASSIFIER))):
        used = []
        for name, module in network.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_hook(lambda m, i, o, name=name, used=used: used.append(name))
        x, t, y = inputs(SMALL)
        network(x, t, *((y,) if isinstance(network, UNet) else ()))
        made = [name for name, m in network.named_modules() if next(m.parameters(recurse=False), None) is not None]
        # A hook fires after those of the parts: the head that has parameters of its own comes last.
        assert [name for name in used if name != "out"] == [name for name in made if name != "out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(2, 3, 17, 30)},
            "x is 17x30: 2 levels need multiples of 2, nearest 16x30 and 18x30",
        ),
        (
            {"x": torch.zeros(2, 1, 16, 16)},
            r"x has shape \(2, 1, 16, 16\): this network takes \(N, 3, H, W\)",
        ),
        ({"t": torch.zeros(1)}, r"t has shape \(1,\): give one timestep per image, shape \(2,\)"),
        ({"label": None}, "a class-conditional network needs label: give 0 to 4, or -1 for none"),
        ({"label": torch.tensor([0, 5])}, "label 5 is no class: give 0 to 4, or -1 for no label"),
        ({"label": torch.tensor([-2, 0])}, "label -2 is no class"),
        ({"label": torch.zeros(2)}, "label is torch.float32"),
        ({"low_res": torch.zeros(2, 3, 8, 8)}, "low_res was given to a network that is no upsampler"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(change, message):
    given = {
        "x": torch.zeros(2, 3, 16, 16),
        "t": torch.zeros(2),
        "label": torch.zeros(2, dtype=torch.long),
    } | change
    with pytest.raises(ValueError, match=message) as refusal:
        UNet(SMALL)(**given)
    assert "\n" not in str(refusal.value)


def test_an_upsampler_and_an_attention_pool_refuse_what_does_not_fit():
    upsampler = UNet(replace(SMALL, low_res_channels=3, num_classes=None))
    with pytest.raises(ValueError, match="an upsampler needs low_res"):
        upsampler(torch.zeros(2, 3, 16, 16), torch.zeros(2))
    with pytest.raises(ValueError, match=r"low_res is \(2, 1, 8, 8\): give it the shape \(2, 3, h, w\)"):
        upsampler(torch.zeros(2, 3, 16, 16), torch.zeros(2), None, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="x is 8x8: the attention pool has positions for 16x16 alone"):
        EncoderClassifier(CLASSIFIER)(torch.zeros(2, 3, 8, 8), torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_size": 30, "channel_mult": (1, 1, 1)},
            "image_size is 30x30: 3 levels need multiples of 4, nearest 28x28 and 32x32",
        ),
        ({"image_size": 2, "channel_mult": (1, 1, 1)}, "nearest 4x4"),
        ({"num_heads": 5}, "num_heads 5 does not divide the 64 channels"),
        ({"num_head_channels": 48}, "num_head_channels 48 does not divide the 64 channels"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0: must be at least 1"),
        ({"model_channels": 33}, "model_channels is 33: must be even"),
        ({"channel_mult": ()}, "channel_mult is"),
        ({"channel_mult": (0.01, 1)}, "channel_mult is"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"low_res_channels": -1}, "low_res_channels is -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        replace(SMALL, **change)
    assert "\n" not in str(refusal.value)


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="pool is 'mean': must be one of attention, adaptive, spatial, spatial_v2"):
        replace(CLASSIFIER, pool="mean")
