"""The Inception network of 2015-12-05, in which FID, sFID and the Inception Score are defined.

It differs from the networks that are trained today under its name: averages leave the padding out, the last block has
a maximum where its neighbour has an average, and there are 1008 outputs. Batch norms are folded into the convolutions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Convolution", "InceptionNetwork", "InceptionOutput"]

IMAGE_SIZE = 299
SPATIAL_CHANNELS = 7

Size = int | tuple[int, int]


class InceptionOutput(NamedTuple):
    """pool (N, 2048), spatial (N, 2023), logits (N, 1008) without their bias; float32 or wider."""

    pool: Tensor
    spatial: Tensor
    logits: Tensor


class Convolution(nn.Conv2d):
    """Convolutions of one input, whose batch norms are folded in, then ReLU.

    widths: output channels by the name of the released layer; several layers of equal kernel are one product. The
    last, when ``averaged``, looks at 3x3 means: those are taken behind it, of fewer channels, before its ReLU, which
    is the same since both are linear.
    """

    def __init__(
        self,
        in_channels: int,
        widths: dict[str, int],
        kernel: Size = 1,
        stride: int = 1,
        padding: Size = 0,
        averaged: bool = False,
    ) -> None:
        super().__init__(in_channels, sum(widths.values()), kernel, stride, padding)
        self.widths = widths
        self.averaged = averaged

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x))

    def branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of each layer."""
        *plain, last = super().forward(x).split(list(self.widths.values()), dim=1)
        if self.averaged:
            last = F.avg_pool2d(last, 3, stride=1, padding=1, count_include_pad=False)
        return tuple(F.relu(y) for y in (*plain, last))


def _conv(name: str, c_in: int, c_out: int, kernel: Size = 1, stride: int = 1, padding: Size = 0) -> Convolution:
    return Convolution(c_in, {name: c_out}, kernel, stride, padding)


class Mixed35(nn.Module):
    """35 x 35: single, 5x5, twice 3x3, averaged."""

    def __init__(self, c_in: int, averaged: int) -> None:
        super().__init__()
        heads = {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": averaged}
        self.heads = Convolution(c_in, heads, averaged=True)
        self.five = _conv("branch5x5_2", 48, 64, 5, padding=2)
        self.three = nn.Sequential(
            _conv("branch3x3dbl_2", 64, 96, 3, padding=1),
            _conv("branch3x3dbl_3", 96, 96, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        single, five, three, averaged = self.heads.branches(x)
        return torch.cat([single, self.five(five), self.three(three), averaged], dim=1)


class Reduce17(nn.Module):
    """35 x 35 to 17 x 17: 3x3, twice 3x3, largest."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.single = _conv("branch3x3", c_in, 384, 3, stride=2)
        self.three = nn.Sequential(
            _conv("branch3x3dbl_1", c_in, 64),
            _conv("branch3x3dbl_2", 64, 96, 3, padding=1),
            _conv("branch3x3dbl_3", 96, 96, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.single(x), self.three(x), F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed17(nn.Module):
    """17 x 17: single, 7x7 in two parts, twice 7x7 in four, averaged."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        heads = {"branch1x1": 192, "branch7x7_1": width, "branch7x7dbl_1": width, "branch_pool": 192}
        self.heads = Convolution(c_in, heads, averaged=True)
        self.seven = nn.Sequential(
            _conv("branch7x7_2", width, width, (1, 7), padding=(0, 3)),
            _conv("branch7x7_3", width, 192, (7, 1), padding=(3, 0)),
        )
        self.twice = nn.Sequential(
            _conv("branch7x7dbl_2", width, width, (7, 1), padding=(3, 0)),
            _conv("branch7x7dbl_3", width, width, (1, 7), padding=(0, 3)),
            _conv("branch7x7dbl_4", width, width, (7, 1), padding=(3, 0)),
            _conv("branch7x7dbl_5", width, 192, (1, 7), padding=(0, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        single, seven, twice, averaged = self.heads.branches(x)
        return torch.cat([single, self.seven(seven), self.twice(twice), averaged], dim=1)


class Reduce8(nn.Module):
    """17 x 17 to 8 x 8: 3x3, 7x7 then 3x3, largest."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.heads = Convolution(c_in, {"branch3x3_1": 192, "branch7x7x3_1": 192})
        self.three = _conv("branch3x3_2", 192, 320, 3, stride=2)
        self.seven = nn.Sequential(
            _conv("branch7x7x3_2", 192, 192, (1, 7), padding=(0, 3)),
            _conv("branch7x7x3_3", 192, 192, (7, 1), padding=(3, 0)),
            _conv("branch7x7x3_4", 192, 192, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        three, seven = self.heads.branches(x)
        return torch.cat([self.three(three), self.seven(seven), F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed8(nn.Module):
    """8 x 8: single, a 3x3 and a 3x3 behind another as rows beside columns, and averages or, at the end, maxima."""

    def __init__(self, c_in: int, averaged: bool) -> None:
        super().__init__()
        heads = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        self.heads = Convolution(c_in, {**heads, "branch_pool": 192} if averaged else heads, averaged=averaged)
        self.largest = None if averaged else _conv("branch_pool", c_in, 192)
        self.rows = _conv("branch3x3_2a", 384, 384, (1, 3), padding=(0, 1))
        self.columns = _conv("branch3x3_2b", 384, 384, (3, 1), padding=(1, 0))
        self.twice = _conv("branch3x3dbl_2", 448, 384, 3, padding=1)
        self.twice_rows = _conv("branch3x3dbl_3a", 384, 384, (1, 3), padding=(0, 1))
        self.twice_columns = _conv("branch3x3dbl_3b", 384, 384, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        single, three, twice, *last = self.heads.branches(x)
        if self.largest is not None:
            last = [self.largest(F.max_pool2d(x, 3, stride=1, padding=1))]
        twice = self.twice(twice)
        parts = [single, self.rows(three), self.columns(three), self.twice_rows(twice), self.twice_columns(twice)]
        return torch.cat([*parts, *last], dim=1)


class InceptionNetwork(nn.Module):
    """x (N, 3, 299, 299), (grey level - 128) / 128 -> InceptionOutput.

    ``spatial`` is the first 7 channels of Mixed_6d behind its ReLU, pixel by pixel: index (row * 17 + column) * 7 +
    channel. Attributes have the released names of the blocks. Source: classify_image_graph_def.pb of 2015-12-05;
    Szegedy et al. 2016; Nash et al. 2021 for the spatial features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv("Conv2d_1a_3x3", 3, 32, 3, stride=2),
            _conv("Conv2d_2a_3x3", 32, 32, 3),
            _conv("Conv2d_2b_3x3", 32, 64, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            _conv("Conv2d_3b_1x1", 64, 80),
            _conv("Conv2d_4a_3x3", 80, 192, 3),
            nn.MaxPool2d(3, stride=2),
        )
        self.Mixed_5b = Mixed35(192, averaged=32)
        self.Mixed_5c = Mixed35(256, averaged=64)
        self.Mixed_5d = Mixed35(288, averaged=64)
        self.Mixed_6a = Reduce17(288)
        self.Mixed_6b = Mixed17(768, width=128)
        self.Mixed_6c = Mixed17(768, width=160)
        self.Mixed_6d = Mixed17(768, width=160)
        self.Mixed_6e = Mixed17(768, width=192)
        self.Mixed_7a = Reduce8(768)
        self.Mixed_7b = Mixed8(1280, averaged=True)
        self.Mixed_7c = Mixed8(2048, averaged=False)
        self.fc = nn.Linear(2048, 1008, bias=False)

    def forward(self, x: Tensor) -> InceptionOutput:
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.stem(x))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        wide = self.fc.weight.dtype
        pool = x.to(wide).mean(dim=(2, 3))
        return InceptionOutput(pool, spatial.to(wide), self.fc(pool))
