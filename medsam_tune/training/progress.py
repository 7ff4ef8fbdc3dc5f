"""A training while it runs: one line an epoch whether somebody watches or not, and a bar where somebody does."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from medsam_tune.terminal import in_notebook
from medsam_tune.training.console import console, labelled, say, span
from medsam_tune.training.module import tuned
from medsam_tune.training.schedule import planned_epochs, planned_steps

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from medsam_tune.training.callbacks import TrainingRows

MOST_LINES = 100
"""Epochs up to which each has a line; of a longer training only those that were validated have one."""
_TIMED_STEPS, _TIMED_SECONDS = 5, 10.0
_BAR_WIDTH = 24


class EpochLines(Callback):
    """Print a line an epoch: loss, validation figure, the best so far, learning rate, seconds, and about how many are left.

    After the first steps it says once how long they all will take, as an estimate.

    Args:
        rows: Holds the mean losses of the epoch that ended; it must come first among the callbacks.
    """

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self._figure = self._best = math.nan
        self._began = self._epoch_began = self._first_step_ended = 0.0
        self._first_step = self._timed_from = 0
        self._timed = self._headed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._best = _number(getattr(trainer.checkpoint_callback, "best_model_score", None))
        self._began, self._first_step_ended = time.monotonic(), 0.0
        self._first_step = self._timed_from = trainer.global_step
        self._timed = self._headed = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_began, self._figure = time.monotonic(), math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        if self._timed or not trainer.is_global_zero:
            return
        done, now = trainer.global_step - self._timed_from, time.monotonic()
        if done >= 1 and not self._first_step_ended:
            # The first one also warms caches and compiles kernels.
            self._first_step_ended, self._timed_from = now, trainer.global_step
            return
        if done >= _TIMED_STEPS or (done >= 1 and now - self._first_step_ended > _TIMED_SECONDS):
            self._timed = True
            self._say_estimate(trainer, (now - self._first_step_ended) / done)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        task = tuned(pl_module).task
        self._figure = _number(trainer.callback_metrics.get(task.monitor))
        choose = max if task.goal == "max" else min
        known = [value for value in (self._figure, self._best) if math.isfinite(value)]
        self._best = choose(known, default=math.nan)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self._has_line(trainer):
            return
        if not self._headed:
            self._headed = True
            say(_row("epoch", "loss", readable(tuned(pl_module).task.monitor), "best", "lr", "time", "left"))
        limit, now = planned_epochs(trainer), time.monotonic()
        epoch = f"{trainer.current_epoch + 1}" + ("" if limit is None else f"/{limit}")
        figures = (f"{value:.4f}" if math.isfinite(value) else "-" for value in (self.rows.loss, self._figure, self._best))
        rate = f"{trainer.optimizers[0].param_groups[0]['lr']:.1e}"
        say(_row(epoch, *figures, rate, span(now - self._epoch_began), self._left(trainer, now)))

    def _has_line(self, trainer: pl.Trainer) -> bool:
        limit = planned_epochs(trainer)
        return (limit is not None and limit <= MOST_LINES) or math.isfinite(self._figure) or not trainer.check_val_every_n_epoch

    def _left(self, trainer: pl.Trainer, now: float) -> str:
        """Return about how long the rest takes, validations included; empty at the end."""
        if trainer.should_stop:
            return ""
        planned, done = planned_steps(trainer), trainer.global_step - self._first_step
        if not math.isfinite(planned) or done < 1:
            return "?"
        left = planned - trainer.global_step
        return "~" + span((now - self._began) / done * left) if left > 0 else ""

    def _say_estimate(self, trainer: pl.Trainer, seconds: float) -> None:
        planned = planned_steps(trainer)
        if math.isfinite(planned) and planned > trainer.global_step:
            total = span(seconds * (planned - trainer.global_step))
            say(labelled("Estimate", f"~{total} for the steps alone, at {seconds:.2f} s a step"))


class StageBar(Callback):
    """Draw a bar over the batches of an epoch, a validation, a test or a prediction; it leaves nothing behind.

    Only where standard output is a terminal, and on rank 0.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, f"Epoch {trainer.current_epoch + 1}", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        # As the trainer looks at it: a GPU has to be waited for to know a loss.
        loss = trainer.progress_bar_metrics.get("train/loss_step")
        self._advance("" if loss is None else f"loss {float(loss):.3f}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin(trainer, "Validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        if not trainer.sanity_checking:
            self._advance()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop()
        elif not trainer.sanity_checking and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self._begin(trainer, f"Epoch {trainer.current_epoch + 1}", trainer.num_training_batches, done=done)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, "Test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        self._advance()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, "Prediction", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        self._advance()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _begin(self, trainer: pl.Trainer, name: str, total: float, *, done: int = 0) -> None:
        if not trainer.is_global_zero or not console.is_terminal or in_notebook():
            return
        if self._progress is None:
            self._progress = _bar()
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(f"{name:<10}", total=total, completed=done, loss="")

    def _advance(self, loss: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=1, loss=loss)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(_BAR_WIDTH),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)


def brings_a_bar(callbacks: list[Any] | None) -> bool:
    """Tell whether a recipe's own callbacks hold one of Lightning's bars, which then takes the place of ours."""
    return any(isinstance(callback, ProgressBar) for callback in callbacks or ())


def readable(figure: str) -> str:
    """Return the name of a logged figure for a table's head.

    Example:
        >>> readable("val/dice"), readable("val/loss")
        ('val Dice', 'val loss')
    """
    return figure.replace("/", " ").replace("dice", "Dice").replace("iou", "IoU")


def scores_line(figures: Mapping[str, Any], part: str) -> str:
    """Return the figures of one part in a line.

    Args:
        figures: Logged ones by name; tensors or numbers.
        part: ``val`` or ``test``.

    Example:
        >>> scores_line({"val/dice": 0.20270270, "val/iou": 0.1128, "train/loss": 1.0}, "val")
        'val Dice 0.2027, val IoU 0.1128'
    """
    return ", ".join(f"{readable(name)} {float(value):.4f}" for name, value in figures.items() if name.startswith(f"{part}/"))


def _row(*cells: str) -> str:
    widths = (-9, 8, 10, 8, 9, 9, 10)
    aligned = [f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return " ".join(aligned).rstrip()


def _number(value: Any) -> float:  # noqa: ANN401 - a tensor, a number or None
    return math.nan if value is None else float(value)
