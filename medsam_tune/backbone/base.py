"""The seam of the tuned network: encode an image once, embed prompts, decode masks for many objects."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.backbone.candidates import PromptDecoder, plain_decoder
from medsam_tune.backbone.whole_chunks import fill_chunks
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule
from medsam_tune.heap import large_buffers_kept
from medsam_tune.types import EncoderInput, ImageEmbeddings, MaskPrediction, PromptEmbeddings


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
        fine_shapes: (C_i, g_i, g_i) of each finer map that ``encode`` returns beside the main one; empty for SAM 1.
        attached_tuner: Class name of the tuner that is inserted, or None.
        current_input: What ``encode`` is at work on, for inserted modules that look at neighbouring slices; None outside of it,
            also where a block is computed again in the backward pass (``checkpointing``).
        fresh_parts: Dotted names of modules of the network's own that no file holds, so they start at random.
        mixes_slices: Whether what is inserted mixes the slices of a chunk; ``encode`` then fills chunks up.
        encoder_kinds: Class of each module of the image encoder as it was built, by dotted name.
        slices_at_once: D of the latest images that were encoded, in chunks one behind the other; stays for the backward pass.
    """

    input_rule: InputRule
    embedding_size: int
    embed_dim: int
    weights: WeightsIdentity
    fine_shapes: tuple[tuple[int, int, int], ...] = ()
    attached_tuner: str | None = None
    current_input: EncoderInput | None = None
    fresh_parts: tuple[str, ...] = ()
    mixes_slices: bool = False
    slices_at_once: int = 1
    encoder_kinds: Mapping[str, type[nn.Module]] = {}

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """Return the parts a recipe may name: image_encoder, prompt_encoder, mask_decoder, in this order."""

    @abstractmethod
    def anatomy(self) -> Anatomy:
        """Describe the network as it is now: blocks, layers by what they do, rows of q, k and v, idle parts."""

    @abstractmethod
    def fresh(self) -> Backbone:
        """Return another network of the same base weights with nothing inserted, all frozen, on the CPU."""

    @abstractmethod
    def run_encoder(self, inputs: EncoderInput) -> ImageEmbeddings:
        """Normalise the images, fuse where ``inputs.fuse`` is given, and return their embeddings; called by ``encode``."""

    def encode(self, inputs: EncoderInput) -> ImageEmbeddings:
        """Return the embeddings of B images, the main map (B, C, g, g).

        Where something inserted mixes slices, the encoder sees chunks of exactly D slices: a shorter one is filled with copies
        of its last slice, whose embeddings are dropped. So no answer depends on what else is in the batch.

        Raises:
            ValueError: If the images are not (B, 3, S, S), or there is not one frame an image.
        """
        self._check_input(inputs)
        seen, kept = fill_chunks(inputs) if self.mixes_slices else (inputs, None)
        self.slices_at_once = seen.chunk_length if self.mixes_slices else 1
        self.current_input = seen
        try:
            with large_buffers_kept():
                found = self.run_encoder(seen)
        finally:
            self.current_input = None
        return found if kept is None else found.rows(kept)

    def encoder_chain(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return what the encoder does to normalised images (B, 3, S, S), link by link in its order, by dotted name.

        One after the other they give the main map of ``encode``, (B, C, g, g). Empty, as by default, where nothing is to be
        kept of its first blocks while later ones learn.
        """
        return {}

    def encoder_engine(self) -> str | None:
        """Return name and version of what encodes images on a CPU, for the key of a cache; None for PyTorch."""
        return None

    def pack(self, embeddings: ImageEmbeddings) -> Tensor:
        """Return embeddings as one tensor a store can keep: (B, C, g, g), or (B, numbers) where there are finer maps."""
        if not self.fine_shapes:
            return embeddings.main
        return torch.cat([level.flatten(1) for level in (embeddings.main, *embeddings.fine)], dim=1)

    def unpack(self, packed: Tensor) -> ImageEmbeddings:
        """Return what ``pack`` was given."""
        if not self.fine_shapes:
            return ImageEmbeddings(packed)
        shapes = ((self.embed_dim, self.embedding_size, self.embedding_size), *self.fine_shapes)
        levels = torch.split(packed, [math.prod(shape) for shape in shapes], dim=1)
        main, *fine = (level.reshape(-1, *shape) for level, shape in zip(levels, shapes, strict=True))
        return ImageEmbeddings(main, tuple(fine))

    def _check_input(self, inputs: EncoderInput) -> None:
        side, images, frames = self.input_rule.side, inputs.images, inputs.frames
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"images must have shape (B, 3, {side}, {side}), got {tuple(images.shape)}. Use geometry.image_to_input."
            )
        if len(frames) != len(images):
            raise ValueError(f"frames must be one an image, got {len(frames)} for {len(images)} images.")

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
        embeddings: ImageEmbeddings,
        image_index: Tensor,
        prompts: PromptEmbeddings,
        *,
        multimask_output: bool = False,
    ) -> MaskPrediction:
        """Decode masks for N objects on B images.

        Args:
            embeddings: Of B images.
            image_index: (N,) int64, the image of each object.
            prompts: One row an object.
            multimask_output: False gives M = 1 (mask token 0), True gives M = 3 (tokens 1 to 3).

        Returns:
            Logits (N, M, 4g, 4g) and predicted IoU (N, M).
        """

    def decode_every(self, embeddings: ImageEmbeddings, image_index: Tensor, prompts: PromptEmbeddings) -> MaskPrediction:
        """Decode the single mask and then the candidates, M = 4: what both calls of ``decode`` return, arguments as there.

        By default these two calls; a backbone whose decoder makes all masks in one pass does so.
        """
        parts = [self.decode(embeddings, image_index, prompts, multimask_output=several) for several in (False, True)]
        ious = [part.iou_predictions for part in parts if part.iou_predictions is not None]
        masks = torch.cat([part.low_res_masks for part in parts], dim=1)
        return MaskPrediction(masks, torch.cat(ious, dim=1) if len(ious) == len(parts) else None)

    def emit_classes(self, n_classes: int, *, upscale_stages: int = 2) -> None:
        """Turn the decoder, in place, into one that emits a mask for the background and one for each of K classes.

        The mask tokens and hypernetworks then learn; a network without such a decoder refuses.

        Args:
            n_classes: K.
            upscale_stages: How many times the grid is doubled: 2 as in SAM, 4 as in MA-SAM.

        Raises:
            RecipeError: If a number cannot be, or the network cannot emit classes.
        """
        raise RecipeError(f"model.segmenter: {type(self).__name__} cannot emit one mask a class. Take SamBackbone.")

    def decode_classes(self, embeddings: ImageEmbeddings, prompts: PromptEmbeddings) -> Tensor:
        """Return scores (B, 1 + K, h, w) before the softmax, background first, after ``emit_classes``.

        Args:
            embeddings: Of B images.
            prompts: One row an image.

        Returns:
            h = w = 4g; 16g after four stages of up-scaling.
        """
        raise RecipeError(f"model.segmenter: {type(self).__name__} cannot emit one mask a class. Take SamBackbone.")

    def prompt_decoder(self, embeddings: ImageEmbeddings, *, multimask_output: bool = False) -> PromptDecoder:
        """Return what decodes many prompts on one image, of whose masks few are kept; by default ``decode`` itself.

        A backbone may compute once what does not depend on the prompt, as long as the masks stay those of ``decode``.

        Args:
            embeddings: Of the one image.
            multimask_output: As for ``decode``.
        """
        return plain_decoder(self, embeddings, multimask_output=multimask_output)
