"""Learning-rate curves over a whole training, by optimizer step."""

from __future__ import annotations

import math
from typing import Literal, cast

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medsam_tune.data.datamodule import SegmentationDataModule
from medsam_tune.errors import RecipeError

# Exponent of SAMed and of most segmentation work since DeepLab; hitachinsk/SAMed @ e351840, trainer.py.
POLY_EXPONENT = 0.9


def step_schedule(
    optimizer: Optimizer, schedule: Literal["constant", "cosine", "poly"], *, warmup_steps: int, total_steps: float
) -> LambdaLR:
    """Return a schedule to step after every optimizer step.

    Args:
        optimizer: Its learning rate is the peak.
        schedule: ``cosine`` and ``poly`` end at 0 after ``total_steps``.
        warmup_steps: Steps of linear warm-up.
        total_steps: Optimizer steps of the whole training; infinite when only a time limit is set.

    Raises:
        RecipeError: If a decaying schedule has no end because ``total_steps`` is infinite.
    """
    if schedule != "constant" and not math.isfinite(total_steps):
        raise RecipeError(f"model.schedule: {schedule} needs trainer.max_epochs or trainer.max_steps, got only a time limit.")

    def factor(step: int) -> float:
        return learning_rate_factor(step, schedule, warmup_steps=warmup_steps, total_steps=total_steps)

    return LambdaLR(optimizer, factor)


def planned_steps(trainer: pl.Trainer) -> float:
    """Return the optimizer steps of the whole training; infinite when only a time limit is set.

    Lightning's own estimate opens the loader it trains with before a checkpoint's position in it is restored, so that an
    interrupted epoch would begin anew; a second loader is asked for its length instead.
    """
    limit = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if trainer.max_epochs is None or trainer.max_epochs == -1:
        return limit
    data = cast(SegmentationDataModule, trainer.datamodule)  # type: ignore[attr-defined]
    batches, part = len(data.train_dataloader()), trainer.limit_train_batches
    batches = int(batches * part) if isinstance(part, float) else min(batches, part)
    return min(limit, math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)


def learning_rate_factor(step: int, schedule: str, *, warmup_steps: int, total_steps: float) -> float:
    """Return the factor of the peak learning rate at ``step``.

    Example:
        >>> learning_rate_factor(50, "cosine", warmup_steps=0, total_steps=100)
        0.5
        >>> learning_rate_factor(4, "constant", warmup_steps=10, total_steps=100)
        0.5
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    if schedule == "poly":
        return float((1 - done) ** POLY_EXPONENT)
    return round(0.5 * (1 + math.cos(math.pi * done)), 12)
