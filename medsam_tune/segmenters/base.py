"""The seam from image to mask logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.losses.base import MaskLoss
from medsam_tune.types import MaskPrediction, SegmentationBatch


class Segmenter(nn.Module, ABC):
    """Map a batch to mask logits, one row an object."""

    @property
    @abstractmethod
    def input_rule(self) -> InputRule:
        """Return the input rule that the data must follow."""

    @abstractmethod
    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, M, h, w) for the batch's N objects."""

    def predict_unlabelled(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits for new images, whose ``masks`` say nothing; ``forward`` unless that reads true masks."""
        prediction: MaskPrediction = self(batch)
        return prediction

    @abstractmethod
    def base_weights(self) -> WeightsIdentity | None:
        """Return the identity of the frozen weights under the trained ones, or None when all is trained from scratch."""

    @abstractmethod
    def frozen_parameters(self) -> Sequence[str]:
        """Return the dotted names of parameters a checkpoint leaves out because the base weights hold them."""

    def masks_per_image(self) -> int:
        """Return how many objects every image has, in the order the network emits them; 1 unless it labels several classes."""
        return 1

    def not_cacheable(self) -> str | None:
        """Return None when the image embedding is static, else the recipe key that makes it dynamic and why."""
        return "model.segmenter: this segmenter has no frozen encoder, so there is no embedding to cache"

    def encode(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return the static image embeddings (B, C, g, g) that the cache stores.

        Raises:
            NotImplementedError: If ``not_cacheable`` names a reason.
        """
        raise NotImplementedError(self.not_cacheable())

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the scalar terms of one training step, by name; their sum is minimised by one backward pass.

        A segmenter that predicts a batch several times (rounds of clicks, raw and fused input) returns the weighted terms of
        all its predictions; by default there is one prediction.
        """
        terms: dict[str, Tensor] = loss(self(batch), batch)
        return terms

    def auxiliary_losses(self) -> Mapping[str, Tensor]:
        """Return scalars added to the loss, by name; none by default."""
        return {}

    def after_backward(self, step: int) -> None:
        """Run after each backward pass; nothing by default."""

    def after_step(self, step: int) -> None:
        """Run after each step of the optimizer, counted from 0; nothing by default."""

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the state dict; nothing by default."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``extra_state`` returned; nothing by default."""
