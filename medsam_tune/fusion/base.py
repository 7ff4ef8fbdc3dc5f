"""The seam of what is added to the image before the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

FusionSpace = Literal["image", "normalised"]


class InputFusion(nn.Module, ABC):
    """Fuse prior maps into the image.

    Attributes:
        channels: Channels it returns; SAM takes 3.
        space: Where it acts. ``image``: on 0..255, and the result is normalised; ``normalised``: after the normalisation
            that the weights expect, and the result is the network's input.
        reads_priors: Whether it needs the batch's prior maps, so that a recipe without ``data.priors`` is refused early.
    """

    channels: int = 3
    space: FusionSpace = "image"
    reads_priors: bool = False

    @abstractmethod
    def forward(self, images: Tensor, priors: Tensor | None) -> Tensor:
        """Map images (B, 3, S, S) and priors (B, P, S, S) to (B, channels, S, S); the input is left unchanged."""

    def without_priors(self, images: Tensor) -> Tensor:
        """Return the raw input (B, channels, S, S) that stands beside the fused one: the images (B, 3, S, S) themselves."""
        return images
