"""The promptable segmenter: fusion, encode, side, ask, embed the prompt, decode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.backbone.encoder_prefix import KEY, encode_prefix, encode_rest, first_tuned
from medsam_tune.backbone.freezing import check_trainable
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, InputRule, normalise
from medsam_tune.losses.base import MaskLoss
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompt_encoders.sam import SamPromptEncoder
from medsam_tune.prompts.base import ask_nothing
from medsam_tune.segmenters.base import SamParts, Segmenter, check_one_per_image_target
from medsam_tune.tuners.base import NoTuner
from medsam_tune.types import EncoderInput, ImageEmbeddings, MaskPrediction, PromptEmbeddings, Queries, SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule

_Decode = Callable[[ImageEmbeddings, Tensor, PromptEmbeddings], MaskPrediction]
_CHANNELS = 3
# A step with 8 boxes of an image: see P15 in benchmarks/RESULTS.md.
_OBJECTS_ON_CPU = 4


class SamSegmenter(Segmenter):
    """Compose a backbone with a tuner, a way of asking, and optionally a fusion and a side network.

    Args:
        parts: What the recipe names; the tuner is attached to the backbone here.

    Raises:
        RecipeError: If there is no backbone, the parts contradict each other, or, once all is attached, other parameters of
            the backbone learn than the recipe names and the tuner owns.

    Examples:
        >>> from medsam_tune import BoxPrompt, SamBackbone, SamParts
        >>> segmenter = SamSegmenter(SamParts(SamBackbone("random_tiny"), BoxPrompt()))
        >>> segmenter.asks_user()
        'BoxPrompt'
    """

    def __init__(self, parts: SamParts) -> None:
        super().__init__()
        self.backbone: Backbone = _checked_backbone(parts)
        self.prompts = parts.prompts
        self.prompt_encoder: PromptEncoder = parts.prompt_encoder or SamPromptEncoder()
        self.tuner = parts.tuner or NoTuner()
        self.fusion = parts.fusion
        self.side = parts.side
        self.objects_per_decode = parts.objects_per_decode
        self.views_at_test, self.smallest_part = parts.views_at_test, parts.smallest_part
        _check_asking(parts.prompts is not None, self.prompt_encoder)
        self._attach()
        self._check_prompts()

    def _check_prompts(self) -> None:
        """Refuse prompts that do not go together: drawn for no object, they show it before there are any data."""
        if self.prompts is not None:
            with torch.no_grad():
                queries = ask_nothing(self.prompts, mask_side=4 * self.backbone.embedding_size)
                self.prompt_encoder.check_queries(queries, self.backbone)

    def _attach(self) -> None:
        backbone = self.backbone
        named_by_recipe = {id(p) for p in backbone.parameters() if p.requires_grad}
        self.tuner.attach(backbone)
        tuned = self.tuner.is_tuned
        check_trainable(backbone, [name for name, p in backbone.named_parameters() if id(p) in named_by_recipe or tuned(name)])
        self.prompt_encoder.attach(backbone)
        if self.side is not None:
            self.side.attach(backbone)

    @property
    def input_rule(self) -> InputRule:
        """Return the backbone's input rule."""
        return self.backbone.input_rule

    def base_weights(self) -> WeightsIdentity:
        """Return the identity of the backbone's weights."""
        return self.backbone.weights

    def encoder_engine(self) -> str | None:
        """Return what the backbone says."""
        return self.backbone.encoder_engine()

    def takes_prompts(self) -> bool:
        """Return True where the prompt encoder reads them."""
        return self.prompt_encoder.takes_prompts()

    def reads_names(self) -> bool:
        """Return True where the prompt encoder reads them."""
        return self.prompt_encoder.reads_names()

    def asks_user(self) -> str | None:
        """Return the sampler's name where it draws from the truth."""
        return type(self.prompts).__name__ if self.prompts is not None and self.prompts.reads_truth() else None

    def reads_priors(self) -> bool:
        """Return True where the fusion does."""
        return self.fusion is not None and self.fusion.reads_priors

    def mixes_slices(self) -> bool:
        """Return True where the tuner does."""
        return self.tuner.mixes_slices

    def fresh_parts(self) -> tuple[str, ...]:
        """Return what the backbone says."""
        return self.backbone.fresh_parts

    def not_precomputable(self) -> str | None:
        """Return None when the encoder and its input are static, else the key that makes them dynamic."""
        if any(p.requires_grad for p in self.backbone.parts()["image_encoder"].parameters()):
            return "model.backbone.trainable or model.tuner: the image_encoder learns, so its embedding changes every step"
        if self.tuner.changes_encoder():
            return f"model.tuner: {type(self.tuner).__name__} changes the image encoder"
        if self.fusion is not None:
            return "model.fusion: the encoder's input depends on priors"
        return None

    def first_tuned(self) -> str:
        """Return the name of the encoder's first tuned block.

        Raises:
            RecipeError: If no block before it is fixed, or the encoder's input is fused with priors.
        """
        if self.fusion is not None:
            raise RecipeError(f"{KEY}: prefix cannot be combined with model.fusion: the encoder's input depends on priors.")
        return first_tuned(self.backbone)

    def not_mergeable(self) -> str | None:
        """Return None for a backbone with at most a tuner; what stands beside it has no place in a plain checkpoint."""
        beside = {
            "model.prompt_encoder": None if isinstance(self.prompt_encoder, SamPromptEncoder) else self.prompt_encoder,
            "model.fusion": self.fusion,
            "model.side": self.side,
        }
        for key, part in beside.items():
            if part is not None:
                return f"{key}: a plain SAM checkpoint has no place for {type(part).__name__}"
        return None

    def check_data(self, data: SegmentationDataModule) -> None:
        """Refuse several objects an image where the prompt encoder answers one; say where a tuner has no slices to mix.

        Raises:
            RecipeError: If ``data.target`` is not ``binary`` there.
        """
        if self.mixes_slices() and data.chunk == 1:
            warnings.warn(
                f"data.chunk: is 1, so {type(self.tuner).__name__} sees each slice alone. Set data.chunk=5 for its neighbours.",
                stacklevel=2,
            )
        if self.prompt_encoder.one_per_image:
            check_one_per_image_target(data.target, type(self.prompt_encoder).__name__)

    def untuned(self) -> Segmenter | None:
        """Return the released network under the same prompts; without them where a trained generator made the prompt."""
        return type(self)(SamParts(self.backbone.fresh(), self.prompts, objects_per_decode=self.objects_per_decode))

    def encode(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return the packed embeddings (B, ...) of images (B, 3, S, S) in 0..255."""
        return self.backbone.pack(self.backbone.encode(EncoderInput(images, tuple(frames))))

    def encode_prefix(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return what reaches the encoder's first tuned block for images (B, 3, S, S) in 0..255."""
        return encode_prefix(self.backbone, EncoderInput(images, tuple(frames)), self.first_tuned())

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 1, 4g, 4g) and predicted IoU (N, 1).

        Raises:
            ValueError: If new images need a prompt that nobody gave, or one was given and none is taken.
        """
        embeddings = self.image_embeddings(batch)
        return self.answer(self.ask(batch), batch.encoder_input(), embeddings)

    def candidates(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 3, 4g, 4g) and predicted IoU (N, 3) of mask tokens 1 to 3, which the single mask never trains."""
        return self.answer(self.ask(batch), batch.encoder_input(), self.image_embeddings(batch), multimask_output=True)

    def every_mask(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 4, 4g, 4g) and predicted IoU (N, 4): the single mask and the candidates, in one decoder pass."""
        queries, embeddings = self.ask(batch), self.image_embeddings(batch)
        prompts = self.prompt_encoder(queries, batch.encoder_input(), embeddings, self.backbone)
        return self._decode(embeddings, queries.image_index, prompts, self.backbone.decode_every)

    def embedded(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return the batch with the embeddings of its images, fused with their priors where the recipe says so."""
        return replace(batch, image_embeddings=self.backbone.pack(self._encode(batch)))

    def drawn(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return the batch with the queries that ``ask`` returns, so that later calls of it return them as they are."""
        return replace(batch, queries=self.ask(batch))

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the terms of the loss, and those of the prompt encoder's own."""
        embeddings, queries = self.image_embeddings(batch), self.ask(batch)
        terms: dict[str, Tensor] = loss(self.answer(queries, batch.encoder_input(), embeddings), batch)
        return {**terms, **self.prompt_encoder.auxiliary_losses(embeddings, queries, batch.known_truth)}

    def ask(self, batch: SegmentationBatch) -> Queries:
        """Return the batch's queries where they bring prompts, else with those that the recipe's sampler draws.

        Raises:
            ValueError: If the sampler needs the truth of new images, or the model takes no prompt.
        """
        queries, prompts = batch.queries, self.prompts
        if queries.kinds():
            if not self.takes_prompts():
                name = type(self.prompt_encoder).__name__
                raise ValueError(f"{name} makes its own prompt and takes none, got {', '.join(queries.kinds())}. Leave it out.")
            return queries
        if prompts is None:
            return queries
        if batch.truth is None and prompts.reads_truth():
            raise ValueError(
                f"this model was trained with {type(prompts).__name__} and new images have none. "
                "Give box=(x1, y1, x2, y2), points or a mask."
            )
        return prompts.draw(batch, mask_side=4 * self.backbone.embedding_size)

    def given(self, batch: SegmentationBatch) -> Queries:
        """Return the queries as ``ask`` does."""
        return self.ask(batch)

    def answer(
        self, queries: Queries, inputs: EncoderInput, embeddings: ImageEmbeddings, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Return what the network answers to queries on images that are encoded already.

        Args:
            queries: N objects.
            inputs: The images, for prompt encoders that read them.
            embeddings: As ``image_embeddings`` returned them.
            multimask_output: True gives three candidates an object.
        """
        prompts = self.prompt_encoder(queries, inputs, embeddings, self.backbone)
        decode = partial(self.backbone.decode, multimask_output=multimask_output)
        return self._decode(embeddings, queries.image_index, prompts, decode)

    def image_embeddings(self, batch: SegmentationBatch) -> ImageEmbeddings:
        """Return the embeddings that are decoded: precomputed or fresh, then refined by the side network."""
        kept = batch.image_embeddings
        embeddings = self._encode(batch) if kept is None else self.backbone.unpack(kept)
        return embeddings if self.side is None else self.side(batch.encoder_input(), embeddings)

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

    def _encode(self, batch: SegmentationBatch) -> ImageEmbeddings:
        fusion, inputs = self.fusion, batch.encoder_input()
        if batch.encoder_prefix is not None:
            return encode_rest(self.backbone, inputs, batch.encoder_prefix, self.first_tuned())
        if fusion is None:
            return self.backbone.encode(inputs)

        def fuse(normalised: Tensor) -> Tensor:
            if fusion.space == "normalised":
                return cast(Tensor, fusion(normalised, batch.priors))
            # The limits of a min-max rule are the image's own, or a few pixels of overlapping priors would set its contrast.
            return normalise(fusion(inputs.images, batch.priors), inputs.frames, self.input_rule, limits=inputs.images)

        return self.backbone.encode(replace(inputs, fuse=fuse))

    def _decode(
        self, embeddings: ImageEmbeddings, image_index: Tensor, prompts: PromptEmbeddings, decode: _Decode | None = None
    ) -> MaskPrediction:
        """Decode so many objects at a time as the recipe says; ``decode`` is the backbone's for the single mask by default."""
        decode = decode or self.backbone.decode
        step = self.objects_per_decode or objects_at_once(embeddings.main.device, len(image_index))
        if len(image_index) <= step:
            return decode(embeddings, image_index, prompts)
        chunks = [
            decode(embeddings, image_index[rows], prompts.rows(rows))
            for rows in (slice(start, start + step) for start in range(0, len(image_index), step))
        ]
        ious = [chunk.iou_predictions for chunk in chunks if chunk.iou_predictions is not None]
        return MaskPrediction(torch.cat([chunk.low_res_masks for chunk in chunks]), torch.cat(ious) if ious else None)


def objects_at_once(device: torch.device, n_objects: int) -> int:
    """Return how many of ``n_objects`` the mask decoder takes at once where the recipe leaves it to the device.

    A CPU takes 4, whose image tokens stay near its cache; an accelerator takes all.
    """
    return _OBJECTS_ON_CPU if device.type == "cpu" else max(1, n_objects)


def _checked_backbone(parts: SamParts) -> Backbone:
    if parts.backbone is None:
        raise RecipeError("model.backbone: is missing. Name one, such as SamBackbone with weights: lite_medsam.")
    if parts.fusion is not None and parts.fusion.channels != _CHANNELS:
        raise RecipeError(
            f"model.fusion: {type(parts.fusion).__name__} returns {parts.fusion.channels} channels, SAM's encoder takes "
            f"{_CHANNELS}. Use AddRgb or StackGrey, or a TaskSegmenter."
        )
    return parts.backbone


def _check_asking(has_prompts: bool, prompt_encoder: PromptEncoder) -> None:
    if has_prompts and not prompt_encoder.takes_prompts():
        raise RecipeError(
            f"model.prompts: {type(prompt_encoder).__name__} makes the prompt from the image and reads none. "
            "Remove model.prompts, or model.prompt_encoder."
        )
