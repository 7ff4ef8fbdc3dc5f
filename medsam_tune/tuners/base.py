"""The seam of what is inserted into a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone


class Tuner(ABC):
    """Insert trainable modules into a frozen backbone and own their parameters exactly."""

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Insert the modules in place; the output must not change before training.

        Raises:
            RecipeError: If the backbone has no place for this tuner, or a tuner is attached already.
        """

    @abstractmethod
    def is_tuned(self, parameter_name: str) -> bool:
        """Tell whether the backbone's parameter of this dotted name belongs to the tuner."""

    def changes_encoder(self) -> bool:
        """Tell whether the image embedding depends on the tuner, which rules the embedding cache out."""
        return True

    def auxiliary_loss(self) -> Tensor:
        """Return a scalar added to the loss, such as AdaLoRA's orthogonality; 0 by default."""
        return torch.zeros(())

    def after_backward(self, step: int) -> None:
        """Run after each backward pass, before the optimizer's step number ``step``; nothing by default."""


class NoTuner(Tuner):
    """Insert nothing: only what the recipe names as trainable, or the prompt source, learns."""

    def attach(self, backbone: Backbone) -> None:
        """Leave the backbone as it is."""

    def is_tuned(self, parameter_name: str) -> bool:
        """Return False for every name."""
        return False

    def changes_encoder(self) -> bool:
        """Return False: the encoder stays the released one."""
        return False
