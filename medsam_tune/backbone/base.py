"""The seam of the tuned network: encode an image once, embed prompts, decode masks for many objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.types import MaskPrediction, PromptEmbeddings


@dataclass(frozen=True)
class WeightsIdentity:
    """Name the base weights a network was built from.

    Attributes:
        name: Name in the weights table, or the file's name for a user's own file.
        sha256: Checksum of the file; for random weights a checksum of architecture and seed.
    """

    name: str
    sha256: str


class Backbone(nn.Module, ABC):
    """A promptable segmenter with a frozen image encoder, as segment-anything defines it.

    Attributes:
        input_rule: What the weights expect of an image.
        embedding_size: g, the side of the image embedding grid.
        embed_dim: C, channels of the image embedding and of every prompt token.
        weights: Where the weights came from.
        attached_tuner: Class name of the tuner that is inserted, or None.
    """

    input_rule: InputRule
    embedding_size: int
    embed_dim: int
    weights: WeightsIdentity
    attached_tuner: str | None = None

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """Return the parts a recipe may name: image_encoder, prompt_encoder, mask_decoder, in this order."""

    @abstractmethod
    def anatomy(self) -> Anatomy:
        """Describe the network as it is now: blocks, layers by what they do, rows of q, k and v, idle parts."""

    @abstractmethod
    def encode(self, images: Tensor, frames: Sequence[Frame], *, fuse: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Normalise images (B, 3, S, S) in 0..255 and return image embeddings (B, C, g, g).

        Args:
            images: Not normalised, zeros in the padding.
            frames: One an image.
            fuse: Maps the normalised images to what the encoder sees, of the same shape; nothing by default.
        """

    @abstractmethod
    def image_pe(self) -> Tensor:
        """Return the dense positional encoding (1, C, g, g)."""

    @abstractmethod
    def no_mask_embedding(self) -> Tensor:
        """Return SAM's embedding for "no mask prompt" as (1, C, 1, 1)."""

    @abstractmethod
    def embed_prompts(
        self,
        n_objects: int,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask_inputs: Tensor | None = None,
    ) -> PromptEmbeddings:
        """Embed one prompt set per object.

        Args:
            n_objects: N.
            points: Coordinates (N, P, 2) in (x, y) pixels of the input frame and labels (N, P): 1 foreground, 0 background,
                -1 padding.
            boxes: (N, 4) XYXY pixels of the input frame.
            mask_inputs: (N, 1, 4g, 4g) logits.

        Raises:
            ValueError: If a prompt has another shape or another number of rows than ``n_objects``.
        """

    @abstractmethod
    def decode(
        self,
        image_embeddings: Tensor,
        image_index: Tensor,
        prompts: PromptEmbeddings,
        *,
        multimask_output: bool = False,
    ) -> MaskPrediction:
        """Decode masks for N objects on B images.

        Args:
            image_embeddings: (B, C, g, g).
            image_index: (N,) int64, the image of each object.
            prompts: One row an object.
            multimask_output: False gives M = 1 (mask token 0), True gives M = 3 (tokens 1 to 3).

        Returns:
            Logits (N, M, 4g, 4g) and predicted IoU (N, M).
        """

    def emit_classes(self, n_classes: int) -> None:
        """Turn the decoder, in place, into one that emits a mask for the background and one for each of K classes.

        The mask tokens and hypernetworks then learn; a network without such a decoder refuses.

        Raises:
            RecipeError: If ``n_classes`` is not positive, or the network cannot emit classes.
        """
        raise RecipeError(f"model.segmenter: {type(self).__name__} cannot emit one mask a class. Take SamBackbone.")

    def decode_classes(self, image_embeddings: Tensor, prompts: PromptEmbeddings) -> Tensor:
        """Return scores (B, 1 + K, 4g, 4g) before the softmax, background first, after ``emit_classes``.

        Args:
            image_embeddings: (B, C, g, g).
            prompts: One row an image.
        """
        raise RecipeError(f"model.segmenter: {type(self).__name__} cannot emit one mask a class. Take SamBackbone.")
