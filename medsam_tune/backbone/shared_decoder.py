"""SAM's mask decoder for many prompts on one image: what does not depend on the prompt is computed once.

Source: segment-anything @ dca509f, ``modeling/transformer.py`` and ``modeling/mask_decoder.py``.

Differs from the authors' code:
- In the first layer the image tokens are the same for every prompt, so their queries, keys and values are projected once.
- The predicted IoU is known before the masks, so only prompts with a mask to keep are upscaled. The results are the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor, nn

from medsam_tune.backbone.candidates import Candidates


def is_stock(decoder: nn.Module) -> bool:
    """Tell whether a decoder is segment_anything's own, block by block, so that ``SharedDecoder`` can stand for it."""
    return type(decoder) is MaskDecoder and type(decoder.transformer) is TwoWayTransformer


class SharedDecoder:
    """Decode prompts on one image with the first layer's image projections computed once.

    Args:
        decoder: segment_anything's mask decoder.
        source: Image embedding with the embedding of "no mask" added, (1, C, g, g).
        image_pe: Dense positional encoding (1, C, g, g).
        multimask_output: True gives M = 3 masks (whole, part, subpart), False the one for prompts without ambiguity.
    """

    # Any: segment_anything carries no types.
    def __init__(self, decoder: Any, source: Tensor, image_pe: Tensor, *, multimask_output: bool) -> None:  # noqa: ANN401
        self.wanted = slice(1, None) if multimask_output else slice(0, 1)
        self.grid = source.shape[-2:]
        self.source = source.flatten(2).transpose(1, 2)
        self.image_pe = image_pe.flatten(2).transpose(1, 2)
        positioned = self.source + self.image_pe
        self.decoder = decoder
        layer = decoder.transformer.layers[0]
        reading, writing = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        self.read_keys, self.read_values = reading.k_proj(positioned), reading.v_proj(self.source)
        self.write_queries = writing.q_proj(positioned)

    def __call__(self, sparse_embeddings: Tensor) -> Candidates:
        """Decode sparse embeddings (n, T, C) of n prompts."""
        decoder = self.decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        prompt_tokens = torch.cat([output_tokens.expand(len(sparse_embeddings), -1, -1), sparse_embeddings], dim=1)
        tokens, source = self._transform(prompt_tokens)
        ious = decoder.iou_prediction_head(tokens[:, 0])[:, self.wanted]
        return Candidates(ious, lambda kept: self._logits(tokens, source, kept))

    def _transform(self, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the two-way transformer: tokens (n, L, C) to tokens (n, L, C) and image tokens (n, g * g, C)."""
        transformer = self.decoder.transformer
        tokens, source = self._first_layer(prompt_tokens)
        for layer in transformer.layers[1:]:
            tokens, source = layer(queries=tokens, keys=source, query_pe=prompt_tokens, key_pe=self.image_pe)
        positioned = source + self.image_pe
        read = transformer.final_attn_token_to_image(q=tokens + prompt_tokens, k=positioned, v=source)
        return transformer.norm_final_attn(tokens + read), source

    def _first_layer(self, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.decoder.transformer.layers[0]
        tokens = layer.norm1(layer.self_attn(q=prompt_tokens, k=prompt_tokens, v=prompt_tokens))
        attention = layer.cross_attn_token_to_image
        queries = attention.q_proj(tokens + prompt_tokens)
        # All tokens of all prompts read the same image, so they are one long row of queries.
        read = _attend(queries.flatten(0, 1)[None], self.read_keys, self.read_values, attention.num_heads)
        tokens = layer.norm2(tokens + attention.out_proj(read.view_as(queries)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        keys, values = attention.k_proj(tokens + prompt_tokens), attention.v_proj(tokens)
        written = _attend(self.write_queries, keys, values, attention.num_heads)
        return tokens, layer.norm4(self.source + attention.out_proj(written))

    def _logits(self, tokens: Tensor, source: Tensor, kept: Tensor) -> Tensor:
        decoder, rows = self.decoder, kept.any(dim=1)
        kept_source = source[rows].transpose(1, 2)
        upscaled = decoder.output_upscaling(kept_source.reshape(*kept_source.shape[:2], *self.grid))
        # Token 0 predicts the IoU, those of the masks follow. All masks are multiplied out, as the authors do: fewer would be
        # rounded otherwise, and now and then a pixel would change sides.
        mask_tokens = tokens[rows, 1 : 1 + decoder.num_mask_tokens].unbind(dim=1)
        networks = decoder.output_hypernetworks_mlps
        filters = torch.stack([network(token) for network, token in zip(networks, mask_tokens, strict=True)], dim=1)
        masks: Tensor = (filters @ upscaled.flatten(2))[:, self.wanted]
        return masks[kept[rows]].reshape(-1, *upscaled.shape[-2:])


def _attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Attend with projected queries (n, Q, C), keys and values (m, K, C) where n or m may be 1; return (max(n, m), Q, C)."""
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (queries, keys, values))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)
