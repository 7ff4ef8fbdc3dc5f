"""The decoder of AutoSAM's prompt generator: feature maps in, one dense prompt out.

Paper: Shaharabany et al. 2023, AutoSAM, arXiv 2306.06370.
Authors' repository: talshaharabany/AutoSAM @ 3959d72, ``SmallDecoder`` in models/model_single.py, ``UpBlockSkip`` and
``CNNBlock`` in models/base.py.

Differs from the authors' code:
- The second BatchNorm of the last block, which is never called, is not built.
- The dropouts of rate 0 are not built.
- Upsampling goes to the size of the map it meets, so a side that 16 does not divide works; for others it is the same.
- ``width`` offers a slimmer decoder: 1x1 projections to that width, then the same blocks.
- ``norm``, ``out_act``, ``zero_init`` and the stride-32 block (a line that is commented out there) are options.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]
OutAct = Literal["tanh", "none"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return BatchNorm, or GroupNorm with up to 8 groups, which does not depend on the batch size."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(math.gcd(channels, 8), channels)


def conv3x3(in_channels: int, out_channels: int, *, dilation: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with bias that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Set weight and bias of ``layer`` to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class UpBlock(nn.Module):
    """Upsample, join with the map of the next finer stride, convolve twice.

    Args:
        in_channels: Channels of the coarse map.
        skip_channels: Channels of the finer map.
        width: Channels that come out.
        norm: Which normalisation stands after the second convolution.
    """

    def __init__(self, in_channels: int, skip_channels: int, width: int, *, norm: Norm) -> None:
        super().__init__()
        # The authors put neither norm nor activation between the two convolutions.
        self.conv1 = conv3x3(in_channels + skip_channels, width)
        self.conv2 = conv3x3(width, width)
        self.norm = make_norm(norm, width)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) and (B, skip_channels, H, W) to (B, width, H, W)."""
        upsampled = F.interpolate(coarse, skip.shape[-2:], mode="bilinear", align_corners=False)
        joined: Tensor = self.norm(self.conv2(self.conv1(torch.cat([upsampled, skip], dim=1))))
        return F.leaky_relu(joined)


class FeatureDecoder(nn.Module):
    """Join feature maps from coarse to fine.

    Args:
        feature_channels: Channels of the maps, finest first.
        width: None keeps each map's own channels, as the paper does; a number projects every map to it first.
        norm: Which normalisation the blocks use.

    Attributes:
        channels: Channels of the result.
    """

    def __init__(self, feature_channels: Sequence[int], *, width: int | None = None, norm: Norm = "batch") -> None:
        super().__init__()
        channels = tuple(feature_channels) if width is None else (width,) * len(feature_channels)
        self.projections = nn.ModuleList(
            nn.Identity() if width is None else nn.Conv2d(wide, width, 1, bias=False) for wide in feature_channels
        )
        pairs = list(zip(channels[1:], channels[:-1], strict=True))[::-1]
        self.blocks = nn.ModuleList(UpBlock(coarse, fine, fine, norm=norm) for coarse, fine in pairs)
        self.channels = channels[0]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features, finest first, to one map (B, channels, H, W) at the finest size."""
        maps = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
        joined: Tensor = maps[-1]
        for block, skip in zip(self.blocks, maps[-2::-1], strict=True):
            joined = block(joined, skip)
        return joined


class PromptDecoder(nn.Module):
    """Turn feature maps into a dense prompt: up to the finest map, two convolutions, tanh, resize to the grid.

    Args:
        feature_channels: Channels of the maps, finest first.
        out_channels: C of the backbone, 256 for every released SAM.
        grid: g of the backbone, the side of the result.
        width: None for the paper's decoder, a number for a slimmer one.
        norm: Which normalisation the blocks use.
        out_act: The last activation.
        zero_init: Start with an output of zero; then only the last convolution has a gradient in the first step.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        out_channels: int,
        *,
        grid: int,
        width: int | None = None,
        norm: Norm = "batch",
        out_act: OutAct = "tanh",
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.out_act = grid, out_act
        self.up = FeatureDecoder(feature_channels, width=width, norm=norm)
        middle = out_channels if width is None else width
        self.conv1 = conv3x3(self.up.channels, middle)
        self.norm = make_norm(norm, middle)
        self.conv2 = conv3x3(middle, out_channels)
        if zero_init:
            zero(self.conv2)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features, finest first, to (B, out_channels, grid, grid)."""
        prompt = self.conv2(F.relu(self.norm(self.conv1(self.up(features)))))
        if self.out_act == "tanh":
            prompt = torch.tanh(prompt)
        return resize_to_grid(prompt, self.grid)


def resize_to_grid(maps: Tensor, grid: int) -> Tensor:
    """Resample (B, C, H, W) bilinearly to (B, C, grid, grid), corner to corner as the authors do."""
    if maps.shape[-2:] == (grid, grid):
        return maps
    return F.interpolate(maps, (grid, grid), mode="bilinear", align_corners=True)
