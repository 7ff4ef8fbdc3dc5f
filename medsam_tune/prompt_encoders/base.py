"""The seam of what turns queries into the embeddings that the decoder takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.types import EncoderInput, ImageEmbeddings, PromptEmbeddings, Queries, Truth


class PromptEncoder(nn.Module, ABC):
    """Turn N queries into one prompt each, by what was asked, by the image, or by both; never by the truth.

    Attributes:
        one_per_image: Whether it can only answer one object an image, so that ``data.target`` must be ``binary``.
    """

    one_per_image: bool = False

    def attach(self, backbone: Backbone) -> None:
        """Build what depends on the backbone's sizes (g, C); called once, before training. Nothing by default."""

    def takes_prompts(self) -> bool:
        """Tell whether it reads the boxes, points and masks of a query. False by default."""
        return False

    def reads_names(self) -> bool:
        """Tell whether it reads what is to be found by its name, ``Queries.names``. False by default."""
        return False

    def check_queries(self, queries: Queries, backbone: Backbone) -> None:
        """Refuse prompts that it cannot embed together, before any image is seen; takes all by default.

        Args:
            queries: No object, with the prompts that every object will have.
            backbone: As in ``forward``.

        Raises:
            RecipeError: Naming the key.
        """

    @abstractmethod
    def forward(
        self, queries: Queries, inputs: EncoderInput, embeddings: ImageEmbeddings, backbone: Backbone
    ) -> PromptEmbeddings:
        """Return sparse (N, T, C) and dense (N, C, g, g) embeddings of N objects.

        Args:
            queries: The objects on B images and their prompts.
            inputs: The B images in 0..255 and their frames.
            embeddings: Of the B images.
            backbone: Its ``embed_prompts`` embeds boxes, points and masks.
        """

    def auxiliary_losses(self, embeddings: ImageEmbeddings, queries: Queries, truth: Truth) -> Mapping[str, Tensor]:
        """Return scalars added to the training loss, by name: the one place where it meets the truth. None by default."""
        return {}
