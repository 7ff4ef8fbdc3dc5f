"""Chunks of exactly D slices, so that what mixes slices needs a reshape and nothing else; attention over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.types import EncoderInput


def fill_chunks(inputs: EncoderInput) -> tuple[EncoderInput, Tensor | None]:
    """Return the images in chunks of D slices one behind the other, and where those that were given stand among them.

    Slices are put in the order of their positions. A chunk with fewer than D slices ends in copies of its last one. Images
    that stand alone are chunks of one slice.

    Args:
        inputs: B images; D is ``chunk_length``.

    Returns:
        Of B' images, a multiple of D, and (B,) int64; None where nothing had to be done.

    Raises:
        ValueError: If a chunk has more than D slices.
    """
    length = inputs.chunk_length
    if inputs.chunk_index is None or length == 1:
        return replace(inputs, chunk_length=1), None
    order, kept = _order(inputs, length)
    if order == list(range(len(inputs.images))):
        return inputs, None
    device = inputs.images.device
    rows, positions = torch.tensor(order, device=device), torch.tensor(kept, device=device)

    def taken(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    filled = EncoderInput(
        inputs.images[rows],
        tuple(inputs.frames[row] for row in order),
        taken(inputs.volume_index),
        taken(inputs.slice_index),
        None if inputs.fuse is None else _fused_once(inputs.fuse, rows, positions),
        taken(inputs.chunk_index),
        length,
    )
    return filled, positions


def depth_attention(q: Tensor, k: Tensor, v: Tensor, n_slices: int, bias: Tensor | None = None) -> Tensor:
    """Attend over the D slices at each place.

    Args:
        q: (B D, N, heads, d) of N places.
        k: As q.
        v: As q.
        n_slices: D.
        bias: (heads, D, D), added to the scores.

    Returns:
        (B D, N, heads d). With D = 1 it is v.
    """
    rows, places, heads, channels = q.shape

    def folded(tensor: Tensor) -> Tensor:
        by_slice = tensor.reshape(-1, n_slices, places, heads, channels)
        return by_slice.permute(0, 2, 3, 1, 4).flatten(0, 1)

    mask = None if bias is None else bias.to(q.dtype)
    attended = F.scaled_dot_product_attention(folded(q), folded(k), folded(v), attn_mask=mask)
    by_place = attended.reshape(-1, places, heads, n_slices, channels)
    return by_place.permute(0, 3, 1, 2, 4).reshape(rows, places, heads * channels)


def _order(inputs: EncoderInput, length: int) -> tuple[list[int], list[int]]:
    """Return the row of each image that is encoded, and the place of each row among these."""
    numbers = inputs.chunk_index.tolist() if inputs.chunk_index is not None else []
    slices = list(range(len(numbers))) if inputs.slice_index is None else inputs.slice_index.tolist()
    chunks: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        chunks.setdefault(number, []).append(row)
    order: list[int] = []
    kept = [0] * len(numbers)
    for number, members in chunks.items():
        if len(members) > length:
            raise ValueError(f"chunk {number} has {len(members)} slices, but chunk_length is {length}. Cut it.")
        members = sorted(members, key=lambda row: slices[row])
        for place, row in enumerate(members):
            kept[row] = len(order) + place
        order += [*members, *members[-1:] * (length - len(members))]
    return order, kept


def _fused_once(fuse: Callable[[Tensor], Tensor], rows: Tensor, positions: Tensor) -> Callable[[Tensor], Tensor]:
    """Fuse the images that were given, which have the priors, and copy them as the images were."""
    return lambda pixels: fuse(pixels[positions])[rows]
