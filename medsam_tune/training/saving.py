"""When checkpoints are written: the best and the last one, so that a run killed at any moment goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from medsam_tune.training.console import say
from medsam_tune.training.position import Moment, settle
from medsam_tune.training.schedule import fit_to_batches, images_per_batch
from medsam_tune.training.signals import Interruptions, requeue

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from medsam_tune.tasks.base import Task
    from medsam_tune.training.settings import RunSettings


class BestCheckpoint(ModelCheckpoint):
    """Write ``best.ckpt`` at the end of a validation with a better figure than any before.

    It is written before ``last.ckpt``, so that a kill between the two repeats the validation; else the best would be lost.

    Args:
        folder: The run's folder of checkpoints.
        monitor: The figure.
        mode: Whether the highest or the lowest is best.
    """

    def __init__(self, folder: Path, monitor: str = "val/dice", mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Tell whether ``current`` is the best so far; while no validation had a Dice, the newest weights are."""
        none_yet = self.best_model_score is None or not torch.isfinite(self.best_model_score)
        if current is not None and torch.isnan(current) and none_yet:
            why = ": no validation case shows an object" if self.monitor == "val/dice" else ""
            say(f"{self.monitor} is undefined{why}, so best.ckpt is the newest. Change data.split.")
            return True
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score so far, also when the run's folder has been moved."""
        here = Path(str(self.dirpath), "best.ckpt")
        if here.is_file() and state_dict["best_model_path"]:
            names = {name: str(here) for name in ("best_model_path", "kth_best_model_path")}
            scores = dict.fromkeys([str(here)], state_dict["best_model_score"])
            state_dict = {**state_dict, **names, "dirpath": self.dirpath, "best_k_models": scores}
        super().load_state_dict(state_dict)


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` every n optimizer steps, after a validation, and when everything of an epoch has been recorded.

    It holds whole optimizer steps only. Where a validation or the end of the epoch comes next it is written after these, so
    that a kill during them repeats them and their rows in metrics.csv.

    Args:
        path: The file.
        every_n_steps: Optimizer steps between two writes.
        interruptions: Says whether SIGTERM or SLURM's warning came.
    """

    def __init__(self, path: Path, *, every_n_steps: int, interruptions: Interruptions) -> None:
        self.path, self.every_n_steps, self.interruptions = path, every_n_steps, interruptions
        self._steps, self._unsaved, self._validating = 0, False, False
        self._moment: Moment = "hook"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps, self._unsaved, self._validating = trainer.global_step, False, False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        stepped, self._steps, self._unsaved = trainer.global_step != self._steps, trainer.global_step, True
        wanted = trainer.global_step % self.every_n_steps == 0 or self.interruptions.requeue_asked
        if stepped and wanted and not _pauses(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = not trainer.sanity_checking

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._validating:
            return
        self._validating, self._unsaved = False, True
        if trainer.state.fn == TrainerFn.FITTING and not _ends(trainer) and _whole_step(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        # At its end a training is left through a validation that no counter of Lightning's could ask for again.
        if _whole_step(trainer) and not (self._validating and trainer.should_stop):
            self._save(trainer, "in validation" if self._validating else "between batches")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint["loops"]["fit_loop"], self._moment)
        checkpoint["images_per_batch"] = images_per_batch(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            fit_to_batches(trainer, checkpoint)

    def _save(self, trainer: pl.Trainer, moment: Moment = "hook") -> None:
        if not self._unsaved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._moment = moment
        trainer.save_checkpoint(self.path)
        self._moment, self._unsaved = "hook", False
        if self.interruptions.requeue_asked:
            self.interruptions.requeue_asked = False
            if trainer.is_global_zero:
                requeue()


class Patience(EarlyStopping):
    """Stop when n validations brought no better figure; a finished run that is resumed stays finished.

    Args:
        validations: Their number.
        monitor: The figure.
        mode: Whether the highest or the lowest is best.
    """

    def __init__(self, validations: int, monitor: str = "val/dice", mode: Literal["max", "min"] = "max") -> None:
        super().__init__(monitor=monitor, mode=mode, patience=validations, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count, with the recipe's patience of today."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def best_score(trainer: pl.Trainer) -> float | None:
    """Return the figure of ``best.ckpt``, whatever other checkpoints the recipe keeps; None before the first validation."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
            return float(callback.best_model_score)
    return None


def checkpoint_callbacks(folder: Path, settings: RunSettings, interruptions: Interruptions, task: Task) -> list[Callback]:
    """Return the callbacks that keep the task's best and the last checkpoint, and stop early where the recipe asks for it."""
    last = LastCheckpoint(folder / "last.ckpt", every_n_steps=settings.save_every_n_steps, interruptions=interruptions)
    patience, watched = settings.early_stopping_patience, (task.monitor, task.goal)
    return [BestCheckpoint(folder, *watched), last, *([] if patience is None else [Patience(patience, *watched)])]


def _whole_step(trainer: pl.Trainer) -> bool:
    return not trainer.fit_loop._should_accumulate()


def _ends(trainer: pl.Trainer) -> bool:
    """Tell whether the epoch, or the training, ends with this batch."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.should_stop


def _pauses(trainer: pl.Trainer) -> bool:
    """Tell whether a validation, or the end of the epoch, follows this batch."""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    return _ends(trainer) or (fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher))
