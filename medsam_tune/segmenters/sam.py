"""The promptable segmenter: fusion, encode, side, prompt, decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.backbone.freezing import check_trainable
from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.prompts.base import PromptSource
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.side.base import SideNetwork
from medsam_tune.tuners.base import NoTuner, Tuner
from medsam_tune.types import MaskPrediction, PromptEmbeddings, SegmentationBatch

_CHANNELS = 3


class SamSegmenter(Segmenter):
    """Compose a backbone with a tuner, a prompt source, and optionally a fusion and a side network.

    Args:
        backbone: The network that is tuned; frozen but for what its ``trainable`` names.
        prompt_source: Where the prompt embeddings come from.
        tuner: What is inserted into the backbone; nothing by default.
        fusion: What is added to the image before the encoder; nothing by default. A prompt generator and a side network
            that read the image see it without.
        side: A trained branch that refines the image embedding; none by default.
        objects_per_decode: Objects decoded at once; 0 decodes all together. On CPU 1 to 4 is fastest, each object
            holds about 140 MB during a training step at g = 64.

    Raises:
        RecipeError: If the fusion returns other than SAM's 3 channels, or if, once all is attached, other parameters of the
            backbone learn than the recipe names and the tuner owns.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt_source: PromptSource,
        *,
        tuner: Tuner | None = None,
        fusion: InputFusion | None = None,
        side: SideNetwork | None = None,
        objects_per_decode: int = 0,
    ) -> None:
        super().__init__()
        if fusion is not None and fusion.channels != _CHANNELS:
            raise RecipeError(
                f"model.fusion: {type(fusion).__name__} returns {fusion.channels} channels, SAM's encoder takes {_CHANNELS}. "
                "Use AddRgb or StackGrey, or a TaskSegmenter."
            )
        self.backbone = backbone
        self.prompt_source = prompt_source
        self.tuner = tuner or NoTuner()
        self.fusion = fusion
        self.side = side
        self.objects_per_decode = objects_per_decode
        named_by_recipe = {id(p) for p in backbone.parameters() if p.requires_grad}
        self.tuner.attach(backbone)
        tuned = self.tuner.is_tuned
        check_trainable(backbone, [name for name, p in backbone.named_parameters() if id(p) in named_by_recipe or tuned(name)])
        prompt_source.attach(backbone)
        if side is not None:
            side.attach(backbone)

    @property
    def input_rule(self) -> InputRule:
        """Return the backbone's input rule."""
        return self.backbone.input_rule

    def base_weights(self) -> WeightsIdentity:
        """Return the identity of the backbone's weights."""
        return self.backbone.weights

    def frozen_parameters(self) -> Sequence[str]:
        """Return the backbone's parameters that do not learn."""
        return [f"backbone.{name}" for name, p in self.backbone.named_parameters() if not p.requires_grad]

    def not_cacheable(self) -> str | None:
        """Return None when the encoder and its input are static, else the key that makes them dynamic."""
        if any(p.requires_grad for p in self.backbone.parts()["image_encoder"].parameters()):
            return "model.backbone.trainable or model.tuner: the image_encoder learns, so its embedding changes every step"
        if self.tuner.changes_encoder():
            return f"model.tuner: {type(self.tuner).__name__} changes the image encoder"
        if self.fusion is not None:
            return "model.fusion: the encoder's input depends on priors"
        return None

    def encode(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return image embeddings (B, C, g, g) of images (B, 3, S, S) in 0..255."""
        return self.backbone.encode(images, frames)

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 1, 4g, 4g) and predicted IoU (N, 1)."""
        return self.prompted(batch, self.prompt_source)

    def prompted(self, batch: SegmentationBatch, prompt_source: PromptSource) -> MaskPrediction:
        """Return the prediction under another prompt source, such as a box that a user drew."""
        image_embeddings = self._image_embeddings(batch)
        prompts = prompt_source(batch, image_embeddings, self.backbone)
        return self._decode(image_embeddings, batch.image_index, prompts)

    def auxiliary_losses(self) -> Mapping[str, Tensor]:
        """Return the tuner's own loss, if it has one."""
        loss = self.tuner.auxiliary_loss()
        return {"tuner": loss} if loss.requires_grad else {}

    def after_backward(self, step: int) -> None:
        """Pass the step on to the tuner."""
        self.tuner.after_backward(step)

    def after_step(self, step: int) -> None:
        """Pass the step on to the tuner."""
        self.tuner.after_step(step)

    def extra_state(self) -> dict[str, Any]:
        """Return the tuner's state beside its parameters."""
        return self.tuner.extra_state()

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Pass the state on to the tuner."""
        self.tuner.load_extra_state(state)

    def _image_embeddings(self, batch: SegmentationBatch) -> Tensor:
        cached = batch.image_embeddings
        image_embeddings = self._encode_fused(batch) if cached is None else cached
        return image_embeddings if self.side is None else self.side(batch.images, image_embeddings)

    def _encode_fused(self, batch: SegmentationBatch) -> Tensor:
        fusion, images = self.fusion, batch.images
        if fusion is None:
            return self.backbone.encode(images, batch.frames)
        if fusion.space == "image":
            return self.backbone.encode(fusion(images, batch.priors), batch.frames)
        return self.backbone.encode(images, batch.frames, fuse=lambda normalised: fusion(normalised, batch.priors))

    def _decode(self, image_embeddings: Tensor, image_index: Tensor, prompts: PromptEmbeddings) -> MaskPrediction:
        step = self.objects_per_decode or max(1, len(image_index))
        if len(image_index) <= step:
            return self.backbone.decode(image_embeddings, image_index, prompts)
        chunks = [
            self.backbone.decode(image_embeddings, image_index[rows], _rows(prompts, rows))
            for rows in (slice(start, start + step) for start in range(0, len(image_index), step))
        ]
        ious = [chunk.iou_predictions for chunk in chunks if chunk.iou_predictions is not None]
        return MaskPrediction(torch.cat([chunk.low_res_masks for chunk in chunks]), torch.cat(ious) if ious else None)


def _rows(prompts: PromptEmbeddings, rows: slice) -> PromptEmbeddings:
    return PromptEmbeddings(prompts.sparse_embeddings[rows], prompts.dense_embeddings[rows])
