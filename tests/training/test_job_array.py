"""The jobs of an array at once, as docs/how-to/scale.md has them: one cache, one folder of runs, a fold a job."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medsam_tune.cli import main
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.run_place import RUNS
from tests.processes import start_command, statuses_of
from tests.training.tiny_runs import N_CASES, run, weights_of

QUICK = ("--run.report=false", "--run.baselines=false", "--trainer.max_epochs=1", "--data.split.folds=2")


def _job(fold):
    """Start a job with what SLURM tells it of the array."""
    job = {"SLURM_JOB_ID": str(40 + fold), "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": str(fold)}
    return start_command("run", "tiny.yaml", *QUICK, f"--data.split.fold={fold}", folder=Path.cwd(), **job)


def test_two_jobs_at_once_end_with_the_folds_of_two_runs_one_after_the_other(workplace):
    statuses = statuses_of([_job(0), _job(1)])
    assert statuses == [0, 0], Path("log.txt").read_text()
    for fold in (0, 1):
        assert run(*QUICK, f"--data.split.fold={fold}", "--run.folder=alone") == 0
    together, alone = ({_tested(path): RunFolder(path) for path in Path(root).glob(RUNS)} for root in ("runs", "alone"))
    assert together.keys() == alone.keys()
    first, second = together
    assert sorted(first + second) == [f"c{number}" for number in range(N_CASES)]
    for tested, folder in together.items():
        expected = weights_of(alone[tested].last_checkpoint)
        found = weights_of(folder.last_checkpoint)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert main(["runs", "pool", *map(str, Path("runs").glob(RUNS))]) == 0
    (pooled,) = Path("runs").glob("*/*-folds/*/summary.json")
    assert json.loads(pooled.read_text())["test"]["n_cases"] == N_CASES


def _tested(folder: Path) -> tuple[str, ...]:
    return tuple(json.loads(RunFolder(folder).splits.read_text())["test"])
