"""Refuse a training whose loss is no longer a number, without making a GPU wait for the question at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError

STEPS_BETWEEN_LOOKS = 20
"""On a GPU; a training that has failed goes on for as many steps at most, and no checkpoint is written in between."""


class FiniteLosses:
    """Keep the losses of the last steps where they are, and look at them together.

    Args:
        device: Where losses are computed. On a CPU each is looked at at once, which costs nothing there.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else STEPS_BETWEEN_LOOKS
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, tuple[str, ...]]] = []

    def add(self, loss: Tensor, step: int, image_ids: tuple[str, ...]) -> bool:
        """Add the loss of one step and look at all of them when it is time.

        Returns:
            Whether it looked, so that the device has waited anyway.

        Raises:
            RecipeError: If a loss is NaN or infinite.
        """
        self._losses.append(loss.detach())
        self._steps.append((step, image_ids))
        if len(self._losses) < self._every:
            return False
        self.look()
        return True

    def look(self) -> None:
        """Look at the losses since the last time; before a checkpoint is written, since it may hold what they did.

        Raises:
            RecipeError: If a loss is NaN or infinite, at this and every later look.
        """
        if not self._losses:
            return
        values: list[float] = torch.stack(self._losses).tolist()
        for value, (step, image_ids) in zip(values, self._steps, strict=True):
            if not math.isfinite(value):
                raise RecipeError(
                    f"loss is {value} at step {step} on images {', '.join(image_ids)}. Lower the learning rate, "
                    "set trainer.precision=32-true, or look at these images. The last checkpoint stays."
                )
        self._losses, self._steps = [], []
