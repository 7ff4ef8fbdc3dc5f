"""Learning-rate curves over a whole training, by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from medsam_tune.data.datamodule import SegmentationDataModule
from medsam_tune.errors import RecipeError
from medsam_tune.training.plan import batches_in_epoch
from medsam_tune.training.position import cut_anew

# Exponent of SAMed and of most segmentation work since DeepLab; hitachinsk/SAMed @ e351840, trainer.py.
POLY_EXPONENT = 0.9


def step_schedule(
    optimizer: Optimizer, schedule: Literal["constant", "cosine", "poly"], *, warmup_steps: int, total_steps: float
) -> LambdaLR:
    """Return a schedule to step after every optimizer step.

    Args:
        optimizer: Its learning rate is the peak.
        schedule: ``cosine`` ends at 0 after ``total_steps``; ``poly`` is SAMed's, which ends a little above.
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


def scheduler_config(scheduler: LRScheduler | ReduceLROnPlateau, *, default: str = "val/dice") -> dict[str, Any]:
    """Return what Lightning must know of a torch scheduler: when it is stepped, and which figure it watches.

    Args:
        scheduler: As the recipe builds it.
        default: What a plateau scheduler watches that names nothing.

    Raises:
        RecipeError: If a plateau scheduler waits for val/dice or val/iou to fall.
    """
    if isinstance(scheduler, OneCycleLR | CyclicLR):
        return {"scheduler": scheduler, "interval": "step"}
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "epoch"}
    monitor = getattr(scheduler, "monitor", default)
    if monitor in ("val/dice", "val/iou") and scheduler.mode == "min":
        raise RecipeError(f"model.scheduler.mode: is min, but {monitor} is better when it rises. Set mode: max.")
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}


def check_figure(key: str, monitor: str | None, figures: Collection[str]) -> None:
    """Refuse to watch a figure that nothing logs; the losses of a training have names of their own.

    Raises:
        RecipeError: With the figures there are.
    """
    if monitor is not None and monitor not in figures and not monitor.startswith("train/"):
        raise RecipeError(f"{key}: there is no figure {monitor}. A training logs {', '.join([*figures, 'train/loss'])}.")


def check_cycle(scheduler: object, steps: float) -> None:
    """Refuse a one-cycle schedule that is over before the training.

    Raises:
        RecipeError: If it has fewer than ``steps`` optimizer steps.
    """
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps:
        raise RecipeError(
            f"model.scheduler.total_steps: is {scheduler.total_steps}, but the training takes {steps} optimizer steps. "
            f"Set it to {steps}."
        )


def planned_steps(trainer: pl.Trainer, data: SegmentationDataModule | None = None) -> float:
    """Return the optimizer steps of the whole training; infinite when only a time limit is set.

    Args:
        trainer: Built.
        data: Opened; the trainer's own by default, which it has from the start of the training on.
    """
    limit = step_limit(trainer)
    if trainer.max_epochs is None or trainer.max_epochs == -1:
        return limit
    return min(limit, math.ceil(batches_per_epoch(trainer, data) / trainer.accumulate_grad_batches) * trainer.max_epochs)


def step_limit(trainer: pl.Trainer) -> float:
    """Return ``max_steps`` as the recipe or the command line says it; infinite without one."""
    limits = [callback.max_steps for callback in trainer.callbacks if isinstance(callback, EndOfTraining)]  # type: ignore[attr-defined]
    return min((steps for steps in limits if steps != -1), default=math.inf)


def planned_epochs(trainer: pl.Trainer, data: SegmentationDataModule | None = None) -> int | None:
    """Return in how many epochs a training ends, by its steps where these end sooner; None where only time ends it.

    Args:
        trainer: Built.
        data: As for ``planned_steps``; a cohort that is only tested has no batch to train on.
    """
    steps, batches = planned_steps(trainer, data), batches_per_epoch(trainer, data)
    if math.isfinite(steps) and batches:
        return epochs_of(int(steps), batches, trainer.accumulate_grad_batches)
    return None if trainer.max_epochs == -1 else trainer.max_epochs


def epochs_of(steps: int, batches: int, accumulated: int = 1) -> int:
    """Return in how many epochs so many optimizer steps are made, the last one perhaps in part.

    Args:
        steps: Optimizer steps of the whole training.
        batches: Of an epoch.
        accumulated: Batches a step; an epoch's last step may have fewer.

    Example:
        >>> epochs_of(10, 4), epochs_of(12, 5, accumulated=2)
        (3, 4)
    """
    return math.ceil(steps / math.ceil(batches / accumulated))


def batches_per_epoch(trainer: pl.Trainer, data: SegmentationDataModule | None = None) -> int:
    """Return the training batches of an epoch on this process.

    Lightning's own estimate opens the loader it trains with before a checkpoint's position in it is restored, so that an
    interrupted epoch would begin anew.

    Args:
        trainer: Built.
        data: As for ``planned_steps``.
    """
    data, part = data or _data(trainer), trainer.limit_train_batches
    # The strategy knows its processes only once it has started them.
    processes = trainer.num_devices * trainer.num_nodes
    batches = batches_in_epoch(len(data.chunks("train")), data.batch_size, processes=processes)
    return int(batches * part) if isinstance(part, float) else min(batches, part)


def images_per_batch(trainer: pl.Trainer) -> int:
    """Return the images of a training batch over all processes."""
    return _data(trainer).batch_size * trainer.world_size


def fit_to_batches(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Move a checkpoint's position within the epoch to this run's batches, where their size or number changed."""
    images, n_batches, accumulate = images_per_batch(trainer), batches_per_epoch(trainer), trainer.accumulate_grad_batches
    fit_loop = checkpoint["loops"]["fit_loop"]
    done = fit_loop["epoch_loop.batch_progress"]["current"]["processed"]
    if checkpoint["images_per_batch"] != images or done > n_batches or (done < n_batches and done % accumulate):
        cut_anew(fit_loop, images=(checkpoint["images_per_batch"], images), n_batches=n_batches, accumulate=accumulate)


def _data(trainer: pl.Trainer) -> SegmentationDataModule:
    return cast(SegmentationDataModule, trainer.datamodule)  # type: ignore[attr-defined]


class EndOfTraining(Callback):
    """End the training at ``max_steps``, and validate at its end whatever the recipe's interval: what is tested was validated.

    The trainer itself knows no ``max_steps``: Lightning would leave an epoch there without a validation, and a run with such a
    limit could not be resumed at the end of an epoch.

    Args:
        max_steps: Optimizer steps; -1 sets no limit.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        limit, done = trainer.max_epochs, checkpoint["epoch"]
        if trainer.state.fn == TrainerFn.FITTING and limit is not None and -1 != limit < done:
            raise RecipeError(
                f"trainer.max_epochs: is {limit}, but the run to continue has finished {done} epochs. Raise it, or score it "
                "with `medsam-tune test`."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._reached(trainer):
            _stop(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
        if self._reached(trainer) or (last_epoch and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch):
            _stop(trainer)

    def _reached(self, trainer: pl.Trainer) -> bool:
        return self.max_steps != -1 and trainer.global_step >= self.max_steps


def _stop(trainer: pl.Trainer) -> None:
    trainer.should_stop = True
    # A minimum would train on beyond the limit, and the interval would skip the validation.
    trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = None, None
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


def learning_rate_factor(step: int, schedule: str, *, warmup_steps: int, total_steps: float) -> float:
    """Return the factor of the peak learning rate at ``step``.

    Examples:
        >>> learning_rate_factor(50, "cosine", warmup_steps=0, total_steps=100)
        0.5
        >>> learning_rate_factor(4, "constant", warmup_steps=10, total_steps=100)
        0.5
    """
    if schedule == "poly":
        return _samed_factor(step, warmup_steps=warmup_steps, total_steps=total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return round(0.5 * (1 + math.cos(math.pi * done)), 12)


def _samed_factor(step: int, *, warmup_steps: int, total_steps: float) -> float:
    """Return the factor of SAMed's ``trainer.py``, which sets the rate of a step from the count of the step before it.

    So the first two steps share a rate, and the decay begins at W + 2 and is spread over all T steps, not over T - W.
    """
    counted = max(0, step - 1)
    if counted < warmup_steps:
        return (counted + 1) / warmup_steps
    return float(max(0.0, 1 - (counted - warmup_steps) / total_steps) ** POLY_EXPONENT)
