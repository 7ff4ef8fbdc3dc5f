"""Two gloo processes of the whole command: one run folder, and the figures of one process."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsam_tune.cli import main
from medsam_tune.training.run_place import RUNS
from tests.training.tiny_runs import N_CASES, TEST_CASES, TEST_SLICES, only_run
from tests.training.two_processes import TWO, start


@pytest.mark.slow
def test_sigterm_ends_two_processes_with_a_checkpoint_that_one_goes_on_from_without_missing_a_validation(workplace):
    words = ("run", "tiny.yaml", "--run.baselines=false", "--run.report=false", "--trainer.log_every_n_steps=1")
    command = [sys.executable, "-m", "medsam_tune", *words, *TWO, "--trainer.max_epochs=2000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(rows_of(path) for path in Path("runs").glob(f"{RUNS}/metrics.csv")):
            time.sleep(0.1)
        process.terminate()
        assert process.wait(300) == 143
    stopped = torch.load(only_run().last_checkpoint, weights_only=True)
    epochs = stopped["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] + 1
    assert main([*words, f"--trainer.max_epochs={epochs}", "--ckpt_path=last"]) == 0
    validated = [int(row["epoch"]) for row in rows_of(only_run().metrics_csv) if row["val/dice"]]
    assert validated == list(range(epochs))


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_two_processes_of_torchrun_share_one_run_and_test_like_one(workplace):
    start("run", "tiny.yaml", *TWO, "--run.save_every_n_steps=2")
    trained = only_run()
    summary = json.loads(trained.summary.read_text())
    # 11 training slices over two ranks of batches of 2: 3 steps an epoch.
    assert (summary["steps"], summary["epochs"]) == (6, 2)
    assert summary["test"]["n_cases"] == TEST_CASES
    assert sum(len(json.loads(trained.splits.read_text())[part]) for part in ("train", "val", "test")) == N_CASES
    epochs = [row["epoch"] for row in csv.DictReader(trained.metrics_csv.read_text().splitlines()) if row["val/dice"]]
    assert epochs == ["0", "1"]

    best = f"--ckpt_path={trained.checkpoints / 'best.ckpt'}"
    start("test", "--config=tiny.yaml", best, *TWO, "--run.folder=two")
    assert main(["test", "--config=tiny.yaml", best, "--run.folder=one"]) == 0
    one, two, run = (rows_of(found.test_cases) for found in (only_run("one"), only_run("two"), trained))
    # A run alone sets the untuned network's Dice beside its own.
    assert all(float(row.pop("untuned_dice")) >= 0 for row in run)
    assert [{**row, "untuned_dice": ""} for row in run] == one == two
    # 7 slices and 3 cases do not divide by two: the repeated slice is counted once.
    assert sum(int(row["n_slices"]) for row in two) == TEST_SLICES
