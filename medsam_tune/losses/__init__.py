"""What training minimises."""

from medsam_tune.losses.base import MaskLoss, targets_at
from medsam_tune.losses.bce_dice import BceDiceLoss

__all__ = ["BceDiceLoss", "MaskLoss", "targets_at"]
