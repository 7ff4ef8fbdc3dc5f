"""The seam of where prompt embeddings come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.types import PromptEmbeddings, SegmentationBatch


class PromptSource(nn.Module, ABC):
    """Turn a batch into one prompt per object.

    It ends at embeddings, not at boxes or points, because that is where a prompt generator starts. Whatever random choice a
    source makes is a function of its seed, ``batch.epoch``, ``batch.sample_index`` and the object's row.
    """

    def attach(self, backbone: Backbone) -> None:
        """Build what depends on the backbone's sizes (g, C); called once, before training. Nothing by default."""

    def reads_ground_truth(self) -> bool:
        """Tell whether the prompt is drawn from the true masks, which new images do not have. False by default."""
        return False

    @abstractmethod
    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        """Return sparse (N, T, C) and dense (N, C, g, g) embeddings for the batch's N objects.

        Args:
            batch: Images in 0..255, frames, ground-truth masks (read by box and point sources only).
            image_embeddings: (B, C, g, g).
            backbone: Its ``embed_prompts`` embeds boxes, points and masks.
        """
