"""What training minimises."""

from medsam_tune.losses.base import MaskLoss, targets_at
from medsam_tune.losses.bce_dice import BceDiceLoss
from medsam_tune.losses.iou_head import IouHeadLoss
from medsam_tune.losses.softmax_dice import SoftmaxDiceLoss

__all__ = ["BceDiceLoss", "IouHeadLoss", "MaskLoss", "SoftmaxDiceLoss", "targets_at"]
