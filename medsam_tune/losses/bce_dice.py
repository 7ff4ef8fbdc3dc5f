"""Binary cross-entropy plus soft Dice, the loss of AutoSAM and MedSAM; the Dice term is MONAI's.

AutoSAM (Shaharabany et al. 2023, github.com/talshaharabany/AutoSAM @ 3959d72) adds 1 to a Tversky ratio, which is ``smooth=2``
here. MedSAM (Ma et al. 2024, github.com/bowang-lab/MedSAM @ d71e8a1) squares the denominators and compares at the input's
resolution: ``squared=True, resolution="input"``.

Differs from the authors' code:

- The logits are used as they are; AutoSAM stretches each image's logits to 0..1 before its cross-entropy.
- The padding of the input does not count; both repositories average over it.
- Each object counts the same: the cross-entropy is averaged over an object's own pixels, then over objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.losses.base import MaskLoss, targets_at
from medsam_tune.types import MaskPrediction, SegmentationBatch


class BceDiceLoss(MaskLoss):
    """Sum binary cross-entropy with logits and soft Dice over the image's valid area, in fp32 even under autocast.

    Dice of one object is 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), with squares in the denominator if
    ``squared``; an empty mask with an empty prediction costs 0. Objects are averaged. A batch without objects costs 0.

    Args:
        bce_weight: Factor of the cross-entropy; 0 leaves the term out.
        dice_weight: Factor of Dice; 0 leaves the term out.
        smooth: Added to Dice's numerator and denominator, in pixels.
        squared: Sum p * p and t * t in Dice's denominator instead of p and t.
        resolution: Where both are compared. ``decoder``: the mask resized to the logits. ``input``: the logits resized
            bilinearly to S; as in the final mask, a logit just outside the valid area then reaches the pixels at its border.

    Raises:
        RecipeError: If a weight or ``smooth`` is negative, or both weights are 0.
    """

    def __init__(
        self,
        bce_weight: float = 1.0,
        dice_weight: float = 1.0,
        smooth: float = 1.0,
        squared: bool = False,
        resolution: Literal["decoder", "input"] = "decoder",
    ) -> None:
        from monai.losses.dice import DiceLoss

        super().__init__()
        _check_settings(bce_weight=bce_weight, dice_weight=dice_weight, smooth=smooth)
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.resolution = resolution
        self.dice = DiceLoss(squared_pred=squared, smooth_nr=smooth, smooth_dr=smooth)

    def forward(self, prediction: MaskPrediction, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Return the weighted terms ``bce`` and ``dice`` of logits (N, M, h, w); a term of weight 0 is absent."""
        with torch.autocast(prediction.low_res_masks.device.type, enabled=False):
            prediction = replace(prediction, low_res_masks=self._logits(prediction, batch))
            masks, region = targets_at(prediction, batch)
            return self._terms(prediction.low_res_masks, masks.float(), region)

    def _logits(self, prediction: MaskPrediction, batch: SegmentationBatch) -> Tensor:
        logits = prediction.low_res_masks.float()
        size = batch.images.shape[-2:]
        if self.resolution == "decoder" or logits.shape[-2:] == size or len(logits) == 0:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _terms(self, logits: Tensor, masks: Tensor, region: Tensor) -> dict[str, Tensor]:
        # Zeros go in before any function of the logits, so that not even NaN in the padding reaches loss or gradient.
        logits = torch.where(region, logits, 0.0)
        masks = torch.where(region, masks, 0.0).expand_as(logits)
        terms = {}
        if self.bce_weight:
            terms["bce"] = self.bce_weight * (_bce(logits, masks, region) if len(logits) else logits.sum())
        if self.dice_weight:
            probs = torch.where(region, logits.sigmoid(), 0.0)
            terms["dice"] = self.dice_weight * (self.dice(probs, masks) if len(logits) else logits.sum())
        return terms


def _bce(logits: Tensor, masks: Tensor, region: Tensor) -> Tensor:
    per_pixel = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    # An image of which nothing is annotated has an empty region, and costs nothing.
    per_object = torch.where(region, per_pixel, 0.0).sum(dim=(2, 3)) / region.sum(dim=(2, 3)).clamp(min=1)
    return per_object.mean()


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if value < 0:
            raise RecipeError(f"model.loss.init_args.{name}: must be 0 or more, got {value}. Set a positive number.")
    if settings["bce_weight"] == settings["dice_weight"] == 0:
        raise RecipeError(
            "model.loss.init_args: bce_weight and dice_weight are both 0, so nothing is learned. Set one above 0."
        )
