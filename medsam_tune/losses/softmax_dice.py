"""Cross-entropy plus soft Dice over a softmax of classes, the loss of SAMed; the Dice term is MONAI's.

Paper: Zhang and Liu 2023, Customized Segment Anything Model for Medical Image Segmentation (arXiv 2304.13785).
Authors' code: https://github.com/hitachinsk/SAMed @ e351840 (MIT), ``trainer.py`` (calc_loss) and ``utils.py`` (DiceLoss).

Differs from the authors' code:
- The padding of the input does not count; their images fill the square.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.losses.base import MaskLoss, targets_at
from medsam_tune.types import MaskPrediction, SegmentationBatch

# What torch's cross-entropy passes over.
_IGNORED = -100


class SoftmaxDiceLoss(MaskLoss):
    """Sum the weighted cross-entropy and soft Dice of the 1 + K classes at decoder resolution, in fp32 even under autocast.

    The cross-entropy is averaged over the valid pixels of the batch. Dice of one class, the background among them, is
    1 - (2 sum(p t) + smooth) / (sum(p p) + sum(t t) + smooth), with the sums over all valid pixels of the batch; the mean over
    classes counts, so a class that no image of the batch shows still costs whatever is predicted of it.

    Args:
        ce_weight: Factor of the cross-entropy; 0 leaves the term out.
        dice_weight: Factor of Dice; 0 leaves the term out.
        smooth: Added to Dice's numerator and denominator, in pixels.

    Raises:
        RecipeError: If a weight or ``smooth`` is negative, or both weights are 0.
    """

    def __init__(self, ce_weight: float = 0.2, dice_weight: float = 0.8, smooth: float = 1e-5) -> None:
        from monai.losses.dice import DiceLoss

        super().__init__()
        for name, value in (("ce_weight", ce_weight), ("dice_weight", dice_weight), ("smooth", smooth)):
            if value < 0:
                raise RecipeError(f"model.loss.init_args.{name}: must be 0 or more, got {value}. Set a positive number.")
        if ce_weight == dice_weight == 0:
            raise RecipeError(
                "model.loss.init_args: ce_weight and dice_weight are both 0, so nothing is learned. Set one above 0."
            )
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.dice = DiceLoss(squared_pred=True, batch=True, smooth_nr=smooth, smooth_dr=smooth)

    def check_network(self, *, classes: bool, iou: bool) -> None:
        """Refuse a network without classes."""
        if not classes:
            raise RecipeError(
                "model.loss: SoftmaxDiceLoss compares classes, but this segmenter predicts each object alone. Set "
                "model.segmenter: medsam_tune.segmenters.SemanticSegmenter, or model.loss: medsam_tune.losses.BceDiceLoss."
            )

    def forward(self, prediction: MaskPrediction, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Return the weighted terms ``ce`` and ``dice``; a term of weight 0 is absent.

        Raises:
            RecipeError: If the prediction has no ``class_logits``.
        """
        self.check_network(classes=prediction.class_logits is not None, iou=prediction.iou_predictions is not None)
        class_logits = cast(Tensor, prediction.class_logits)
        with torch.autocast(class_logits.device.type, enabled=False):
            classes, region = class_map(prediction, batch)
            # Zeros go in before any function of the logits, so that not even NaN in the padding reaches loss or gradient.
            logits = torch.where(region, class_logits.float(), 0.0)
            return self._terms(logits, classes, region)

    def _terms(self, logits: Tensor, classes: Tensor, region: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.ce_weight:
            wanted = torch.where(region[:, 0], classes, _IGNORED)
            summed = F.cross_entropy(logits, wanted, ignore_index=_IGNORED, reduction="sum")
            terms["ce"] = self.ce_weight * summed / region.sum().clamp(min=1)
        if self.dice_weight:
            one_hot = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)
            probs = torch.where(region, logits.softmax(dim=1), 0.0)
            terms["dice"] = self.dice_weight * self.dice(probs, torch.where(region, one_hot.float(), 0.0))
        return terms


def class_map(prediction: MaskPrediction, batch: SegmentationBatch) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel (B, h, w) int64, 0 for background, and the valid area (B, 1, h, w) bool.

    Args:
        prediction: At the resolution that is wanted.
        batch: K rows an image, disjoint, image by image.
    """
    rows, regions = (part.view(batch.n_images, -1, *part.shape[-2:]) for part in targets_at(prediction, batch))
    numbers = torch.arange(1, rows.shape[1] + 1, device=rows.device)[:, None, None]
    return (rows * numbers).amax(dim=1), regions[:, :1]
