"""Clicks as prompts: points inside and outside the object, drawn from its ground truth."""

from __future__ import annotations

from dataclasses import replace

import torch

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import known_region
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.prompts.sampling import PointRule, object_generators, sample_points, visible_masks
from medsam_tune.types import Queries, SegmentationBatch


class PointPrompt(PromptSampler):
    """Prompt SAM with foreground and background points per object.

    An object with fewer pixels than points gets fewer; the rest are padding (label -1), to which SAM's prompt encoder has an
    embedding of its own. An object without foreground gets background points only, never a made-up foreground point.

    Args:
        positives: Foreground points.
        negatives: Background points, from the object's box at twice its side.
        rule: Where the first foreground point lies in training: ``random``, ``distance`` (farthest from the background) or
            ``mass`` (centre of mass, at random in the mask where the centre lies outside). Further points are random.
        eval_rule: The same in validation and test, where draws are the same in every epoch.

    Raises:
        RecipeError: If a number is negative, or both are 0.
    """

    def __init__(
        self,
        positives: int = 1,
        negatives: int = 0,
        *,
        rule: PointRule = "random",
        eval_rule: PointRule = "distance",
    ) -> None:
        if min(positives, negatives) < 0 or positives + negatives == 0:
            raise RecipeError(
                f"model.prompts.init_args: expected positives and negatives of 0 or more and at least one point, got "
                f"{positives} and {negatives}. For no prompt leave model.prompts out."
            )
        self.positives, self.negatives, self.rule, self.eval_rule = positives, negatives, rule, eval_rule

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return the queries with coordinates (N, P, 2) and labels (N, P) with P = positives + negatives."""
        rule: PointRule = self.rule if batch.training else self.eval_rule
        masks = (mask.cpu().numpy() for mask in visible_masks(batch))
        regions = known_region(batch.frames, batch.ignored, int(batch.images.shape[-1]))[:, 0].numpy()
        coords = torch.zeros(batch.n_objects, self.positives + self.negatives, 2)
        labels = torch.full(coords.shape[:2], -1.0)
        generators = object_generators(batch, purpose="point")
        for row, (mask, image, rng) in enumerate(zip(masks, batch.image_index.tolist(), generators, strict=True)):
            points = sample_points(mask, regions[image], positives=self.positives, negatives=self.negatives, rule=rule, rng=rng)
            for column, (x, y, label) in enumerate(points):
                coords[row, column] = torch.tensor([x, y])
                labels[row, column] = label
        device = batch.images.device
        return replace(batch.queries, point_coords=coords.to(device), point_labels=labels.to(device))
