"""The callbacks of every run: random state, rows of metrics.csv, clocks, hints on resuming."""

from __future__ import annotations

import math
import random
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from medsam_tune.errors import CheckpointError
from medsam_tune.heap import large_buffers_kept
from medsam_tune.training.console import say
from medsam_tune.training.loggers import RunCsvLogger
from medsam_tune.training.module import tuned
from medsam_tune.training.position import validation_pending


class RandomState(Callback):
    """Store the random state in every checkpoint and restore it before the first resumed step.

    Together with the sampler's position this makes a killed and resumed run end with the weights of an uninterrupted one
    (CPU, fp32). Under DDP the state of rank 0 is stored and every rank continues from it. A checkpoint that is written within
    a validation, which is then repeated, holds the state before it.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return self._before_validation or _random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self._restore()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._restore()
            self._before_validation = _random_state()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_validation = None

    def _restore(self) -> None:
        if self._loaded is None:
            return
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        torch.set_rng_state(self._loaded["torch"])
        if torch.cuda.is_available() and "cuda" in self._loaded:
            torch.cuda.set_rng_state_all(self._loaded["cuda"])
        self._loaded = None


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


class LargeBuffers(Callback):
    """Keep a training step's buffers in this process's heap, see ``heap``; loading of data lies between the steps."""

    def __init__(self) -> None:
        self._step = ExitStack()

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: ANN401
        self._step.enter_context(large_buffers_kept())

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        self._step.close()

    def on_exception(self, *_: Any) -> None:  # noqa: ANN401
        self._step.close()


class TrainingRows(Callback):
    """Log the training losses: each row is written before the checkpoint that counts its step, so that no kill loses one.

    Attributes:
        loss: The mean training loss of the epoch that ended last.
    """

    def __init__(self) -> None:
        self.loss = math.nan
        self._steps = 0
        self._lr: dict[str, Tensor] = {}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "train_means" not in checkpoint:
            raise CheckpointError(
                "checkpoint: holds no state of a training of this version, so nothing can go on from it. Train anew; its "
                "weights can still be tested: medsam-tune test --config RECIPE --ckpt_path=FILE"
            )
        pending = validation_pending(checkpoint["loops"]["fit_loop"])
        for logger in trainer.loggers:
            if isinstance(logger, RunCsvLogger):
                logger.forget_from(checkpoint["global_step"], validation_pending=pending)
        # The sums of all processes go on in one of them.
        sums = checkpoint["train_means"] if trainer.is_global_zero else {}
        tuned(pl_module).means.load_state_dict(sums, trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_means"] = tuned(pl_module).means.state_dict(partial(_over_processes, trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # The one of this step: at the end of the batch the schedule has moved on.
        self._lr = {"lr": torch.as_tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64)}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if stepped and every and (self._steps % every == 0 or trainer.should_stop):
            _log(trainer, {"train/loss_step": tuned(pl_module).last_loss, **self._lr})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning steps no scheduler that watches a metric at the end of an epoch that was resumed in its middle.
        trainer.fit_loop.restarting = False
        means = tuned(pl_module).means
        values = means.means(partial(_over_processes, trainer))
        means.reset()
        pl_module.log_dict(values, logger=False)
        self.loss = float(values["train/loss"]) if "train/loss" in values else math.nan
        _log(trainer, values)


def _over_processes(trainer: pl.Trainer, values: Tensor) -> Tensor:
    summed: Tensor = trainer.strategy.reduce(values, reduce_op="sum")
    return summed


def _log(trainer: pl.Trainer, values: dict[str, Tensor]) -> None:
    numbers = {"epoch": trainer.current_epoch, **{name: value.item() for name, value in values.items()}}
    for logger in trainer.loggers if values else ():
        logger.log_metrics(numbers, step=trainer.global_step - 1)
        logger.save()


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


class ResumeHint(Checkpoint):
    """Say how to go on after Ctrl-C, SIGTERM or an error in the middle of training.

    A ``Checkpoint`` by type: Lightning calls these last, so it speaks of the checkpoint that was written at SIGTERM.
    """

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
        say(f"  {self.command}" + ("" if self.command.startswith("medsam-tune resume ") else " --ckpt_path=last"))
