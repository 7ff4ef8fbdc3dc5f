"""Boxes as prompts: the tight box round the ground truth, and the box of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.geometry import Frame
from medsam_tune.prompts.base import PromptSource
from medsam_tune.types import PromptEmbeddings, SegmentationBatch


def whole_image_boxes(frames: Sequence[Frame], device: torch.device | None = None) -> Tensor:
    """Return (B, 4) float32 XYXY pixels of the input frame: the valid area of each image, padding excluded.

    Example:
        >>> whole_image_boxes([Frame(original_size=(20, 40), input_size=(32, 64))])
        tensor([[ 0.,  0., 63., 31.]])
    """
    corners = [(0, 0, frame.input_size[1] - 1, frame.input_size[0] - 1) for frame in frames]
    return torch.tensor(corners, dtype=torch.float32, device=device).reshape(-1, 4)


def tight_boxes(masks: Tensor, empty: Tensor) -> Tensor:
    """Return the smallest box round each mask; x2 and y2 are the last column and row, as ``torchvision.ops.masks_to_boxes``.

    Args:
        masks: (N, 1, S, S) bool.
        empty: (N, 4) XYXY pixels, taken for masks without foreground.

    Returns:
        (N, 4) float32 XYXY pixels.
    """
    x1, x2 = _first_and_last(masks[:, 0].any(dim=1))
    y1, y2 = _first_and_last(masks[:, 0].any(dim=2))
    boxes = torch.stack([x1, y1, x2, y2], dim=1).float()
    return torch.where(masks.flatten(1).any(dim=1, keepdim=True), boxes, empty)


def _first_and_last(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last True of each row of (N, S); meaningless for rows without one."""
    first = occupied.int().argmax(dim=1)
    last = occupied.shape[1] - 1 - occupied.flip(1).int().argmax(dim=1)
    return first, last


class BoxPrompt(PromptSource):
    """Prompt SAM with one box per object.

    Args:
        kind: ``tight``: the smallest box round the object's ground truth, so an oracle; an object without foreground gets the
            box of the whole image. ``whole_image``: the valid area of the image, which reads no ground truth.
    """

    def __init__(self, kind: Literal["tight", "whole_image"] = "tight") -> None:
        super().__init__()
        self.kind = kind

    def reads_ground_truth(self) -> bool:
        """Return True for the tight box."""
        return self.kind == "tight"

    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        """Return sparse (N, 2, C), the two corners, and dense (N, C, g, g), the no-mask embedding."""
        return backbone.embed_prompts(batch.n_objects, boxes=self.boxes(batch))

    def boxes(self, batch: SegmentationBatch) -> Tensor:
        """Return (N, 4) float32 XYXY pixels of the input frame."""
        whole = whole_image_boxes(batch.frames, batch.masks.device)[batch.image_index]
        return whole if self.kind == "whole_image" else tight_boxes(batch.masks, whole)
