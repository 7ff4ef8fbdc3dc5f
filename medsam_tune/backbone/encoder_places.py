"""What the open blocks of both encoder families do with the adapters round their attention."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, cast

from torch import Tensor, nn

from medsam_tune.backbone.anatomy import ENCODER_PLACES


class DepthPlace(nn.Module):
    """Stand where the attention over the slices of a chunk joins that within a slice."""

    @property
    @abstractmethod
    def n_slices(self) -> int:
        """Return D, the slices of a chunk, which stand one behind the other."""

    @abstractmethod
    def bias(self, n_slices: int) -> Tensor | None:
        """Return what is added to the scores over slices, (heads, D, D), or None."""

    @abstractmethod
    def forward(self, across: Tensor) -> Tensor:
        """Map what each token attended to over slices, (B D, H, W, C), to what is added to the attention within slices."""


class SliceAttention(Protocol):
    """Attend within slices, and over them with the same weights."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map tokens (B D, H, W, C) to the attention within slices."""

    def with_slices(self, tokens: Tensor, n_slices: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map tokens (B D, H, W, C) to the attention within slices and over them."""


def close_places(block: nn.Module) -> None:
    """Leave every place of an open encoder block empty."""
    for place in ENCODER_PLACES:
        setattr(block, place, None)


def attend_adapted(block: nn.Module, attention: SliceAttention, tokens: Tensor) -> Tensor:
    """Return what an open block adds to its stream for its attention, with what stands in its places.

    Args:
        block: With the places of ``ENCODER_PLACES``.
        attention: The block's.
        tokens: (B D, H, W, C), what the attention reads.
    """
    depth = cast("DepthPlace | None", block.depth_adapter)
    adapter = cast("nn.Module | None", block.attention_adapter)
    across: Tensor | None = None
    if depth is None:
        attended = attention(tokens)
    else:
        attended, across = attention.with_slices(tokens, depth.n_slices, depth.bias(depth.n_slices))
    if adapter is not None:
        attended = adapter(attended)
    return attended if depth is None or across is None else attended + depth(across)
