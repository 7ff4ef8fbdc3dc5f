"""The loss on the predicted IoU, beside any loss on the mask.

Paper: LiteMedSAM, Ma et al., CVPR 2024 challenge "Segment anything in medical images on laptop". Authors' code:
github.com/bowang-lab/MedSAM, branch LiteMedSAM, ``train_one_gpu.py`` @ 1a94cb1: squared error between ``iou_predictions`` and
the IoU of the thresholded mask, weight 1. SAM (arXiv 2304.02643, section A) trains its head by the same error.

Differs from the authors' code:
- An empty object whose predicted mask is empty has IoU 1; theirs divides 0 by 0.
- Padding does not count.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.losses.base import MaskLoss, targets_at
from medsam_tune.losses.bce_dice import BceDiceLoss
from medsam_tune.types import MaskPrediction, SegmentationBatch


class IouHeadLoss(MaskLoss):
    """Add the squared error of the predicted IoU to a loss on the mask.

    The head learns if the recipe names it, because ``mask_decoder`` alone leaves it frozen:
    ``model.backbone.trainable: [mask_decoder, mask_decoder.iou_prediction_head]``.

    Args:
        mask_loss: The loss on the mask; BCE + Dice by default.
        weight: Factor of the squared error.

    Raises:
        RecipeError: If the weight is not positive.
    """

    def __init__(self, mask_loss: MaskLoss | None = None, *, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0:
            raise RecipeError(
                f"model.loss.init_args.weight: must be above 0, got {weight}. Without this loss set model.loss: BceDiceLoss."
            )
        self.mask_loss = mask_loss or BceDiceLoss()
        self.weight = weight

    def check_network(self, *, classes: bool, iou: bool) -> None:
        """Refuse a network that predicts no IoU, and what the loss on the mask refuses."""
        if not iou:
            raise RecipeError("model.loss: IouHeadLoss needs a network that predicts an IoU. Set model.loss: BceDiceLoss.")
        self.mask_loss.check_network(classes=classes, iou=iou)

    def forward(self, prediction: MaskPrediction, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Return the terms of the mask loss and ``iou``.

        Raises:
            RecipeError: If the network predicts no IoU.
        """
        ious = prediction.iou_predictions
        self.check_network(classes=prediction.class_logits is not None, iou=ious is not None)
        terms: dict[str, Tensor] = self.mask_loss(prediction, batch)
        error = (cast(Tensor, ious).float() - true_iou(prediction, batch)).square()
        return {**terms, "iou": self.weight * (error.mean() if len(error) else error.sum())}


def true_iou(prediction: MaskPrediction, batch: SegmentationBatch) -> Tensor:
    """Return the IoU (N, M) of each mask, thresholded at logit 0, with its ground truth at the logits' resolution.

    No gradient flows through it. An empty mask of an empty object has IoU 1.
    """
    with torch.no_grad():
        masks, region = targets_at(prediction, batch)
        predicted = (prediction.low_res_masks > 0) & region
        masks = masks & region
        shared = (predicted & masks).sum(dim=(2, 3))
        either = (predicted | masks).sum(dim=(2, 3))
        return torch.where(either > 0, shared / either.clamp(min=1), 1.0)
