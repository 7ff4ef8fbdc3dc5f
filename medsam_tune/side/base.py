"""The seam of trained branches that join at the image embedding, after the precomputed part."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.types import EncoderInput, ImageEmbeddings


class SideNetwork(nn.Module, ABC):
    """Refine a frozen image embedding; the encoder stays static, so what was precomputed stays valid."""

    def attach(self, backbone: Backbone) -> None:
        """Build what depends on the backbone's sizes; called once. Nothing by default."""

    @abstractmethod
    def forward(self, inputs: EncoderInput, embeddings: ImageEmbeddings) -> ImageEmbeddings:
        """Map the embeddings of B images, and the images (B, 3, S, S) in 0..255, to embeddings of the same shapes."""
