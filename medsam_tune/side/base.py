"""The seam of trained branches that join at the image embedding, after the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone


class SideNetwork(nn.Module, ABC):
    """Refine a frozen image embedding; the encoder stays static, so its cache stays valid."""

    def attach(self, backbone: Backbone) -> None:
        """Build what depends on the backbone's sizes; called once. Nothing by default."""

    @abstractmethod
    def forward(self, images: Tensor, image_embeddings: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in 0..255 and embeddings (B, C, g, g) to embeddings (B, C, g, g)."""
