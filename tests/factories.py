"""Small batches with known content, for every room's tests."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from medsam_tune.backbone.base import Backbone
from medsam_tune.geometry import InputRule, image_to_input, masks_to_input
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompt_encoders.sam import SamPromptEncoder
from medsam_tune.types import EncoderInput, ImageEmbeddings, PromptEmbeddings, Queries, SegmentationBatch, Truth


def make_batch(
    *,
    side: int = 64,
    sizes: tuple[tuple[int, int], ...] = ((40, 64), (64, 48)),
    objects: tuple[int, ...] | None = None,
    seed: int = 0,
    rule: InputRule | None = None,
) -> SegmentationBatch:
    """One image per size (H, W), with rectangles as objects (one an image unless ``objects`` says how many)."""
    rule = rule or InputRule(side=side)
    generator = torch.Generator().manual_seed(seed)
    objects = objects or (1,) * len(sizes)
    images, frames, masks, original, index = [], [], [], [], []
    for row, ((height, width), count) in enumerate(zip(sizes, objects, strict=True)):
        image = torch.rand(3, height, width, generator=generator) * 255
        objs = torch.zeros(count, height, width, dtype=torch.bool)
        for k in range(count):
            top, left = height // 8 * (k + 1), width // 8 * (k + 1)
            objs[k, top : top + height // 3, left : left + width // 3] = True
        image_in, frame = image_to_input(image, rule)
        images.append(image_in)
        frames.append(frame)
        masks.append(masks_to_input(ObjectMasks.of(objs), frame, rule.side).dense()[:, None])
        original.append(objs)
        index += [row] * count
    n = len(sizes)
    return SegmentationBatch(
        images=torch.stack(images),
        queries=Queries(torch.tensor(index, dtype=torch.int64), torch.ones(len(index), dtype=torch.int64)),
        truth=Truth(torch.cat(masks), tuple(original)),
        frames=tuple(frames),
        sample_index=torch.arange(n),
        case_index=torch.arange(n),
        image_ids=tuple(f"image_{i}" for i in range(n)),
        case_ids=tuple(f"case_{i}" for i in range(n)),
        spacing_mm=((1.0, 1.0),) * n,
    )


def encode(backbone: Backbone, images: torch.Tensor, frames: tuple) -> torch.Tensor:
    """The main embedding (B, C, g, g) of images."""
    return backbone.encode(EncoderInput(images, tuple(frames))).main


def with_masks(batch: SegmentationBatch, masks: torch.Tensor, original_masks: tuple | None = None) -> SegmentationBatch:
    """The same batch with another truth."""
    return replace(batch, truth=Truth(masks, batch.original_masks if original_masks is None else tuple(original_masks)))


def with_objects(batch: SegmentationBatch, image_index: torch.Tensor, **others: object) -> SegmentationBatch:
    """The same batch with other objects asked for."""
    return replace(batch, queries=replace(batch.queries, image_index=image_index, **others))


def generate(
    generator: PromptEncoder, batch: SegmentationBatch, embeddings: torch.Tensor, backbone: Backbone
) -> PromptEmbeddings:
    """The prompt of a batch whose images have these embeddings (B, C, g, g)."""
    return generator(batch.queries, batch.encoder_input(), ImageEmbeddings(embeddings), backbone)


def embed(queries: Queries, batch: SegmentationBatch, backbone: Backbone) -> PromptEmbeddings:
    """What SAM's own prompt encoder makes of queries on a batch."""
    inputs = batch.encoder_input()
    return SamPromptEncoder()(queries, inputs, backbone.encode(inputs), backbone)


def one_image(batch: SegmentationBatch, row: int) -> SegmentationBatch:
    """The batch of one image with its objects."""
    picked = {
        field.name: value[row : row + 1]
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), (torch.Tensor, tuple))
    }
    objects = batch.image_index == row
    queries = batch.queries.rows(objects)
    queries = replace(queries, image_index=torch.zeros_like(queries.image_index))
    return replace(batch, **picked, queries=queries, truth=Truth(batch.masks[objects], batch.original_masks[row : row + 1]))
