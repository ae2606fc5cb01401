"""The Inception network against the recorded outputs of another one, and what must make it differ."""

from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adm.metrics._inception import InceptionNetwork, InceptionOutput
from adm.metrics._inception_names import torchvision_names
from adm.metrics._inception_weights import expected_shapes, inception_network
from adm.metrics._resize import tf1_resize
from adm.runtime.errors import DamagedError
from golden_inception import SIZES, gathered, inception_weights, recorded_images, recorded_values

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return inception_weights()


@pytest.fixture(scope="module")
def network(weights) -> InceptionNetwork:
    return inception_network(weights, "recorded")


def outputs(network: InceptionNetwork, images: Tensor, dtype: torch.dtype = torch.float32) -> InceptionOutput:
    return network(normalized(tf1_resize(images, 299, dtype)))


def normalized(resized: Tensor) -> Tensor:
    return ((resized - 128) / 128).permute(0, 3, 1, 2)


def difference(values: Tensor, truth: Tensor) -> float:
    """The largest one, over the largest value."""
    return float((values.double() - truth.double()).abs().max() / truth.double().abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_the_recorded_outputs(network, weights, size):
    out, truth = outputs(network, recorded_images(size)), recorded_values(size)
    assert [tuple(tap.shape) for tap in out] == [(2, 2048), (2, 2023), (2, 1008)]
    assert difference(out.pool, truth["pool"]) < TOLERANCE
    assert difference(out.spatial, truth["spatial"]) < TOLERANCE
    assert difference(out.logits, truth["logits_unbiased"]) < TOLERANCE
    assert difference(out.logits + weights["fc.bias"], truth["logits"]) < TOLERANCE
    # The bias is no rounding: without it the Inception Score is another.
    assert difference(out.logits, truth["logits"]) > 10 * TOLERANCE


def test_in_float64_two_forms_of_the_resize_give_the_same_features(weights):
    network = inception_network(weights, "recorded", torch.float64)
    images = recorded_images("32x32")[:1]
    products, neighbours = outputs(network, images, torch.float64), network(normalized(gathered(images, 299)))
    for a, b in zip(products, neighbours, strict=True):
        assert a.dtype == torch.float64 and difference(a, b) < 1e-9


# ---- what other programs do, and what must not pass for the recorded features --------------------

SIZE = "32x32"
TRUTH = recorded_values(SIZE)


@pytest.fixture(scope="module")
def layers(network) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(network, name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
        for name in ("Mixed_6c", "Mixed_6d", "Mixed_6e")
    ]
    outputs(network, recorded_images(SIZE))
    for hook in hooks:
        hook.remove()
    heads = network.Mixed_6d.heads
    seen["before_relu"] = F.conv2d(seen["Mixed_6c"], heads.weight, heads.bias)
    return seen


def spatial(layer: Tensor, channels: int = 7) -> Tensor:
    return layer[:, :channels].permute(0, 2, 3, 1).flatten(1)


def test_only_mixed_6d_behind_its_relu_is_the_spatial_layer(layers):
    assert difference(spatial(layers["Mixed_6d"]), TRUTH["spatial"]) < TOLERANCE
    assert difference(spatial(layers["Mixed_6e"]), TRUTH["spatial"]) > 0.1
    assert difference(spatial(layers["before_relu"]), TRUTH["spatial"]) > 0.1
    assert difference(spatial(layers["before_relu"].relu()), TRUTH["spatial"]) < TOLERANCE


def test_channels_first_or_eight_of_them_are_not_the_spatial_features(layers):
    assert difference(layers["Mixed_6d"][:, :7].flatten(1), TRUTH["spatial"]) > 0.1
    eight = spatial(layers["Mixed_6d"], 8)
    assert eight.shape[1] != 2023 and difference(eight[:, :2023], TRUTH["spatial"]) > 0.1


@pytest.mark.parametrize("antialias", [False, True])
def test_torchs_resize_gives_other_features(network, antialias):
    x = recorded_images(SIZE).permute(0, 3, 1, 2).float()
    out = network((F.interpolate(x, (299, 299), mode="bilinear", antialias=antialias) - 128) / 128)
    assert difference(out.pool, TRUTH["pool"]) > 10 * TOLERANCE
    assert difference(out.spatial, TRUTH["spatial"]) > 0.1


def test_a_range_up_to_one_gives_other_features(network):
    out = network(tf1_resize(recorded_images(SIZE), 299).permute(0, 3, 1, 2) / 127.5 - 1)
    assert difference(out.pool, TRUTH["pool"]) > 10 * TOLERANCE


def test_averages_with_padding_give_other_features(network, monkeypatch):
    plain = F.avg_pool2d
    monkeypatch.setattr(F, "avg_pool2d", lambda *args, **options: plain(*args, **options | {"count_include_pad": True}))
    assert difference(outputs(network, recorded_images(SIZE)).pool, TRUTH["pool"]) > 10 * TOLERANCE


def test_an_average_in_the_last_block_gives_other_features(network, monkeypatch):
    plain = F.max_pool2d

    def averaged(x: Tensor, *args: int, **options: int) -> Tensor:
        if options.get("padding"):
            return F.avg_pool2d(x, *args, **options, count_include_pad=False)
        return plain(x, *args, **options)

    monkeypatch.setattr(F, "max_pool2d", averaged)
    assert difference(outputs(network, recorded_images(SIZE)).pool, TRUTH["pool"]) > 10 * TOLERANCE


# ---- files of weights ----------------------------------------------------------------------------


def test_batch_norms_are_folded_as_they_compute(weights):
    """Against torch's own batch norm, with gammas that the released file does not have."""
    generator = torch.Generator().manual_seed(0)
    state = dict(weights)
    name = "Conv2d_1a_3x3"
    state[f"{name}.bn.weight"] = torch.rand(32, generator=generator) + 0.5
    x = torch.randn(2, 3, 20, 20, generator=generator, dtype=torch.float64)
    y = F.conv2d(x, state[f"{name}.conv.weight"].double(), stride=2)
    parts = (state[f"{name}.bn.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias"))
    expected = F.batch_norm(y, *parts, eps=1e-3).relu()
    first = inception_network(state, "x", torch.float64).stem[0]
    torch.testing.assert_close(first(x), expected, rtol=1e-12, atol=1e-12)


def test_a_file_without_gammas_or_counts_is_the_same_network(weights, network):
    bare = {name: tensor for name, tensor in weights.items() if not name.endswith("bn.weight")}
    counted = {**weights, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}
    for state in (bare, counted):
        other = inception_network(state, "x").state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())


def test_the_names_of_the_tensorflow_graph_are_the_same_network(weights, network):
    back = {ours: theirs for theirs, ours in torchvision_names().items()}
    port = {back[name]: tensor for name, tensor in weights.items() if not name.endswith("bn.weight")}
    # Of the names and shapes that OpenAI's port (openai/consistency_models at e32b69e) gives its parameters.
    listed = "\n".join(f"{name} {tuple(port[name].shape)}" for name in sorted(port))
    assert sha256(listed.encode()).hexdigest() == "86f38dd8f39e6b819b73ee23767aa87f80223a372aac68be02a5da6afe68e6d1"
    other = inception_network(port, "x").state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())


def test_each_released_tensor_has_one_place(weights):
    with torch.device("meta"):
        shapes = expected_shapes(InceptionNetwork())
    assert {name for name in weights if not name.endswith("bn.weight")} - {"fc.bias"} == set(shapes)
    assert len(set(torchvision_names().values())) == len(torchvision_names()) == 4 * 94 + 2


def test_another_network_is_refused_in_one_line(weights):
    lacking = {name: tensor for name, tensor in weights.items() if not name.startswith("Mixed_7c.branch_pool")}
    with pytest.raises(
        DamagedError, match=r"x: not the weights .* 4 of 470 tensors missing, such as Mixed_7c"
    ) as error:
        inception_network(lacking, "x")
    assert "\n" not in str(error.value)
    imagenet = {**weights, "fc.weight": torch.zeros(1000, 2048)}
    with pytest.raises(DamagedError, match=r"of another shape, such as fc.weight \(1000, 2048\) instead of \(1008"):
        inception_network(imagenet, "x")
    with pytest.raises(DamagedError, match=r"Mixed_6a\.branch3x3\.bn\.weight \(3,\)"):
        inception_network({**weights, "Mixed_6a.branch3x3.bn.weight": torch.ones(3)}, "x")
    with pytest.raises(DamagedError, match="not floating"):
        inception_network({**weights, "fc.weight": torch.zeros(1008, 2048, dtype=torch.int64)}, "x")
    with pytest.raises(DamagedError, match="377 of 377"):
        inception_network({}, "x")
