import os
import signal
from types import SimpleNamespace

import pytest
import torch

from medsam_tune.training.module import TuningModule
from medsam_tune.training.signals import Interruptions, requeue, slurm_job
from tests.training.tiny_runs import only_run, run

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NODELIST": "localhost",
}


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Return the file in which a stand-in for scontrol notes what it was asked."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_job_is_known_by_its_id_and_a_task_of_an_array_by_both(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "10_2"


def test_slurms_warning_is_answered_with_a_checkpoint_of_whole_steps_and_a_place_in_the_queue(
    workplace, monkeypatch, scheduler
):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    original, seen, found = TuningModule.training_step, [], []

    def training_step(self, *arguments):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        if scheduler.is_file() and not found:
            found.append((len(seen), torch.load(only_run().last_checkpoint, weights_only=True)["global_step"]))
        return original(self, *arguments)

    monkeypatch.setattr(TuningModule, "training_step", training_step)
    assert run("--run.baselines=false", "--run.report=false", "--trainer.accumulate_grad_batches=2") == 0
    # Batch 3 is half a step; batch 4 completes step 2, which is written before batch 5.
    assert found == [(5, 2)]
    assert scheduler.read_text() == "requeue 4711\n"
    assert not list(only_run().path.rglob("hpc_ckpt*"))
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_cluster_without_scontrol_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    assert "SLURM job 12 could not be put back into its queue" in capsys.readouterr().out


class _Trainer:
    """As much of a trainer of two processes as is asked for, told to end while the two agree that nobody was."""

    world_size, global_step, strategy, launcher, root_device = 2, 0, property(lambda self: self), None, torch.device("cpu")
    _accelerator_connector = SimpleNamespace(cluster_environment=None)

    def __init__(self):
        self._signal_connector, self.to_come = SimpleNamespace(received_sigterm=False), [signal.SIGTERM]

    def reduce(self, tensor, reduce_op):
        total = tensor.clone()
        for number in self.to_come:
            os.kill(os.getpid(), number)
        self.to_come = []
        return total


@pytest.fixture
def kept_handler():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("kept_handler")
def test_signal_that_comes_while_the_processes_agree_is_heard_after_the_next_batch():
    interruptions, trainer = Interruptions(), _Trainer()
    interruptions.on_train_start(trainer, None)
    heard = []
    for step in (1, 2):
        trainer.global_step = step
        interruptions.on_train_batch_end(trainer, None)
        heard.append(trainer._signal_connector.received_sigterm)
    assert heard == [False, True]
