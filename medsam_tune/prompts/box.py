"""Boxes as prompts: the tight box round the ground truth, that box moved, and the box of the whole image.

Paper: Ma et al. 2024, Segment anything in medical images (MedSAM). Authors' code: github.com/bowang-lab/MedSAM @ d71e8a1.

Differs from the authors' code:
- The move is drawn from (seed, epoch, image, object), so a run can be repeated and resumed.
- Every object of an image gets a box; there one random label of each image is trained an epoch.
- Beside pixels of the input frame, moves can be a fraction of the box, and inward: 20 px are 2 % of a side of 1024, but twice
  the width of a small object.
- The box is cut to the image, not to the padded input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.prompts.sampling import (
    BoxJitter,
    jitter_boxes,
    object_generators,
    tight_boxes,
    visible_masks,
    whole_image_boxes,
)
from medsam_tune.types import Queries, SegmentationBatch


class BoxPrompt(PromptSampler):
    """Prompt SAM with one box per object.

    Args:
        kind: ``tight``: the smallest box round the object's ground truth, so an oracle; an object without foreground gets the
            box of the whole image. ``whole_image``: the valid area of the image, which reads no ground truth.
        jitter: How the tight box moves in training; not at all by default.
        eval_jitter: How it moves in validation and test, the same in every epoch; not at all by default.

    Raises:
        RecipeError: If the box of the whole image is to move.
    """

    def __init__(
        self,
        kind: Literal["tight", "whole_image"] = "tight",
        *,
        jitter: BoxJitter | None = None,
        eval_jitter: BoxJitter | None = None,
    ) -> None:
        if kind == "whole_image" and (jitter or eval_jitter):
            raise RecipeError("model.prompts.init_args.jitter: kind whole_image never moves. Remove it, or set kind: tight.")
        self.kind, self.jitter, self.eval_jitter = kind, jitter, eval_jitter

    def reads_truth(self) -> bool:
        """Return True for the tight box."""
        return self.kind == "tight"

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return the queries with the box of each object."""
        return replace(batch.queries, boxes=self.boxes(batch))

    def boxes(self, batch: SegmentationBatch) -> Tensor:
        """Return (N, 4) float32 XYXY pixels of the input frame."""
        whole = whole_image_boxes(batch.frames, batch.images.device)[batch.image_index]
        if self.kind == "whole_image":
            return whole
        boxes = tight_boxes(visible_masks(batch), whole)
        jitter = self.jitter if batch.training else self.eval_jitter
        if jitter is None:
            return boxes
        return jitter_boxes(boxes, jitter, limits=whole, generators=object_generators(batch, purpose="box"))
