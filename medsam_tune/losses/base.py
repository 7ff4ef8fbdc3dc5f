"""The seam of the training loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from medsam_tune.geometry import known_region, resize_region
from medsam_tune.types import MaskPrediction, SegmentationBatch


class MaskLoss(nn.Module, ABC):
    """Compare predicted logits with ground truth; padding never counts."""

    @abstractmethod
    def forward(self, prediction: MaskPrediction, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Return weighted scalar terms by name; training minimises their sum."""

    def check_network(self, *, classes: bool, iou: bool) -> None:
        """Refuse a network that does not answer what is compared, before any work; accepts all by default.

        Args:
            classes: Whether it gives every pixel to one class (``MaskPrediction.class_logits``).
            iou: Whether it predicts the IoU of its masks (``MaskPrediction.iou_predictions``).

        Raises:
            RecipeError: Naming the loss that fits.
        """


def targets_at(prediction: MaskPrediction, batch: SegmentationBatch) -> tuple[Tensor, Tensor]:
    """Return ground truth and what counts at the prediction's resolution, both (N, 1, h, w) bool.

    Padding and pixels that nobody annotated do not count.
    """
    size = (int(prediction.low_res_masks.shape[-2]), int(prediction.low_res_masks.shape[-1]))
    region = known_region(batch.frames, batch.ignored, int(batch.images.shape[-1]), batch.images.device)[batch.image_index]
    return resize_region(batch.masks, size), resize_region(region, size)
