"""The callbacks of every run: random state, embedding cache, gradient-free resume hints, checkpoints."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from medsam_tune.backbone.freezing import trainable_report
from medsam_tune.training.console import say
from medsam_tune.training.loggers import RunCsvLogger
from medsam_tune.training.module import tuned

if TYPE_CHECKING:
    from medsam_tune.training.settings import RunSettings


class RandomState(Callback):
    """Store the random state in every checkpoint and restore it before the first resumed step.

    Together with the sampler's position this makes a killed and resumed run end with the weights of an uninterrupted one
    (CPU, fp32). Under DDP the state of rank 0 is stored and every rank continues from it.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        if self._loaded is None:
            return
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(self._loaded["torch"])
        if torch.cuda.is_available() and "cuda" in self._loaded:
            torch.cuda.set_rng_state_all(self._loaded["cuda"])
        self._loaded = None


class TrainableTable(Callback):
    """Say what is trained before training starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        say(trainable_report(tuned(pl_module).segmenter).table())


class ContinueMetrics(Callback):
    """Let each step stand once in metrics.csv, although a killed run had gone on after its last checkpoint."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            return
        for logger in trainer.loggers:
            if isinstance(logger, RunCsvLogger):
                logger.forget_from(trainer.global_step)


class StageClock(Callback):
    """Measure the seconds of each stage, by name, for summary.json."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Start, or start again, the clock of ``stage``."""
        self._started[stage] = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Add the time since ``start`` to ``stage``."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - self._started.pop(stage), 2)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start("fit")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop("fit")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start("test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop("test")


class ResumeHint(Callback):
    """Say how to go on after Ctrl-C or an error in the middle of training."""

    def __init__(self, checkpoints: Path, command: str) -> None:
        self.checkpoints = checkpoints
        self.command = command

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        last = self.checkpoints / "last.ckpt"
        if not last.is_file():
            say(f"\nStopped at step {trainer.global_step}; no checkpoint was written yet.")
            return
        say(f"\nStopped at step {trainer.global_step}. The last checkpoint is {last}; continue with")
        say(f"  {self.command} --ckpt_path=last")


def checkpoint_callbacks(folder: Path, settings: RunSettings) -> list[Callback]:
    """Return the callbacks that keep the best and the last checkpoint, and stop early where the recipe asks for it.

    ``last.ckpt`` is written every n steps and after each epoch.
    """
    best = ModelCheckpoint(
        dirpath=folder, filename="best", monitor="val/dice", mode="max", save_top_k=1, enable_version_counter=False
    )
    # Lightning's callback takes steps or epochs, so last.ckpt has two writers; a run shorter than n steps needs the second.
    callbacks: list[Callback] = [
        best,
        _last_checkpoint(folder, every_n_train_steps=settings.save_every_n_steps),
        _last_checkpoint(folder, every_n_epochs=1),
    ]
    if settings.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(monitor="val/dice", mode="max", patience=settings.early_stopping_patience))
    return callbacks


def _last_checkpoint(
    folder: Path, *, every_n_train_steps: int | None = None, every_n_epochs: int | None = None
) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder,
        filename="last",
        monitor=None,
        save_top_k=1,
        every_n_train_steps=every_n_train_steps,
        every_n_epochs=every_n_epochs,
        save_on_train_epoch_end=every_n_epochs is not None,
        enable_version_counter=False,
    )
