"""Which network makes the priors, and which of its automatic masks are kept; loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsam_tune.errors import RecipeError


@dataclass(frozen=True)
class PriorSettings:
    """Settings of the automatic masks that SAMAug adds to an image: the recipe key ``data.priors``.

    The thresholds and the grid are SAMAug's released ones; only the weights differ (SAM ViT-H there). As in
    segment_anything, a mask is kept where its score is above a threshold of quality, and only those overlapping more
    than ``box_nms_thresh`` compete. Crops of the image are not used (``crop_n_layers`` 0).

    Attributes:
        weights: Name of the weights whose masks become priors, see ``medsam-tune weights list``.
        checkpoint: A file of your own with weights of the same architecture, or None.
        points_per_side: Side of the grid of point prompts; its square is the number of prompts.
        pred_iou_thresh: Masks whose predicted IoU is not above this are dropped; 0 keeps all.
        stability_score_thresh: Masks whose stability score is below this are dropped; 0 keeps all.
        stability_score_offset: Logits above and below the mask threshold between which stability is measured.
        box_nms_thresh: Of two masks whose boxes have an IoU above this the one of lower predicted IoU is dropped.
        low_res_stability: Measure stability on the decoder's own grid. Faster and approximate: other masks may be kept.
        box_fractions: Prompt with boxes around the grid's points instead of the points, one mask a box; each number is a box
            size as a fraction of the image's sides. For weights that were trained with boxes alone (MedSAM, LiteMedSAM): under
            a point their masks pass no threshold. Empty, as released: points, three masks each.

    Raises:
        RecipeError: If a value cannot be; the message begins with ``data.priors.KEY``.

    Source: SAMAug (Zhang et al. 2023), yizhezhang2000/SAMAug @ 53d84a4, the released generator: ``pred_iou_thresh`` 0.5,
    ``box_nms_thresh`` 0.5 and segment-anything's defaults elsewhere. Boxes and low-resolution stability are ours.
    """

    weights: str = "lite_medsam"
    checkpoint: str | None = None
    points_per_side: int = 32
    pred_iou_thresh: float = 0.5
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.5
    low_res_stability: bool = False
    box_fractions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.weights:
            raise RecipeError("data.priors.weights: must name weights, got ''. See `medsam-tune weights list`.")
        if self.points_per_side < 1:
            raise RecipeError(f"data.priors.points_per_side: must be at least 1, got {self.points_per_side}.")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
            value: float = getattr(self, name)
            if not 0 <= value <= 1:
                raise RecipeError(f"data.priors.{name}: must be between 0 and 1, got {value}.")
        offset = self.stability_score_offset
        if not (math.isfinite(offset) and offset >= 0):
            raise RecipeError(f"data.priors.stability_score_offset: must be finite and not negative, got {offset}.")
        if not all(0 < fraction <= 1 for fraction in self.box_fractions):
            raise RecipeError(f"data.priors.box_fractions: must be above 0 and at most 1, got {list(self.box_fractions)}.")
