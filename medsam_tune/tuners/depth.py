"""What the tuners for volumes share: which tokens are slices of one chunk, and sums over neighbouring slices.

``Backbone.encode`` hands over chunks of exactly D slices one behind the other, so a reshape tells them apart. Whatever is mixed
is mixed on the whole grid (B D, H, W, C): inside windows the neighbours along the batch are windows of one slice, not slices,
which is the fault of Medical SAM Adapter's and SAMed-2's public code.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone


class SliceModule(nn.Module):
    """Know how many slices of a chunk the encoder has before it.

    Args:
        backbone: Where the module will stand.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # In a tuple the backbone is no child.
        self._backbone = (backbone,)

    @property
    def n_slices(self) -> int:
        """Return D; 1 where images stand alone."""
        return self._backbone[0].slices_at_once


def sum_over_neighbours(parts: Tensor, n_slices: int) -> Tensor:
    """Add to what a slice makes of itself what the slice below and the slice above make for it.

    Args:
        parts: (3, B D, ...): of each slice its share for the slice above, for itself, and for the slice below.
        n_slices: D. There is nothing beyond the first and the last slice of a chunk.

    Returns:
        (B D, ...).

    Examples:
        >>> sum_over_neighbours(torch.tensor([[1.0, 2, 3], [10, 20, 30], [100, 200, 300]]), 3).tolist()
        [210.0, 321.0, 32.0]
    """
    for_above, own, for_below = parts.reshape(3, -1, n_slices, *parts.shape[2:])
    total: Tensor = own.clone()
    total[:, 1:] += for_above[:, :-1]
    total[:, :-1] += for_below[:, 1:]
    return total.flatten(0, 1)


def depth_convolution(tokens: Tensor, convolution: nn.Conv3d, n_slices: int) -> Tensor:
    """Convolve over the slices at each place: a dense Conv3d with kernel (3, 1, 1) and zeros beyond the chunk.

    Args:
        tokens: (B D, H, W, C).
        convolution: Its weight (C', C, 3, 1, 1) and bias (C') are used.
        n_slices: D.

    Returns:
        (B D, H, W, C').
    """
    taps = convolution.weight[..., 0, 0].permute(2, 0, 1)
    parts = F.linear(tokens, taps.flatten(0, 1)).view(*tokens.shape[:-1], 3, -1).movedim(-2, 0)
    return sum_over_neighbours(parts, n_slices) + cast(Tensor, convolution.bias)


def depthwise_convolution(tokens: Tensor, convolution: nn.Conv3d, n_slices: int) -> Tensor:
    """Convolve each channel over 3 x 3 x 3 tokens, with zeros beyond grid and chunk.

    Args:
        tokens: (B D, H, W, C).
        convolution: Its weight (C, 1, 3, 3, 3) and bias (C) are used.
        n_slices: D.

    Returns:
        (B D, H, W, C).
    """
    channels = tokens.shape[-1]
    # Of each channel three maps: one for each slice it adds to. Planes are convolved faster than volumes on a CPU.
    taps = convolution.weight.permute(0, 2, 1, 3, 4).flatten(0, 1)
    maps = F.conv2d(tokens.permute(0, 3, 1, 2), taps, padding=1, groups=channels)
    parts = maps.view(len(tokens), channels, 3, *tokens.shape[1:3]).permute(2, 0, 3, 4, 1)
    return sum_over_neighbours(parts, n_slices) + cast(Tensor, convolution.bias)


def relative_bias(table: Tensor, n_slices: int) -> Tensor:
    """Return (heads, D, D): a learned number for each distance of two slices, the largest known one beyond that.

    Args:
        table: (heads, 2 P - 1), for the distances -(P - 1) to P - 1.
        n_slices: D.
    """
    reach = (table.shape[1] - 1) // 2
    steps = torch.arange(n_slices, device=table.device)
    return table[:, (steps[None] - steps[:, None]).clamp(-reach, reach) + reach]
