"""SAM's mask decoder for many prompts on one image: what does not depend on the prompt is computed once.

Source: segment-anything @ dca509f, ``modeling/transformer.py`` and ``modeling/mask_decoder.py``.

Differs from the authors' code:
- The first layer projects the image tokens once (``shared_layer``).
- The predicted IoU is known before the masks, so only prompts with a mask to keep are upscaled. The results are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor, nn

from medsam_tune.backbone.candidates import Candidates
from medsam_tune.backbone.shared_layer import SharedTransformer


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
        self.decoder = decoder
        self.transform = SharedTransformer(decoder.transformer, source, image_pe)

    def __call__(self, sparse_embeddings: Tensor) -> Candidates:
        """Decode sparse embeddings (n, T, C) of n prompts."""
        decoder = self.decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        prompt_tokens = torch.cat([output_tokens.expand(len(sparse_embeddings), -1, -1), sparse_embeddings], dim=1)
        # One image, so no prompt has to say which.
        tokens, source = self.transform(prompt_tokens, torch.zeros(len(prompt_tokens), dtype=torch.int64))
        ious = decoder.iou_prediction_head(tokens[:, 0])[:, self.wanted]
        return Candidates(ious, lambda kept: self._logits(tokens, source, kept))

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
