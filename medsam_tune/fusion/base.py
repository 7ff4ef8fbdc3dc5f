"""The seam of what is added to the image before the network."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class InputFusion(nn.Module, ABC):
    """Fuse prior maps into the image, in the image's own 0..255 space.

    Attributes:
        channels: Channels it returns; SAM takes 3.
    """

    channels: int = 3

    @abstractmethod
    def forward(self, images: Tensor, priors: Tensor | None) -> Tensor:
        """Map images (B, 3, S, S) in 0..255 and priors (B, P, S, S) to (B, channels, S, S); the input is left unchanged."""
