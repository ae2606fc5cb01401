"""DINOv2's networks against the recorded outputs of Meta's code, and the images that they are given."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from adm.metrics._dinov2 import vision_transformer
from adm.metrics.extractors import dinov2
from adm.metrics.extractors.dinov2 import DINOv2Extractor
from adm.runtime import files
from adm.runtime.errors import DamagedError, DataError
from golden_dinov2 import dinov2_input, dinov2_outputs, dinov2_weights

RECORDED = dinov2_outputs()


@pytest.mark.parametrize("case, size", RECORDED)
def test_the_class_token_is_the_recorded_one(case, size):
    network = vision_transformer(dinov2_weights(case), "recorded")
    torch.testing.assert_close(network(dinov2_input(size)), RECORDED[case, size], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["mlp", "registers"])
def test_positions_are_stretched_as_they_were_released(case, monkeypatch):
    """The other rule, which today's ports apply to all networks alike, is seen."""
    network = vision_transformer(dinov2_weights(case), "recorded")
    plain = torch.nn.functional.interpolate

    def other(x, **options):
        if "scale_factor" in options:
            return plain(x, size=(4, 4), mode="bicubic")
        return plain(x, scale_factor=4.1 / 9, mode="bicubic")

    monkeypatch.setattr(torch.nn.functional, "interpolate", other)
    assert (network(dinov2_input("56x56")) - RECORDED[case, "56x56"]).abs().max() > 1e-3


def saved(tmp_path, case="mlp"):
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    torch.save(dinov2_weights(case), path)
    return path


def test_images_are_resized_by_pillows_filter_and_normalized_by_imagenets_numbers(tmp_path):
    """Pillow's float images have the same bicubic kernel, and round nothing."""
    extractor = DINOv2Extractor(saved(tmp_path))
    seen = []
    extractor.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for height, width in ((64, 64), (224, 224), (300, 250)):
        images = np.random.RandomState(0).randint(0, 256, (1, height, width, 3)).astype(np.uint8)
        extractor(torch.from_numpy(images))
        channels = [Image.fromarray(images[0, :, :, c].astype(np.float32)) for c in range(3)]
        x = np.stack([np.asarray(c.resize((224, 224), Image.Resampling.BICUBIC)) for c in channels])
        expected = (x / 255 - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[
            :, None, None
        ]
        assert np.abs(seen.pop()[0].numpy() - expected).max() < 1e-4
    assert x.min() < -1 and x.max() > 256  # overshoot is not clipped either


def test_features_are_the_networks_class_tokens(tmp_path):
    extractor = DINOv2Extractor(saved(tmp_path, "gated"))
    images = torch.from_numpy(np.random.RandomState(1).randint(0, 256, (3, 224, 224, 3)).astype(np.uint8))
    x = images.permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = vision_transformer(dinov2_weights("gated"), "x")(x)
    torch.testing.assert_close(extractor(images)["features"], expected, rtol=1e-4, atol=1e-5)


def test_the_name_says_the_size_and_whether_the_weights_are_the_published_ones(tmp_path, monkeypatch):
    path = saved(tmp_path)
    sha256 = files.sha256_file(path)
    assert DINOv2Extractor(path).name == f"dinov2-vit@{sha256[:8]}"
    monkeypatch.setitem(dinov2.PUBLISHED, 128, ("vitl14", "0" * 64))
    assert DINOv2Extractor(path).name == f"dinov2-vitl14@{sha256[:8]}"
    monkeypatch.setitem(dinov2.PUBLISHED, 128, ("vitl14", sha256))
    assert DINOv2Extractor(path).name == "dinov2-vitl14"
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for _, digest in dinov2.PUBLISHED.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.pop("norm.bias"),
        lambda state: state.update({"blocks.999999999.norm1.bias": torch.zeros(128)}),
        lambda state: state.update({"blocks.1.attn.qkv.weight": torch.zeros(384, 64)}),
        lambda state: state.update({"pos_embed": torch.zeros(1, 80, 128)}),
        lambda state: state.update({"patch_embed.proj.weight": torch.zeros(128, 3, 16, 16)}),
        lambda state: state.update({"patch_embed.proj.weight": torch.zeros(100, 3, 14, 14)}),
        lambda state: state.update({"patch_embed.proj.weight": torch.zeros(128)}),
        lambda state: state.update({"blocks.0.mlp.fc2.weight": torch.zeros(128)}),
    ],
    ids=["empty", "lacking", "gap", "misshapen", "no square", "patch", "width", "flat", "vector"],
)
def test_other_weights_are_refused_in_one_line(change):
    state = dinov2_weights("mlp")
    change(state)
    with pytest.raises(DamagedError, match=r"w\.pth: not the weights of a DINOv2 network") as error:
        vision_transformer(state, "w.pth")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"vitl14\.pth: no such file"):
        DINOv2Extractor(tmp_path / "vitl14.pth")
