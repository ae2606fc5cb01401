"""DINOv2's class token: the features of FD-DINOv2, which follows people's eyes more closely than FID."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from adm.checkpoints.torch_file import read_state_dict
from adm.metrics._dinov2 import vision_transformer
from adm.metrics._extractor import as_device, checked_images, exact_float32, in_batches, marked_name, repeated_grey
from adm.runtime import files
from adm.runtime.errors import DataError
from adm.runtime.text import shown_path

__all__ = ["DINOv2Extractor"]

IMAGE_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 8
# By width, the name and the sha256 of the file that Meta publishes as dinov2_<name>_pretrain.pth.
PUBLISHED = {
    384: ("vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    768: ("vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    1024: ("vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    1536: ("vitg14", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
}


class DINOv2Extractor:
    """uint8 images of any size -> {"features": (n, d)}, the class token behind the last norm; d is 1024 for ViT-L/14.

    Images become 224 x 224 by torch's bicubic interpolation with antialias=True, in float32, neither rounded nor
    clipped, then (v / 255 - mean) / std with ImageNet's. Grey images are repeated as three channels. Papers report
    FD-DINOv2 with ViT-L/14 and 50,000 samples; some resize with Pillow, which rounds to whole grey levels.

    weights: a file that Meta released, such as dinov2_vitl14_pretrain.pth; the size is read from it. Under weights of
    another hash than the published one ``name`` ends in "@" and its first 8 digits. Raises DataError when there is
    no file, DamagedError for one that is no such network. Source: Oquab et al. 2024; Stein et al. 2023.
    """

    taps = ("features",)

    def __init__(self, weights: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.device = as_device(device)
        path = Path(weights).expanduser()
        if not path.exists():
            raise DataError(f"{shown_path(path)}: no such file. Give the weights, e.g. dinov2_vitl14_pretrain.pth.")
        sha256 = files.sha256_file(path)
        self.network = vision_transformer(read_state_dict(path), shown_path(path)).to(self.device)
        size, published = PUBLISHED.get(self.network.norm.normalized_shape[0], ("vit", None))
        self.name = marked_name(f"dinov2-{size}", sha256, published)
        self.conditions: dict[str, object] = {
            "weights_sha256": sha256,
            "preprocessing": f"bicubic resize with antialias to {IMAGE_SIZE} in float32, ImageNet mean and std",
            "precision": "float32",
        }

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images (n, H, W, C) with C = 1 or 3."""
        with exact_float32():
            return in_batches(self._features, checked_images(images), BATCH_SIZE, self.device)

    def _features(self, images: Tensor) -> Mapping[str, Tensor]:
        x = repeated_grey(images).permute(0, 3, 1, 2).to(torch.float32)
        if x.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            x = F.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
        return {"features": self.network((x / 255 - mean) / std)}
