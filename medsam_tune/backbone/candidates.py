"""Masks for many prompts on one image, of which few are kept: what a backbone's ``prompt_decoder`` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from medsam_tune.types import ImageEmbeddings, PromptEmbeddings

if TYPE_CHECKING:
    from medsam_tune.backbone.base import Backbone


@dataclass(frozen=True)
class Candidates:
    """Hold M masks for each of n prompts, upscaled on demand.

    Attributes:
        predicted_iou: (n, M) float32.
        logits_of: Maps a choice (n, M) bool of k masks to their logits (k, 4g, 4g), row after row.
    """

    predicted_iou: Tensor
    logits_of: Callable[[Tensor], Tensor]


PromptDecoder = Callable[[Tensor], Candidates]
"""Decodes sparse embeddings (n, T, C) of n prompts on one image."""


def plain_decoder(backbone: Backbone, embeddings: ImageEmbeddings, *, multimask_output: bool) -> PromptDecoder:
    """Return what decodes prompts by the backbone's own ``decode``."""
    dense = backbone.no_mask_embedding().expand_as(embeddings.main)

    def decode(sparse_embeddings: Tensor) -> Candidates:
        n_prompts = len(sparse_embeddings)
        prompts = PromptEmbeddings(sparse_embeddings, dense.expand(n_prompts, -1, -1, -1))
        index = torch.zeros(n_prompts, dtype=torch.int64, device=embeddings.main.device)
        prediction = backbone.decode(embeddings, index, prompts, multimask_output=multimask_output)
        ious = cast(Tensor, prediction.iou_predictions)
        return Candidates(ious, lambda kept: prediction.low_res_masks[kept])

    return decode
