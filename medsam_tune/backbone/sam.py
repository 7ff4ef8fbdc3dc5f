"""SAM, MedSAM, MobileSAM and LiteMedSAM behind one seam.

Paper: Kirillov et al. 2023, Segment Anything. Authors' code: https://github.com/facebookresearch/segment-anything @ dca509f.

Differs from the authors' code:
- ``decode`` calls the mask decoder's own submodules on gathered image embeddings, so N objects on B images need one pass;
  ``MaskDecoder.forward`` takes one image. Equal to its loop over images.
- Of the four hypernetworks only those are run whose masks are returned.
- Gradients flow where parameters or inputs ask for them; ``Sam.forward`` runs without.
- Positional encodings are computed in float32 also under autocast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.backbone.architectures import (
    ARCHITECTURES,
    Architecture,
    build_parts,
    check_side,
    fill_zero_tables,
    give_class_masks,
    resize_position_tables,
    upscale_further,
)
from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.backbone.candidates import PromptDecoder
from medsam_tune.backbone.encoder_prefix import module_kinds
from medsam_tune.backbone.engines import EncoderEngine, Engine
from medsam_tune.backbone.freezing import freeze, set_train_modes, set_trainable
from medsam_tune.backbone.recomputing import set_checkpointing
from medsam_tune.backbone.sam_anatomy import encoder_chain, sam_anatomy
from medsam_tune.backbone.shared_decoder import SharedDecoder, is_stock
from medsam_tune.backbone.shared_layer import SharedTransformer, has_stock_first_layer, shared_images
from medsam_tune.backbone.token_upscaling import MaskProduct, mask_product
from medsam_tune.backbone.weights import WEIGHTS, fetch_weights, load_state_dict_file, load_strictly
from medsam_tune.errors import RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.geometry import InputRule, normalise
from medsam_tune.types import EncoderInput, ImageEmbeddings, MaskPrediction, PromptEmbeddings


class SamBackbone(Backbone):
    """Hold a promptable network, frozen but for what ``trainable`` names.

    Its parameters carry the names of the released files (``image_encoder.``, ``prompt_encoder.``, ``mask_decoder.``).

    Args:
        weights: A name of ``medsam-tune weights list``, or ``random_tiny``, ``random_vit_b``, ``random_vit_l``,
            ``random_vit_h``, ``random_mobile_sam``, ``random_lite_medsam`` for fresh weights of that shape. The name fixes the
            input rule.
        trainable: Parts or dotted paths below them that learn, see ``freezing.set_trainable``.
        checkpoint: A file of your own with weights of the same architecture, instead of the released file.
        side: Another input side S in pixels; position tables are interpolated. None keeps the weights' own.
        seed: Seeds random weights.
        checkpointing: Keep only the input of each encoder block for the backward pass and compute the block again there: less
            memory, more time, the same results. Where no gradient reaches a block it changes nothing.
        engine: What runs a frozen TinyViT on a CPU: ``auto``, which is oneDNN's packed products where PyTorch has them,
            ``onednn``, ``openvino`` (``pip install medsam-tune[cpu]``), or ``torch``, PyTorch's modules. Embeddings differ by
            rounding.

    Raises:
        RecipeError: If a name or the side cannot be.
        CheckpointError: If a file cannot be found, verified or loaded strictly.
    """

    def __init__(
        self,
        weights: str = "lite_medsam",
        *,
        trainable: Sequence[str] = (),
        checkpoint: str | None = None,
        side: int | None = None,
        seed: int = 0,
        checkpointing: bool = False,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {"weights": weights, "checkpoint": checkpoint, "side": side, "seed": seed}
        self._settings |= {"checkpointing": checkpointing, "engine": engine}
        architecture, rule = _named(weights)
        side = rule.side if side is None else side
        check_side(architecture, side)
        self.embedding_size = side // architecture.patch
        self.input_rule = replace(rule, side=side, grid=self.embedding_size)
        self.embed_dim = architecture.embed_dim
        # Any: segment_anything carries no types, and nn.Module hands attributes out as Tensor | Module.
        self.image_encoder: Any
        self.prompt_encoder: Any
        self.mask_decoder: Any
        for name, part in _seeded_parts(architecture, self.input_rule.side, seed).items():
            setattr(self, name, part)
        set_checkpointing(self.image_encoder, checkpointing=checkpointing)
        self.encoder_kinds = module_kinds(self.image_encoder)
        self._engine = EncoderEngine(engine, self.image_encoder)
        self.weights = self._load(weights, architecture, checkpoint, seed)
        freeze(self)
        set_trainable(self, trainable)
        self.train()

    def parts(self) -> Mapping[str, nn.Module]:
        """Return image_encoder, prompt_encoder and mask_decoder."""
        return {name: getattr(self, name) for name in ("image_encoder", "prompt_encoder", "mask_decoder")}

    def train(self, mode: bool = True) -> SamBackbone:
        """Set train mode where all parameters learn and eval mode elsewhere, so frozen statistics never move."""
        set_train_modes(self, mode)
        return self

    def anatomy(self) -> Anatomy:
        """Describe the network as it is now."""
        return sam_anatomy(self)

    def fresh(self) -> SamBackbone:
        """Return another network of the same weights with nothing inserted, all frozen, on the CPU."""
        return SamBackbone(**self._settings)

    def run_encoder(self, inputs: EncoderInput) -> ImageEmbeddings:
        """Normalise the images and return their embeddings (B, C, g, g).

        No graph is kept where neither the encoder nor its input asks for a gradient.
        """
        pixels = normalise(inputs.images, inputs.frames, self.input_rule)
        if inputs.fuse is not None:
            pixels = inputs.fuse(pixels)
        pixels = pixels.to(self._dtype)
        learns = pixels.requires_grad or any(p.requires_grad for p in self.image_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if learns or module_kinds(self.image_encoder) != self.encoder_kinds:
                return ImageEmbeddings(self.image_encoder(pixels))
            return ImageEmbeddings(self._engine.encode(self.image_encoder, pixels))

    def encoder_chain(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return patch embedding, blocks and neck by dotted name."""
        return encoder_chain(self.image_encoder)

    def encoder_engine(self) -> str | None:
        """Return name and version of what encodes images on a CPU; None for PyTorch."""
        return self._engine.identity()

    def image_pe(self) -> Tensor:
        """Return the dense positional encoding (1, C, g, g), computed in float32."""
        size = self.prompt_encoder.image_embedding_size
        return cast(Tensor, self._in_float32(self.prompt_encoder.pe_layer, size))[None].to(self._dtype)

    def no_mask_embedding(self) -> Tensor:
        """Return SAM's embedding for "no mask prompt" as (1, C, 1, 1)."""
        return cast(Tensor, self.prompt_encoder.no_mask_embed.weight).reshape(1, -1, 1, 1)

    def embed_prompts(
        self,
        n_objects: int,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask_inputs: Tensor | None = None,
    ) -> PromptEmbeddings:
        """Embed one prompt set per object by SAM's prompt encoder.

        Points alone gain one padding token, as in SAM: T = P + 1; with a box T = P + 2; a box alone T = 2; nothing T = 0.
        Without ``mask_inputs`` the dense embedding is the no-mask embedding everywhere.

        Args:
            n_objects: N.
            points: Coordinates (N, P, 2) in (x, y) pixels of the input frame and labels (N, P): 1 foreground, 0 background,
                -1 padding.
            boxes: (N, 4) XYXY pixels of the input frame.
            mask_inputs: (N, 1, 4g, 4g) logits.

        Raises:
            ValueError: If a prompt has another shape or another number of rows than ``n_objects``.
        """
        self._check_prompts(n_objects, points, boxes, mask_inputs)
        sparse, dense = (part.to(self._dtype) for part in self._in_float32(self.prompt_encoder, points, boxes, mask_inputs))
        return PromptEmbeddings(sparse.expand(n_objects, -1, -1), dense.expand(n_objects, -1, -1, -1))

    def decode(
        self,
        embeddings: ImageEmbeddings,
        image_index: Tensor,
        prompts: PromptEmbeddings,
        *,
        multimask_output: bool = False,
    ) -> MaskPrediction:
        """Decode masks for N objects on B images.

        With ``multimask_output`` False the hypernetworks 1 to 3 get no gradient, nor does the IoU head without a loss on it.

        Args:
            embeddings: Of B images.
            image_index: (N,) int64, the image of each object.
            prompts: One row an object; T may be 0.
            multimask_output: False gives M = 1 (mask token 0), True gives M = 3 (tokens 1 to 3).

        Returns:
            Logits (N, M, 4g, 4g) and predicted IoU (N, M).

        Raises:
            ValueError: If the prompts are not one row an object.
        """
        decoder = self.mask_decoder
        wanted = range(1, decoder.num_mask_tokens) if multimask_output else range(1)
        tokens, product = self._run_decoder(embeddings.main, image_index, prompts)
        ious = decoder.iou_prediction_head(tokens[:, 0])[:, wanted.start : wanted.stop]
        return MaskPrediction(product(self._filters(tokens, wanted)), ious)

    def decode_every(self, embeddings: ImageEmbeddings, image_index: Tensor, prompts: PromptEmbeddings) -> MaskPrediction:
        """Decode the single mask and then the candidates, M = 4, in one pass; arguments as for ``decode``."""
        decoder = self.mask_decoder
        tokens, product = self._run_decoder(embeddings.main, image_index, prompts)
        # A product for each call of ``decode``: one for all four sums in another order, and so rounds otherwise.
        masks = [product(self._filters(tokens, wanted)) for wanted in (range(1), range(1, decoder.num_mask_tokens))]
        return MaskPrediction(torch.cat(masks, dim=1), decoder.iou_prediction_head(tokens[:, 0]))

    def prompt_decoder(self, embeddings: ImageEmbeddings, *, multimask_output: bool = False) -> PromptDecoder:
        """Return what decodes many prompts on one image, with shared projections where the decoder is as SAM has it."""
        if self.attached_tuner is not None or not is_stock(self.mask_decoder):
            return super().prompt_decoder(embeddings, multimask_output=multimask_output)
        source = embeddings.main + self.no_mask_embedding()
        return SharedDecoder(self.mask_decoder, source, self.image_pe(), multimask_output=multimask_output)

    def emit_classes(self, n_classes: int, *, upscale_stages: int = 2) -> None:
        """Turn the decoder, in place, into one that emits a mask for the background and one for each of K classes.

        The tokens and hypernetworks start from SAM's and learn, whatever the recipe's ``trainable`` says; the IoU head stays
        SAM's and is not run. With four stages of up-scaling the first two are SAM's; the others, the norm between and the last
        layer of each hypernetwork are fresh, named in ``fresh_parts``, and learn too.

        Args:
            n_classes: K.
            upscale_stages: 2, or 4 for masks of the input's side.

        Raises:
            RecipeError: If ``n_classes`` is not positive or ``upscale_stages`` another number.
        """
        give_class_masks(self.mask_decoder, n_classes)
        fresh = upscale_further(self.mask_decoder, upscale_stages)
        self.fresh_parts = tuple(f"mask_decoder.{name}" for name in fresh)
        self.train(self.training)

    def decode_classes(self, embeddings: ImageEmbeddings, prompts: PromptEmbeddings) -> Tensor:
        """Return scores (B, 1 + K, h, w) before the softmax, background first, after ``emit_classes``.

        Args:
            embeddings: Of B images.
            prompts: One row an image.

        Returns:
            h = w = 4g; 16g after four stages of up-scaling.

        Raises:
            ValueError: If the prompts are not one row an image.
        """
        rows = torch.arange(len(embeddings.main), device=embeddings.main.device)
        tokens, product = self._run_decoder(embeddings.main, rows, prompts)
        return product(self._filters(tokens, range(self.mask_decoder.num_mask_tokens)))

    def _run_decoder(
        self, image_embeddings: Tensor, image_index: Tensor, prompts: PromptEmbeddings
    ) -> tuple[Tensor, MaskProduct]:
        """Return the tokens (N, L, C) after the transformer, the IoU's first, and what makes masks of filters."""
        decoder = self.mask_decoder
        self._check_decode(image_embeddings, image_index, prompts)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(image_index), -1, -1), prompts.sparse_embeddings], dim=1)
        tokens, source_tokens = self._transform(image_embeddings, image_index, prompts.dense_embeddings, tokens)
        return tokens, mask_product(decoder.output_upscaling, source_tokens, (self.embedding_size, self.embedding_size))

    def _filters(self, tokens: Tensor, wanted: range) -> Tensor:
        """Return the filters (N, M, c) of the wanted mask tokens; c is the width of the upscaled image."""
        networks = self.mask_decoder.output_hypernetworks_mlps
        # Token 0 predicts the IoU; mask token i follows at 1 + i.
        return torch.stack([networks[i](tokens[:, 1 + i]) for i in wanted], dim=1)

    def _transform(
        self, image_embeddings: Tensor, image_index: Tensor, dense_embeddings: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return tokens (N, L, C) and image tokens (N, g * g, C) after the decoder's transformer."""
        transformer = self.mask_decoder.transformer
        shared = shared_images(image_index, len(image_embeddings), dense_embeddings)
        if shared is not None and has_stock_first_layer(self.mask_decoder):
            images, positions = shared
            source = image_embeddings[images] + dense_embeddings[:1]
            return SharedTransformer(transformer, source, self.image_pe())(tokens, positions)
        source = image_embeddings[image_index] + dense_embeddings
        return cast("tuple[Tensor, Tensor]", transformer(source, self.image_pe().expand_as(source), tokens))

    def _load(self, weights: str, architecture: Architecture, checkpoint: str | None, seed: int) -> WeightsIdentity:
        """Load the released or the user's file, if any, and return whose weights these are."""
        if checkpoint is None and weights not in WEIGHTS:
            return WeightsIdentity(weights, hashlib.sha256(f"{architecture.name}:{seed}".encode()).hexdigest())
        path = fetch_weights(weights) if checkpoint is None else Path(checkpoint).expanduser()
        state_dict = load_state_dict_file(path)
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(architecture.unused)}
        load_strictly(self, resize_position_tables(state_dict, self.image_encoder), path)
        return WeightsIdentity(weights if checkpoint is None else path.name, sha256_of(path))

    @property
    def _dtype(self) -> torch.dtype:
        """Return the type of the weights; a predictor may be moved to half precision."""
        return self.no_mask_embedding().dtype

    def _in_float32(self, module: nn.Module, *inputs: object) -> Any:  # noqa: ANN401 - whatever the module returns
        """Run a small module in float32 whatever autocast or its weights say: half precision rounds coordinates to pixels."""
        with torch.autocast(self.no_mask_embedding().device.type, enabled=False):
            if self._dtype == torch.float32:
                return module(*inputs)
            tensors = (*module.named_parameters(), *module.named_buffers())
            return functional_call(module, {name: tensor.float() for name, tensor in tensors}, inputs)

    def _check_prompts(
        self,
        n_objects: int,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
    ) -> None:
        if points is not None:
            coords, labels = points
            if coords.ndim != 3 or coords.shape[::2] != (n_objects, 2) or labels.shape != coords.shape[:2]:
                raise ValueError(
                    f"points must be coordinates (N, P, 2) and labels (N, P) with N = {n_objects}, got "
                    f"{tuple(coords.shape)} and {tuple(labels.shape)}. Pad rows with fewer points by label -1."
                )
        if boxes is not None and boxes.shape != (n_objects, 4):
            raise ValueError(
                f"boxes must have shape (N, 4) in XYXY pixels with N = {n_objects}, got {tuple(boxes.shape)}. "
                f"Use image_index to assign objects to images."
            )
        side = 4 * self.embedding_size
        if mask_inputs is not None and mask_inputs.shape != (n_objects, 1, side, side):
            raise ValueError(
                f"mask_inputs must be logits of shape (N, 1, {side}, {side}) with N = {n_objects}, "
                f"got {tuple(mask_inputs.shape)}. Resize them to the decoder's resolution."
            )

    def _check_decode(self, image_embeddings: Tensor, image_index: Tensor, prompts: PromptEmbeddings) -> None:
        grid, dim, n_objects = self.embedding_size, self.embed_dim, len(image_index)
        if image_embeddings.shape[1:] != (dim, grid, grid):
            raise ValueError(
                f"image_embeddings must have shape (B, {dim}, {grid}, {grid}), got {tuple(image_embeddings.shape)}. "
                f"Encode them with this backbone."
            )
        sparse, dense = prompts.sparse_embeddings, prompts.dense_embeddings
        if sparse.ndim != 3 or sparse.shape[::2] != (n_objects, dim) or dense.shape != (n_objects, dim, grid, grid):
            raise ValueError(
                f"prompts must be sparse (N, T, {dim}) and dense (N, {dim}, {grid}, {grid}) with N = {n_objects} as "
                f"image_index, got {tuple(sparse.shape)} and {tuple(dense.shape)}. Give one row an object."
            )


def _named(weights: str) -> tuple[Architecture, InputRule]:
    """Return the architecture and input rule of released or random weights."""
    if weights in WEIGHTS:
        entry = WEIGHTS[weights]
        return ARCHITECTURES[entry.architecture], entry.input_rule()
    name = weights.removeprefix("random_")
    if name == weights or name not in ARCHITECTURES:
        known = [*WEIGHTS, *(f"random_{known}" for known in ARCHITECTURES)]
        raise RecipeError(f"model.backbone.weights: {weights!r} is unknown. Known: {', '.join(known)}.")
    architecture = ARCHITECTURES[name]
    # Random weights follow the rule of the released ones of their shape.
    rule = WEIGHTS[name].input_rule() if name in WEIGHTS else InputRule(architecture.side)
    return architecture, rule


def _seeded_parts(architecture: Architecture, side: int, seed: int) -> dict[str, nn.Module]:
    """Build the parts from a seed of their own and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        parts = build_parts(architecture, side)
        fill_zero_tables(parts["image_encoder"], torch.default_generator)
    return parts
