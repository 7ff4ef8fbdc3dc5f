"""What a scheduler says to a training: SIGTERM, and SLURM's warning before it takes the machine away."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
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
    is what the job goes on from. Several processes agree after each batch: a signal reaches them at different moments, and one
    that stopped alone would leave the others waiting.

    Attributes:
        requeue_asked: Whether SLURM's warning came, on any process; whoever answers it sets it back.
    """

    def __init__(self) -> None:
        self.requeue_asked = False
        self._warned, self._told = False, False
        self._steps = 0

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = trainer.global_step
        self._listen(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        whole, self._steps = trainer.global_step != self._steps, trainer.global_step
        signals = trainer._signal_connector  # its flag is what Lightning looks at next
        told, warned = self._heard(trainer, self._told or signals.received_sigterm, self._warned)
        self.requeue_asked |= warned
        # A signal may come at any line: a flag is put down only after it has been seen up.
        if warned:
            self._warned = False
        if told:
            self._told, signals.received_sigterm = True, whole

    @staticmethod
    def _heard(trainer: pl.Trainer, told: bool, warned: bool) -> tuple[bool, bool]:
        """Return whether any process was told to end, and whether any was warned."""
        if trainer.world_size == 1:
            return told, warned
        mine = torch.tensor([told, warned], dtype=torch.float32, device=trainer.strategy.root_device)
        told, warned = (count > 0 for count in trainer.strategy.reduce(mine, reduce_op="sum").tolist())
        return told, warned

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        if trainer.state.fn != TrainerFn.FITTING or trainer.world_size == 1:
            _stop_if_told(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        _stop_if_told(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ANN401
        _stop_if_told(trainer)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Take Lightning's place at the signals; it puts back afterwards what was there before it.

        Its handler of SIGTERM waits for the other processes in the middle of anything, that of SLURM's warning writes there.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            signal.signal(environment.requeue_signal, self._warn)
        if trainer.world_size == 1:
            return

        def tell(number: int, frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if not self._told and launcher is not None:
                launcher.kill(number)
            self._told = True

        signal.signal(signal.SIGTERM, tell)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self._warned = True


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
