"""Synthetic images, boxes and masks; what they show changes neither time nor memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medsam_tune.backbone import SamBackbone
from medsam_tune.geometry import Frame, normalise
from medsam_tune.types import EncoderInput, Queries, SegmentationBatch, Truth


@dataclass(frozen=True)
class Inputs:
    """Hold B images of one object each on a device.

    Attributes:
        encoder: What our backbone reads, 0..255.
        normalised: (B, 3, S, S), what a stock encoder reads.
        boxes: (B, 4) XYXY pixels.
        masks: (B, 1, S, S) bool.
        index: (B,) int64, the image of each object.
    """

    encoder: EncoderInput
    normalised: Tensor
    boxes: Tensor
    masks: Tensor
    index: Tensor


def make_inputs(backbone: SamBackbone, n_images: int, device: str) -> Inputs:
    """Return smooth random images, each with an ellipse that its box fits."""
    side = backbone.input_rule.side
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n_images, 3, 16, 16, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for _ in range(2)), indexing="ij")
    mask = ((x / 0.4) ** 2 + (y / 0.5) ** 2 < 1)[None, None].expand(n_images, -1, -1, -1)
    box = torch.tensor([0.3, 0.25, 0.7, 0.75]) * side
    frames = tuple(Frame((side, side), (side, side)) for _ in range(n_images))
    images = images.to(device)
    return Inputs(
        encoder=EncoderInput(images, frames),
        normalised=normalise(images, frames, backbone.input_rule),
        boxes=box.expand(n_images, -1).clone().to(device),
        masks=mask.contiguous().to(device),
        index=torch.arange(n_images, device=device),
    )


def make_batch(inputs: Inputs) -> SegmentationBatch:
    """Return the same images as a training batch."""
    n_images = len(inputs.boxes)
    rows = torch.arange(n_images)
    return SegmentationBatch(
        images=inputs.encoder.images,
        queries=Queries(inputs.index, inputs.index + 1),
        truth=Truth(inputs.masks, tuple(mask for mask in inputs.masks)),
        frames=inputs.encoder.frames,
        sample_index=rows,
        case_index=rows,
        image_ids=tuple(str(i) for i in range(n_images)),
        case_ids=tuple(str(i) for i in range(n_images)),
        spacing_mm=((1.0, 1.0),) * n_images,
        training=True,
    )
