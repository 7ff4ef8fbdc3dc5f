"""The seam of how queries are drawn from the truth, in training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from medsam_tune.geometry import Frame
from medsam_tune.masks import ObjectMasks
from medsam_tune.types import Queries, SegmentationBatch, Truth


class PromptSampler(ABC):
    """Give each object of a batch a prompt, as a user who knows the answer would.

    A sampler is no network: it has no parameters and makes no embeddings. Whatever it leaves to chance is a function of
    ``batch.seed``, ``batch.epoch``, the image's name and the object's row, and of nothing else.
    """

    @abstractmethod
    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return ``batch.queries`` with the prompts of its N objects.

        Args:
            batch: Frames, and the truth where ``reads_truth``.
            mask_side: 4g, the side of a mask prompt.

        Raises:
            ValueError: If it reads the truth and the batch has none.
        """

    def reads_truth(self) -> bool:
        """Tell whether the prompt is drawn from the true masks, which new images do not have. True by default."""
        return True


def ask_nothing(sampler: PromptSampler, *, mask_side: int) -> Queries:
    """Return what a sampler asks in training about no object at all: which prompts and how many points, before any data.

    Args:
        sampler: What the recipe names.
        mask_side: 4g, the side of a mask prompt.

    Raises:
        RecipeError: If parts of it do not go together.
    """
    return sampler.draw(_no_objects(), mask_side=mask_side)


def _no_objects() -> SegmentationBatch:
    """Return a training batch of one image of 8 x 8 pixels about which nothing is asked."""
    side, none, first = 8, torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    masks = ObjectMasks.of_planes((), (side, side))
    return SegmentationBatch(
        images=torch.zeros(1, 3, side, side),
        queries=Queries(none, none),
        truth=Truth(masks, (masks,)),
        frames=(Frame((side, side), (side, side)),),
        sample_index=first,
        case_index=first,
        image_ids=("",),
        case_ids=("",),
        spacing_mm=((1.0, 1.0),),
        training=True,
    )
