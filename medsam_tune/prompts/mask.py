"""A rough mask as the prompt: the ground truth at the decoder's resolution, moved a little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.prompts.sampling import object_generators, visible_masks
from medsam_tune.types import Queries, SegmentationBatch


class MaskPrompt(PromptSampler):
    """Prompt SAM with a mask per object, as a click would leave it or a neighbouring slice.

    A pixel of the mask prompt holds ``logit`` times the share of it that the object covers, brought to -1..1. Where the mask
    never moves the answer is given away; that is useful only to check a setup.

    Args:
        logit: Logit of a pixel that the object covers; SAM's own masks reach about 10.
        shift_px: Largest move along x and along y in training, in whole pixels of the input frame.
        eval_shift_px: The same in validation and test, where it is drawn once.

    Raises:
        RecipeError: If ``logit`` is not above 0 or a move is negative.
    """

    def __init__(self, logit: float = 10.0, *, shift_px: int = 0, eval_shift_px: int = 0) -> None:
        if logit <= 0 or min(shift_px, eval_shift_px) < 0:
            raise RecipeError(
                f"model.prompts.init_args: expected logit above 0 and moves of 0 px or more, got logit {logit}, "
                f"shift_px {shift_px}, eval_shift_px {eval_shift_px}."
            )
        self.logit, self.shift_px, self.eval_shift_px = logit, shift_px, eval_shift_px

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return the queries with mask logits (N, 1, 4g, 4g)."""
        covered = [F.adaptive_avg_pool2d(mask.float(), mask_side) for mask in self._moved(visible_masks(batch), batch)]
        none = batch.images.new_zeros(0, 1, mask_side, mask_side)
        return replace(batch.queries, mask_inputs=self.logit * (2 * torch.stack(covered) - 1) if covered else none)

    def _moved(self, masks: ObjectMasks, batch: SegmentationBatch) -> Iterator[Tensor]:
        """Yield the masks (1, S, S) one by one."""
        limit = self.shift_px if batch.training else self.eval_shift_px
        for mask, rng in zip(masks, object_generators(batch, purpose="mask"), strict=True):
            move = rng.integers(-limit, limit, size=2, endpoint=True).tolist() if limit else (0, 0)
            yield shift(mask[None], *move)


def shift(mask: Tensor, dx: int, dy: int) -> Tensor:
    """Move a mask (1, S, S) by whole pixels right and down; what comes in is False.

    Examples:
        >>> shift(torch.tensor([[[True, False], [False, False]]]), 1, 0).int().tolist()
        [[[0, 1], [0, 0]]]
    """
    side = mask.shape[-1]
    dx, dy = max(-side, min(side, dx)), max(-side, min(side, dy))
    return F.pad(mask, (dx, -dx, dy, -dy), value=False)
