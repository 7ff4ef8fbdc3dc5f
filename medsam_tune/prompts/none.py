"""No prompt at all: what SAM does with the image alone."""

from __future__ import annotations

from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.prompts.base import PromptSource
from medsam_tune.types import PromptEmbeddings, SegmentationBatch


class NoPrompt(PromptSource):
    """Give SAM no point, no box and no mask: its own no-mask embedding, and no token."""

    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        """Return sparse (N, 0, C) and dense (N, C, g, g) embeddings."""
        return backbone.embed_prompts(batch.n_objects)
