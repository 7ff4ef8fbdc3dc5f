"""SAM's mask decoder for many points on one image: what does not depend on the point is computed once.

Source: segment-anything @ dca509f, ``modeling/transformer.py`` and ``modeling/mask_decoder.py``.

Differs from the authors' code:
- In the first layer the image tokens are the same for every point, so their queries, keys and values are projected once an image.
- The predicted IoU comes before the masks, so that only masks that are kept are upscaled. The results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.types import PromptEmbeddings

# SAM's masks 1 to 3, whole, part and subpart; mask 0 is for prompts without ambiguity.
MULTIMASK = slice(1, None)


@dataclass(frozen=True)
class Candidates:
    """Hold three masks for each of n points, upscaled on demand.

    Attributes:
        predicted_iou: (n, 3) float32.
        logits_of: Maps a choice (n, 3) bool of k masks to their logits (k, 4g, 4g), row after row.
    """

    predicted_iou: Tensor
    logits_of: Callable[[Tensor], Tensor]


Decode = Callable[[Tensor], Candidates]


def point_decoder(backbone: Backbone, image_embeddings: Tensor) -> Decode:
    """Return what decodes sparse embeddings (n, T, C) of n points on one image.

    Args:
        backbone: One whose decoder is segment_anything's own is decoded with shared projections; another, or one with a
            tuner, by its ``decode``.
        image_embeddings: (1, C, g, g).
    """
    decoder = backbone.parts()["mask_decoder"]
    own = type(decoder) is MaskDecoder and type(decoder.transformer) is TwoWayTransformer
    if own and backbone.attached_tuner is None:
        return _SharedDecoder(backbone, image_embeddings)
    return _plain_decoder(backbone, image_embeddings)


def _plain_decoder(backbone: Backbone, image_embeddings: Tensor) -> Decode:
    dense = backbone.no_mask_embedding().expand_as(image_embeddings)

    def decode(sparse_embeddings: Tensor) -> Candidates:
        n_points = len(sparse_embeddings)
        prompts = PromptEmbeddings(sparse_embeddings, dense.expand(n_points, -1, -1, -1))
        index = torch.zeros(n_points, dtype=torch.int64, device=image_embeddings.device)
        prediction = backbone.decode(image_embeddings, index, prompts, multimask_output=True)
        ious = cast(Tensor, prediction.iou_predictions)
        return Candidates(ious, lambda kept: prediction.low_res_masks[kept])

    return decode


class _SharedDecoder:
    """Decode points with the first layer's image projections computed once."""

    def __init__(self, backbone: Backbone, image_embeddings: Tensor) -> None:
        # Any: segment_anything carries no types.
        self.decoder: Any = backbone.parts()["mask_decoder"]
        self.grid = image_embeddings.shape[-2:]
        self.source = (image_embeddings + backbone.no_mask_embedding()).flatten(2).transpose(1, 2)
        self.image_pe = backbone.image_pe().flatten(2).transpose(1, 2)
        positioned = self.source + self.image_pe
        layer = self.decoder.transformer.layers[0]
        reading, writing = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        self.read_keys, self.read_values = reading.k_proj(positioned), reading.v_proj(self.source)
        self.write_queries = writing.q_proj(positioned)

    def __call__(self, sparse_embeddings: Tensor) -> Candidates:
        decoder = self.decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        prompt_tokens = torch.cat([output_tokens.expand(len(sparse_embeddings), -1, -1), sparse_embeddings], dim=1)
        tokens, source = self._transform(prompt_tokens)
        ious = decoder.iou_prediction_head(tokens[:, 0])[:, MULTIMASK]
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
        # All tokens of all points read the same image, so they are one long row of queries.
        read = _attend(queries.flatten(0, 1)[None], self.read_keys, self.read_values, attention.num_heads)
        tokens = layer.norm2(tokens + attention.out_proj(read.view_as(queries)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        keys, values = attention.k_proj(tokens + prompt_tokens), attention.v_proj(tokens)
        written = _attend(self.write_queries, keys, values, attention.num_heads)
        return tokens, layer.norm4(self.source + attention.out_proj(written))

    def _logits(self, tokens: Tensor, source: Tensor, kept: Tensor) -> Tensor:
        decoder, rows = self.decoder, kept.any(dim=1)
        upscaled = decoder.output_upscaling(source[rows].transpose(1, 2).unflatten(2, self.grid))
        networks = decoder.output_hypernetworks_mlps[MULTIMASK]
        # Token 0 predicts the IoU, token 1 is mask 0; masks 1 to 3 follow.
        filters = torch.stack([network(tokens[rows, 2 + i]) for i, network in enumerate(networks)], dim=1)
        masks = (filters @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        return masks[kept[rows]]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Attend with projected queries (n, Q, C), keys and values (m, K, C) where n or m may be 1; return (max(n, m), Q, C)."""
    q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)
