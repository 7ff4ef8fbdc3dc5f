"""Masks as run lengths and back without loss, many at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def encode_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Write masks as run lengths in COCO's uncompressed way: columns one below the other, a run of zeros first.

    Args:
        masks: (K, H, W) bool.

    Returns:
        The run lengths of all masks in a row (R,) int64, and how many belong to each mask (K,) int64. The runs of a mask sum
        to H times W; the first is 0 where its first pixel is set.

    Examples:
        >>> encode_masks(torch.tensor([[[0, 1], [1, 1]]], dtype=torch.bool))
        (tensor([1, 3]), tensor([2]))
    """
    flat = masks.transpose(1, 2).flatten(1)
    n_masks, n_pixels = flat.shape
    before = torch.nn.functional.pad(flat[:, :-1], (1, 0))
    rows, columns = (flat ^ before).nonzero(as_tuple=True)
    ends = torch.arange(1, n_masks + 1) * n_pixels
    # Where a mask ends and the next begins with a set pixel both stand at one place; the stable sort leaves the end first.
    places = torch.cat([ends, rows * n_pixels + columns]).sort(stable=True).values
    runs = places.diff(prepend=torch.zeros(1, dtype=torch.int64))
    return runs, torch.bincount(rows, minlength=n_masks) + 1


def decode_masks(runs: Tensor, lengths: Tensor, size: tuple[int, int]) -> Tensor:
    """Read masks (K, H, W) bool from ``encode_masks``.

    Args:
        runs: (R,) integers.
        lengths: (K,) integers, the number of runs of each mask.
        size: (H, W).

    Raises:
        ValueError: If the runs do not fill masks of this size.
    """
    height, width = size
    n_pixels, runs, lengths = height * width, runs.long(), lengths.long()
    ends = torch.arange(1, len(lengths) + 1) * n_pixels
    filled = int(lengths.sum()) == len(runs) and bool((lengths > 0).all()) and bool((runs >= 0).all())
    if not filled or not torch.equal(runs.cumsum(0)[lengths.cumsum(0) - 1], ends):
        raise ValueError(f"the runs must fill {len(lengths)} masks of {height} x {width} pixels, and do not.")
    first = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    is_set = (torch.arange(len(runs)) - first) % 2 == 1
    return torch.repeat_interleave(is_set, runs).view(-1, width, height).transpose(1, 2).contiguous()
