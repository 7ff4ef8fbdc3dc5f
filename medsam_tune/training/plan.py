"""How long a training is: enough steps however few the images are, a warm-up that is a share of them, validations that tell.

A recipe's epochs and warm-up are chosen for the data it names. On a folder with four images eight epochs are eight steps, all
of them inside a warm-up of twenty; so what a recipe says of its own sample is measured against this rule on other data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medsam_tune.errors import RecipeError

FEWEST_STEPS = 200
"""Optimizer steps below which no training on other data than the recipe's own is planned."""
WARMUP_SHARE = 0.1
"""Part of the planned steps that a warm-up may take."""
MOST_VALIDATIONS = 40
"""Validations of a training that was made longer: with few images each would cost as much as its epoch."""


@dataclass(frozen=True)
class TrainingPlan:
    """Hold how long a training is.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimizer steps in all.
        warmup_steps: Steps of linear warm-up among them.
        validate_every: Epochs from one validation to the next.
    """

    epochs: int
    steps: int
    warmup_steps: int
    validate_every: int


def batches_in_epoch(items: int, batch_size: int, *, processes: int = 1) -> int:
    """Return the batches that each process has in one pass over the training images; a batch is a step unless accumulated.

    Args:
        items: Training images, or chunks of them where slices travel together.
        batch_size: Of each process.
        processes: That train together.

    Example:
        >>> batches_in_epoch(11, 2, processes=2)
        3
    """
    return math.ceil(math.ceil(items / processes) / batch_size)


def plan_training(steps_per_epoch: int, *, epochs: int, warmup_steps: int, fewest_steps: int = FEWEST_STEPS) -> TrainingPlan:
    """Plan a training on data of any size from what a recipe says for its own.

    Args:
        steps_per_epoch: Optimizer steps of one epoch, at least 1.
        epochs: The recipe's.
        warmup_steps: The recipe's.
        fewest_steps: As many epochs are added as it takes to reach them.

    Example:
        >>> plan_training(2, epochs=7, warmup_steps=20)
        TrainingPlan(epochs=100, steps=200, warmup_steps=20, validate_every=3)
        >>> plan_training(56, epochs=7, warmup_steps=20)
        TrainingPlan(epochs=7, steps=392, warmup_steps=20, validate_every=1)
    """
    planned = max(epochs, math.ceil(fewest_steps / steps_per_epoch))
    steps = planned * steps_per_epoch
    every = 1 if planned == epochs else math.ceil(planned / MOST_VALIDATIONS)
    return TrainingPlan(planned, steps, shortened_warmup(warmup_steps, steps), every)


def shortened_warmup(warmup_steps: int, steps: float) -> int:
    """Return a recipe's warm-up, or the share of the steps that it may take where that is less.

    Example:
        >>> shortened_warmup(20, steps=40), shortened_warmup(20, steps=float("inf"))
        (4, 20)
    """
    return warmup_steps if math.isinf(steps) else min(warmup_steps, int(WARMUP_SHARE * steps))


def check_warmup(warmup_steps: int, steps: float) -> None:
    """Refuse a training that ends within its warm-up.

    Args:
        warmup_steps: The recipe's.
        steps: Optimizer steps of the whole training; infinite where only a time limit is set.

    Raises:
        RecipeError: If the learning rate would never reach what the recipe sets.
    """
    if warmup_steps > 0 and steps <= warmup_steps:
        raise RecipeError(
            f"model.warmup_steps: is {warmup_steps}, but the whole training takes {steps:.0f} optimizer steps, all of them "
            f"inside the warm-up. Raise trainer.max_epochs, or set model.warmup_steps={int(WARMUP_SHARE * steps)}."
        )
