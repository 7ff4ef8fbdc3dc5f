"""What a scheduler says to a training: SIGTERM, and SLURM's warning before it takes the machine away."""

from __future__ import annotations

import os
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medsam_tune.training.console import say

SIGTERM_STATUS = 128 + signal.SIGTERM


class Interruptions(Callback):
    """End every stage soon after SIGTERM, training at a whole optimizer step, and put a SLURM job back into its queue.

    Lightning looks for SIGTERM after each training batch only, and answers SLURM's warning with a checkpoint from inside the
    signal handler, possibly in the middle of a step. Here the warning is answered after the step, and ``checkpoints/last.ckpt``
    is what the job goes on from.
    """

    def __init__(self) -> None:
        self.requeue_asked = False
        self._deferred = False
        self._steps = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            # Lightning leaves a signal alone that has a handler already.
            signal.signal(environment.requeue_signal, self._ask_requeue)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        whole, self._steps = trainer.global_step != self._steps, trainer.global_step
        signals = trainer._signal_connector
        if signals.received_sigterm and not whole:
            self._deferred, signals.received_sigterm = True, False
        elif self._deferred and whole:
            signals.received_sigterm = True

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        # Several processes would leave a validation at different batches and wait for each other.
        if trainer.state.fn != TrainerFn.FITTING or trainer.world_size == 1:
            _stop_if_told(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        _stop_if_told(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        _stop_if_told(trainer)

    def _ask_requeue(self, signal_number: int, frame: FrameType | None) -> None:
        self.requeue_asked = True


def _stop_if_told(trainer: pl.Trainer) -> None:
    if trainer.received_sigterm:
        raise SIGTERMException


def slurm_job() -> str | None:
    """Return the id of the SLURM job, or of the task of a job array, that this process belongs to; None outside of SLURM."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def requeue() -> None:
    """Put this SLURM job back into its queue."""
    job = slurm_job()
    if job is None:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
    except OSError as error:
        say(f"SLURM job {job} could not be put back into its queue ({error}).")
        return
    said = "was put back into its queue" if done.returncode == 0 else f"was not put back into its queue: {done.stderr.strip()}"
    say(f"SLURM job {job} {said}.")
