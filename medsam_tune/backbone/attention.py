"""The attention of SAM's ViT, with the same weights and the same result, in less time and memory.

Stock attention writes the scores of all N x N pairs of tokens several times, and keeps them for the backward pass. Here no
N x N tensor is ever whole:

- ``TiledAttention`` (CPU, and any device but CUDA) holds the scores of a few queries at a time, and computes them once more in
  the backward pass.
- ``FoldedAttention`` (CUDA) appends the relative position terms to q, and codes of rows and columns to k. Then q'k' is score
  plus bias, and PyTorch's fused kernels apply, which take no such bias.

Windows that stick out of the grid are filled after the projection: SAM fills them with zeros after the norm, so q, k and v of
every padded token are the projection of zero. The projections then see real tokens alone: at 1024, 512 and 256 pixels a
windowed block projects 1.20, 1.72 and 3.06 times fewer tokens.

Source: segment-anything @ dca509f, ``Attention``, ``add_decomposed_rel_pos`` in modeling/image_encoder.py.
Differs from the authors' code: in the order of floating-point sums alone; on a CPU the bias is not rounded to half precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from medsam_tune.backbone.whole_chunks import depth_attention

# Scores held at a time: 4 MB in float32, which stays in a CPU's cache.
_TILE_NUMBERS = 1 << 20
# Fused kernels of CUDA want head dimensions that are a multiple of this in half precision, and at most the second number.
_ALIGNMENT, _WIDEST_HEAD = 8, 256

PER_TOKEN = "works_per_token"
"""Attribute by which a module says that it maps each token by itself, see ``works_per_token``."""


class AttentionKernel(ABC):
    """Compute softmax(q k' + bias) v, where the bias of query i and key j is rel_h[i, row of j] + rel_w[i, column of j]."""

    alignment: int = 1
    """What the lengths of ``rel_h`` and ``rel_w`` must be a multiple of; they end in zeros where H and W are not."""

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Return (B, heads, N, d).

        Args:
            q: (B, heads, N, d) with N = H W tokens, row by row, multiplied by the scale already.
            k: (B, heads, N, d).
            v: (B, heads, N, d).
            rel_h: (B, heads, N, H), zeros behind that where ``alignment`` asks for more.
            rel_w: (B, heads, N, W), likewise.
            size: H and W.
        """


class TiledAttention(AttentionKernel):
    """Go through the queries in tiles whose scores fit a CPU's cache; the backward pass computes the scores again."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Return (B, heads, N, d), see ``AttentionKernel``."""
        flat = [tensor.flatten(0, 1) for tensor in (q, k, v, rel_h, rel_w)]
        attended = cast(Tensor, _Tiled.apply(*flat)) if _learns(*flat) else _attend_in_tiles(*flat)
        return attended.view(q.shape)


class FoldedAttention(AttentionKernel):
    """Carry the bias in wider heads, so that kernels without a bias do: d + H + W channels, 192 for ViT-B at 1024 pixels."""

    # Matrix products of half precision are slow on CUDA where a side is no multiple of 16 bytes, as 14 is not.
    alignment = _ALIGNMENT

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Return (B, heads, N, d), see ``AttentionKernel``."""
        codes = place_codes(size, (rel_h.shape[-1], rel_w.shape[-1]), like=k).expand(*k.shape[:2], -1, -1)
        queries, keys = torch.cat([q, rel_h, rel_w], dim=-1), torch.cat([k, codes], dim=-1)
        filled = -queries.shape[-1] % _ALIGNMENT
        queries, keys = F.pad(queries, (0, filled)), F.pad(keys, (0, filled))
        # The half-precision kernels want v as wide as q and k; the one for float32 takes it as it is.
        extra = 0 if v.dtype == torch.float32 else queries.shape[-1] - v.shape[-1]
        attended = F.scaled_dot_product_attention(queries, keys, F.pad(v, (0, extra)), scale=1.0)
        return attended[..., : v.shape[-1]]


def place_codes(size: tuple[int, int], lengths: tuple[int, int], *, like: Tensor) -> Tensor:
    """Return (H W, H' + W'): for each token a 1 at its row and a 1 at H' + its column, so that a product picks both terms.

    Args:
        size: H and W.
        lengths: H' and W', at least as large.
        like: Gives dtype and device.
    """
    (height, width), (rows, columns) = size, lengths
    of_row = torch.eye(height, rows, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    of_column = torch.eye(width, columns, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([of_row, of_column], dim=1)


def relative_table(table: Tensor, size: int) -> Tensor:
    """Return (size, size, d): the entry of a relative position table for each pair of query and key along one axis.

    Args:
        table: (L, d), interpolated linearly to 2 size - 1 rows where L is another number, as SAM does.
        size: Tokens along the axis.
    """
    length = 2 * size - 1
    if len(table) != length:
        table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None] + (size - 1)]


def works_per_token(layer: nn.Module) -> bool:
    """Say whether a projection maps each token by itself: a plain linear layer, or what carries ``works_per_token = True``.

    A layer on which others hang hooks counts only with that mark, since a hook may look at a whole window.
    """
    plain = type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
    return plain or bool(getattr(layer, PER_TOKEN, False))


class SamAttention(nn.Module):
    """Stand for the attention of a ViT block of SAM, in windows or over the whole grid; parameters keep their names.

    Args:
        attention: segment_anything's module, whose layers and tables are taken over.
        window: Side of a window in tokens; 0 attends over the whole grid.

    Attributes:
        kernel: How the attention is computed; None chooses by device.
    """

    qkv: nn.Module
    proj: nn.Module

    def __init__(self, attention: nn.Module, *, window: int) -> None:
        super().__init__()
        stock = cast(Any, attention)
        for name, parameter in attention.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.training = attention.training
        self.num_heads = int(stock.num_heads)
        self.scale = float(stock.scale)
        self.use_rel_pos = bool(stock.use_rel_pos)
        self.window_size = window
        self.kernel: AttentionKernel | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Map normed tokens (B, H, W, C), windows not yet made, to (B, H, W, C)."""
        if self.window_size == 0 or works_per_token(self.qkv):
            return self._in_plane(self.qkv(tokens))
        windows, padded = window_partition(tokens, self.window_size)
        return self._out_of_windows(self.qkv(windows), padded, tokens.shape[1:3])

    def with_slices(self, tokens: Tensor, n_slices: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map normed tokens (B D, H, W, C) to what ``forward`` returns, and to the attention over the D slices at each place.

        Both have the same weights. One projection to q, k and v serves both, where it maps each token by itself. Over slices
        there are neither windows nor relative positions.

        Args:
            tokens: D slices of a chunk one behind the other.
            n_slices: D.
            bias: (heads, D, D), added to the scores over slices.
        """
        projected = self.qkv(tokens)
        q, k, v = projected.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        across = self.proj(depth_attention(q, k, v, n_slices, bias).view(tokens.shape))
        shared = self.window_size == 0 or works_per_token(self.qkv)
        return self._in_plane(projected) if shared else self(tokens), across

    def _in_plane(self, projected: Tensor) -> Tensor:
        """Attend within each slice by the projection (B, H, W, 3C) of its tokens."""
        if self.window_size == 0:
            return cast(Tensor, self.proj(self._attend(projected)))
        windows, padded = self._fill(projected)
        return self._out_of_windows(windows, padded, projected.shape[1:3])

    def _out_of_windows(self, windows: Tensor, padded: tuple[int, int], size: torch.Size) -> Tensor:
        attended = self._attend(windows)
        if works_per_token(self.proj):
            return cast(Tensor, self.proj(window_unpartition(attended, self.window_size, padded, size)))
        return cast(Tensor, window_unpartition(self.proj(attended), self.window_size, padded, size))

    def _fill(self, projected: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Cut (B, H, W, 3C) into windows (B', w, w, 3C), padded by the projection of zero; the padded size comes second."""
        batch, height, width, channels = projected.shape
        below, right = -height % self.window_size, -width % self.window_size
        padded = (height + below, width + right)
        if below or right:
            of_zero = self.qkv(projected.new_zeros(1, 1, 1, channels // 3)).to(projected.dtype)
            projected = torch.cat([projected, of_zero.expand(batch, height, right, channels)], dim=2)
            projected = torch.cat([projected, of_zero.expand(batch, below, padded[1], channels)], dim=1)
        return window_partition(projected, self.window_size)[0], padded

    def _attend(self, projected: Tensor) -> Tensor:
        """Map q, k and v of each window or grid (B, H, W, 3C) to what it attended to, (B, H, W, C)."""
        batch, height, width, _ = projected.shape
        heads = projected.reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        kernel = self.kernel or _kernel_for(q, (height, width))
        rel_h, rel_w = self._relative_terms(q.reshape(batch, self.num_heads, height, width, -1), kernel.alignment)
        attended = kernel(q * self.scale, k, v, rel_h, rel_w, size=(height, width))
        return attended.transpose(1, 2).reshape(batch, height, width, -1)

    def _relative_terms(self, q: Tensor, alignment: int) -> tuple[Tensor, Tensor]:
        """Return rel_h (B, heads, N, H) and rel_w (B, heads, N, W) of unscaled queries (B, heads, H, W, d), filled by zeros."""
        batch, heads, height, width, _ = q.shape
        below, right = -height % alignment, -width % alignment
        if not self.use_rel_pos:
            zeros = q.new_zeros(batch, heads, height * width, height + below + width + right)
            return zeros[..., : height + below], zeros[..., height + below :]
        along_h = F.pad(relative_table(cast(Tensor, self.rel_pos_h), height), (0, 0, 0, below)).to(q.dtype)
        along_w = F.pad(relative_table(cast(Tensor, self.rel_pos_w), width), (0, 0, 0, right)).to(q.dtype)
        rel_h = torch.einsum("bnhwd,hkd->bnhwk", q, along_h)
        rel_w = torch.einsum("bnhwd,wkd->bnhwk", q, along_w)
        return rel_h.flatten(2, 3), rel_w.flatten(2, 3)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _kernel_for(q: Tensor, size: tuple[int, int]) -> AttentionKernel:
    """Choose by device: fused kernels where they exist and the wider heads fit them, else tiles."""
    wide = _aligned(q.shape[-1] + sum(_aligned(length) for length in size))
    fused = q.device.type == "cuda" and (q.dtype == torch.float32 or wide <= _WIDEST_HEAD)
    return FoldedAttention() if fused else TiledAttention()


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _tiles(n_rows: int, n_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the rows (B heads) and of their queries whose scores are few enough to be held."""
    queries = min(n_tokens, max(1, _TILE_NUMBERS // n_tokens))
    rows = max(1, _TILE_NUMBERS // (queries * n_tokens)) if queries == n_tokens else 1
    for row in range(0, n_rows, rows):
        for query in range(0, n_tokens, queries):
            yield slice(row, row + rows), slice(query, query + queries)


def _probabilities(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Return (G, n, N) for n queries of G rows."""
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    scores = torch.baddbmm(bias.flatten(2), q, k.transpose(1, 2))
    return scores.softmax(dim=-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _attend_in_tiles(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    attended = torch.empty_like(q)
    # Tiles are float32 whatever the tensors are: many CPUs multiply half precision far slower, and nothing large is kept.
    with torch.autocast(q.device.type, enabled=False):
        for rows, queries in _tiles(len(q), q.shape[1]):
            query, down, along = (_wide(t[rows, queries]) for t in (q, rel_h, rel_w))
            probs = _probabilities(query, _wide(k[rows]), down, along)
            attended[rows, queries] = torch.bmm(probs, _wide(v[rows])).to(q.dtype)
    return attended


class _Tiled(torch.autograd.Function):
    """Attention in tiles whose backward pass computes the scores again, so that only its inputs are kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, rel_h, rel_w)
        return _attend_in_tiles(q, k, v, rel_h, rel_w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - torch carries no type with saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return _gradients(gradient, *ctx.saved_tensors)


def _gradients(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v, rel_h and rel_w from that of the attended tokens, all (G, N, ...)."""
    places = (rel_h.shape[-1], rel_w.shape[-1])
    of_q, of_h, of_w = torch.empty_like(q), torch.empty_like(rel_h), torch.empty_like(rel_w)
    of_k, of_v = torch.zeros_like(_wide(k)), torch.zeros_like(_wide(v))
    for rows, queries in _tiles(len(q), q.shape[1]):
        query, down, along, above = (_wide(t[rows, queries]) for t in (q, rel_h, rel_w, gradient))
        key, value = _wide(k[rows]), _wide(v[rows])
        probs = _probabilities(query, key, down, along)
        of_v[rows].baddbmm_(probs.transpose(1, 2), above)
        of_scores = torch._softmax_backward_data(torch.bmm(above, value.transpose(1, 2)), probs, -1, probs.dtype)
        of_q[rows, queries] = torch.bmm(of_scores, key).to(q.dtype)
        of_k[rows].baddbmm_(of_scores.transpose(1, 2), query)
        by_place = of_scores.view(*of_scores.shape[:2], *places)
        of_h[rows, queries] = by_place.sum(-1).to(of_h.dtype)
        of_w[rows, queries] = by_place.sum(-2).to(of_w.dtype)
    return of_q, of_k.to(k.dtype), of_v.to(v.dtype), of_h, of_w
