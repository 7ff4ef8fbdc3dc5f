"""The first layer of the mask decoder's transformer for prompts that share images, with gradients.

Without a mask prompt the image tokens of the first layer are the same for every prompt on an image, so what it makes of them
alone (keys and values that prompts read, queries that read the prompts) is projected once an image, not once a prompt.

Source: segment-anything @ dca509f, ``TwoWayTransformer`` and ``TwoWayAttentionBlock`` in modeling/transformer.py.

Differs from the authors' code:
- Only in the order of sums: outputs and gradients are the same up to rounding.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

_STOCK = (TwoWayAttentionBlock, Attention, MLPBlock, nn.Linear, nn.LayerNorm, nn.ReLU, nn.GELU)


class SharedTransformer:
    """Run the two-way transformer for prompts on B images, with the first layer's image projections computed once an image.

    Args:
        transformer: segment_anything's, whose first layer is stock.
        source: Image embeddings with what all prompts add to them, (B, C, g, g).
        image_pe: Dense positional encoding (1, C, g, g).
    """

    # Any: segment_anything carries no types.
    def __init__(self, transformer: Any, source: Tensor, image_pe: Tensor) -> None:  # noqa: ANN401
        self.transformer = transformer
        self.source = source.flatten(2).transpose(1, 2)
        self.image_pe = image_pe.flatten(2).transpose(1, 2)
        positioned = self.source + self.image_pe
        layer = transformer.layers[0]
        reading, writing = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        self.read_keys, self.read_values = reading.k_proj(positioned), reading.v_proj(self.source)
        self.write_queries = writing.q_proj(positioned)

    def __call__(self, prompt_tokens: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (N, L, C) of prompts on the images (N,) to tokens (N, L, C) and image tokens (N, g * g, C)."""
        tokens, source = self._first_layer(prompt_tokens, image_index)
        for layer in self.transformer.layers[1:]:
            tokens, source = layer(queries=tokens, keys=source, query_pe=prompt_tokens, key_pe=self.image_pe)
        positioned = source + self.image_pe
        read = self.transformer.final_attn_token_to_image(q=tokens + prompt_tokens, k=positioned, v=source)
        return self.transformer.norm_final_attn(tokens + read), source

    def _first_layer(self, prompt_tokens: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.transformer.layers[0]
        tokens = layer.norm1(layer.self_attn(q=prompt_tokens, k=prompt_tokens, v=prompt_tokens))
        attention = layer.cross_attn_token_to_image
        queries = attention.q_proj(tokens + prompt_tokens)
        tokens = layer.norm2(tokens + attention.out_proj(self._read(queries, image_index, attention.num_heads)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        keys, values = attention.k_proj(tokens + prompt_tokens), attention.v_proj(tokens)
        written = _attend(self._each(self.write_queries, image_index), keys, values, attention.num_heads)
        return tokens, layer.norm4(self._each(self.source, image_index) + attention.out_proj(written))

    def _read(self, queries: Tensor, image_index: Tensor, num_heads: int) -> Tensor:
        if len(self.source) == 1:
            # All tokens of all prompts read the same image, so they are one long row of queries.
            read = _attend(queries.flatten(0, 1)[None], self.read_keys, self.read_values, num_heads)
            return read.view_as(queries)
        return _attend(queries, self._each(self.read_keys, image_index), self._each(self.read_values, image_index), num_heads)

    def _each(self, tokens: Tensor, image_index: Tensor) -> Tensor:
        """Return image tokens (B, g * g, C) for each prompt, (N, g * g, C), or (1, g * g, C) where there is one image."""
        return tokens if len(tokens) == 1 else tokens.index_select(0, image_index)


def has_stock_first_layer(decoder: nn.Module) -> bool:
    """Tell whether ``SharedTransformer`` can stand for a decoder's: its first layer is SAM's, and nobody hooked in."""
    transformer = cast(Any, decoder).transformer
    first = cast(nn.Module, transformer.layers[0])
    return (
        type(transformer) is TwoWayTransformer
        and not is_hooked(transformer)
        and all(type(module) in _STOCK and not is_hooked(module) for module in first.modules())
    )


def shared_images(image_index: Tensor, n_images: int, dense_embeddings: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return which images N prompts share, or None where sharing saves nothing.

    Args:
        image_index: (N,) int64, the image of each prompt.
        n_images: B.
        dense_embeddings: (N, C, g, g); prompts share images where one embedding was expanded over all N, as "no mask" is.

    Returns:
        Images (n,) int64 with n < N, and the position (N,) of each prompt's image among them.
    """
    n_prompts = len(image_index)
    # An exported graph must hold for any number of prompts.
    if torch.compiler.is_compiling() or n_prompts < 2 or dense_embeddings.stride(0) != 0:
        return None
    if image_index.device.type != "cpu":
        # To see which images are used one would have to wait for the device.
        return (torch.arange(n_images, device=image_index.device), image_index) if n_images < n_prompts else None
    images, positions = image_index.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return (images, positions) if len(images) < n_prompts else None


def is_hooked(module: nn.Module) -> bool:
    """Tell whether somebody listens to a module's calls, which a replay of it would not make."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Attend with projected queries (n, Q, C), keys and values (m, K, C) where n or m may be 1; return (max(n, m), Q, C)."""
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (queries, keys, values))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)
