"""How a whole image is answered without a prompt; loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from medsam_tune.errors import RecipeError
from medsam_tune.precompute.prior_settings import PriorSettings


@dataclass(frozen=True)
class AutomaticSettings:
    """Settings of the automatic masks that are compared with instances: the recipe key ``run.automatic``.

    Attributes:
        points_per_side: Side of the grid of prompts; its square is the number of prompts.
        box_fractions: Prompt with boxes around the grid's points instead of the points; each number is a box size as a fraction
            of the image's sides. For networks that are trained with boxes, which answer points badly.
        pred_iou_thresh: Masks whose predicted IoU is not above this are dropped; 0 keeps all.
        stability_score_thresh: Masks whose stability score is below this are dropped; 0 keeps all.
        box_nms_thresh: Of two masks whose boxes have an IoU above this the one of lower predicted IoU is dropped.

    Raises:
        RecipeError: If a value cannot be; the message begins with ``run.automatic.KEY``.
    """

    points_per_side: int = 16
    box_fractions: tuple[float, ...] = ()
    pred_iou_thresh: float = 0.5
    stability_score_thresh: float = 0.8
    box_nms_thresh: float = 0.5

    def __post_init__(self) -> None:
        try:
            self.as_priors()
        except RecipeError as error:
            raise RecipeError(str(error).replace("data.priors.", "run.automatic.", 1)) from error

    def as_priors(self) -> PriorSettings:
        """Return the settings of the generator."""
        return PriorSettings(**asdict(self))
