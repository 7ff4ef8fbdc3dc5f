"""The folder of one run, ``runs/<data>/<recipe>/<timestamp>/``: made once, shared by all ranks, found again to resume.

Lightning starts the command again for every local rank, so rank 0 makes the folder and hands its path on in the environment.
Ranks that something else started cannot inherit from rank 0: under torchrun they ask the agent's key-value store, under srun
they build the same name from the job and step id.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.folders import expand
from medsam_tune.leftovers import TEMPORARY_PREFIX, remove_abandoned_below

RUN_FOLDER_VARIABLE = "MEDSAM_TUNE_RUN_FOLDER"
STORE_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class RunFolder:
    """Name what a run leaves behind.

    Attributes:
        path: ``runs/<data>/<recipe>/<timestamp>``.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Return the resolved recipe, without paths."""
        return self.path / "config.yaml"

    @property
    def local(self) -> Path:
        """Return the file of the recipe's paths, which belongs to this machine and is not for sharing."""
        return self.path / "local.yaml"

    @property
    def splits(self) -> Path:
        """Return the file that says which case was trained on, validated on and tested on."""
        return self.path / "splits.json"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """Return the checkpoint to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics_csv(self) -> Path:
        """Return the table of losses and validation metrics by step."""
        return self.path / "metrics.csv"

    @property
    def epochs_csv(self) -> Path:
        """Return the table of the seconds of each epoch."""
        return self.path / "epochs.csv"

    @property
    def summary(self) -> Path:
        """Return the file of the test figures, the baselines and the costs."""
        return self.path / "summary.json"

    @property
    def test_cases(self) -> Path:
        """Return the table of the test figures by case."""
        return self.path / "test_cases.csv"

    @property
    def certainty(self) -> Path:
        """Return the table of uncertainty and calibration by test case."""
        return self.path / "test_certainty.csv"

    @property
    def export(self) -> Path:
        """Return the folder of what was trained, reloadable in one line."""
        return self.path / "export"

    @property
    def report(self) -> Path:
        """Return the folder of the HTML report."""
        return self.path / "report"

    @property
    def resumes(self) -> Path:
        """Return the folder of the recipes that the run was continued with, the first one among them."""
        return self.path / "resumes"

    @property
    def wandb(self) -> Path:
        """Return the file that names the W&B run."""
        return self.path / "wandb.json"

    @property
    def slurm_job(self) -> Path:
        """Return the file that names the SLURM job."""
        return self.path / "slurm_job.txt"

    def remove(self) -> None:
        """Remove the folder, and those above it, that of all runs too, where they hold no other run."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            for parent in self.path.parents[:3]:
                parent.rmdir()

    def remove_leftovers(self) -> None:
        """Remove the temporary files and folders of a killed process; only before anything is written."""
        for path in list(self.path.rglob(f"{TEMPORARY_PREFIX}*")) if is_rank_zero() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def make_run_folder(root: Path, place: str) -> Path:
    """Make ``root/place/<timestamp>`` on rank 0 and return the same path on every rank.

    Args:
        root: The folder of all runs.
        place: Where the recipe's runs lie below it, from ``run_place``.

    Raises:
        RecipeError: If this rank has no way to learn what rank 0 made, or the folder cannot be written.
    """
    if (name := _srun_name(os.environ)) is not None:
        folder = root.absolute() / place / name
        folder.mkdir(parents=True, exist_ok=True)
        return share_run_folder(folder)
    return share_run_folder(_make_new(root.absolute() / place) if is_rank_zero() else None)


def share_run_folder(folder: Path | None) -> Path:
    """Hand rank 0's ``folder`` to the other ranks and return it on all of them.

    Call it on every rank, also when a run is continued in its old folder; only rank 0's argument counts, except under srun,
    where every rank knows the folder itself.

    Raises:
        RecipeError: If this is not rank 0 and nothing tells what rank 0 made.
    """
    environ = os.environ
    if _has_agent_store(environ):
        folder = Path(_share_by_store(None if folder is None else str(folder), environ))
    elif not is_rank_zero() and not _is_srun(environ):
        folder = _inherited(environ)
    if folder is None:
        raise ValueError("folder: rank 0 must give the run folder, got None")
    environ[RUN_FOLDER_VARIABLE] = str(folder)
    return folder


def agreed_run(find: Callable[[], Path | None]) -> Path | None:
    """Return the run that rank 0 finds, on every rank: two that looked one after the other might find two, and wait for ever.

    Call it on every rank. Under srun each rank looks for itself.

    Args:
        find: Looks for a run to go on in.
    """
    environ = os.environ
    if not _has_agent_store(environ):
        return _continued_by_rank_zero() or find()
    found = find() if is_rank_zero() else None
    shared = _share_by_store("" if found is None else str(found), environ)
    return Path(shared) if shared else None


def is_rank_zero() -> bool:
    """Tell whether this process is the first over all nodes, from the environment alone; True when started on its own."""
    environ = os.environ
    if "TORCHELASTIC_RUN_ID" in environ:
        return int(environ.get("RANK", 0)) == 0
    if _is_srun(environ):
        return int(environ["SLURM_PROCID"]) == 0
    return int(environ.get("NODE_RANK", 0)) == 0 and int(environ.get("LOCAL_RANK", 0)) == 0


def newest_run(root: Path, place: str) -> Path | None:
    """Return the run at ``place`` whose ``checkpoints/last.ckpt`` was written last, or None when no run has one."""
    return max(_resumable(root, place), key=_written, default=None)


def requeued_run(root: Path, place: str, job: str | None) -> Path | None:
    """Return the run that this SLURM job began before it was put back into the queue; None if it was not, or got nowhere."""
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    jobs = {run: RunFolder(run).slurm_job for run in _resumable(root, place)}
    own = [run for run, file in jobs.items() if file.is_file() and file.read_text(encoding="utf-8") == job]
    return max(own, key=_written, default=None)


def resolve_ckpt_path(value: str, root: Path, place: str) -> Path:
    """Return the checkpoint that ``--ckpt_path=value`` means.

    Args:
        value: ``last`` or ``best`` of the newest run, or a path.
        root: The folder of all runs.
        place: Where the recipe's runs lie below it, from ``run_place``.

    Raises:
        RecipeError: If ``last`` or ``best`` is asked for and no run has one.
        CheckpointError: If the path does not exist.
    """
    if value not in {"last", "best"}:
        path = expand(value, "--ckpt_path")
        if not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint. Give the path of a .ckpt file, or --ckpt_path=last or best.")
        return path.absolute()
    run = agreed_run(lambda: newest_run(root, place))
    if run is None:
        raise RecipeError(
            f"--ckpt_path={value}: no run under {root / place} has checkpoints/last.ckpt"
            f" (runs without one: {len(_runs(root, place))}).{_on_other_data(root, place)}"
            " Give the path of a .ckpt file; a training without --ckpt_path starts a new run."
        )
    return RunFolder(run).last_checkpoint if value == "last" else _best(run)


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that holds ``checkpoint``, or None for a checkpoint that lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == RunFolder(Path()).checkpoints.name else None


def _make_new(parent: Path) -> Path:
    """Make a folder, and remove what killed processes left in those that nobody goes on in: they came to no checkpoint."""
    folder = _make_unique(parent)
    with suppress(OSError):
        for run in parent.iterdir():
            if not RunFolder(run).last_checkpoint.exists():
                remove_abandoned_below(run)
    return folder


def _make_unique(parent: Path) -> Path:
    """Make a folder named after the time; runs that start within one second get -2, -3 and so on."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and folder.is_dir():
                continue
            raise RecipeError(
                f"{folder}: cannot make the run folder ({error.strerror}). Choose a root that can be written to."
            ) from error
        break
    return folder


def _runs(root: Path, place: str) -> list[Path]:
    parent = root / place
    return [folder for folder in parent.iterdir() if folder.is_dir()] if parent.is_dir() else []


def _on_other_data(root: Path, place: str) -> str:
    """Say where runs of the same recipe lie that were trained on other data, or by an earlier version without such folders."""
    name = Path(place).name
    places = {run.parent for run in root.glob(f"*/{name}/*") if RunFolder(run).last_checkpoint.exists()}
    told = f" Runs of it on other data are in {', '.join(sorted(map(str, places)))}." if places else ""
    earlier = max(
        (run for run in root.glob(f"{name}/*") if RunFolder(run).last_checkpoint.exists()), key=_written, default=None
    )
    if earlier is None:
        return told
    return f"{told} The newest of an earlier version is continued by --ckpt_path={RunFolder(earlier).last_checkpoint}."


def _resumable(root: Path, place: str) -> list[Path]:
    return [folder for folder in _runs(root, place) if RunFolder(folder).last_checkpoint.exists()]


def _written(run: Path) -> tuple[int, str]:
    return RunFolder(run).last_checkpoint.stat().st_mtime_ns, run.name


def _best(run: Path) -> Path:
    found = sorted(RunFolder(run).checkpoints.glob("best*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise RecipeError(f"--ckpt_path=best: {run} has no best checkpoint: no epoch was validated yet. Use --ckpt_path=last.")
    return found[-1]


def _continued_by_rank_zero() -> Path | None:
    """Return the run that rank 0 handed on, if it goes on in it; a stage of its own has no checkpoints there."""
    if is_rank_zero() or RUN_FOLDER_VARIABLE not in os.environ:
        return None
    run = _inherited(os.environ)
    return run if RunFolder(run).last_checkpoint.exists() else None


def _inherited(environ: Mapping[str, str]) -> Path:
    if RUN_FOLDER_VARIABLE not in environ:
        raise RecipeError(
            f"{RUN_FOLDER_VARIABLE}: not set, so this process, which is not rank 0, cannot know the folder that rank 0 made."
            " Start several nodes with torchrun or srun, or set the variable to the same new folder on every node."
        )
    return Path(environ[RUN_FOLDER_VARIABLE])


def _is_srun(environ: Mapping[str, str]) -> bool:
    n_tasks = environ.get("SLURM_NTASKS", "1")
    if not n_tasks.isdecimal():
        raise RecipeError(f"SLURM_NTASKS: expected the number of tasks of the job, got {n_tasks!r}. Unset it outside of srun.")
    return int(n_tasks) > 1 and {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"} <= environ.keys()


def _srun_name(environ: Mapping[str, str]) -> str | None:
    if "TORCHELASTIC_RUN_ID" in environ or not _is_srun(environ):
        return None
    restart = environ.get("SLURM_RESTART_COUNT")
    return f"slurm-{environ['SLURM_JOB_ID']}-{environ['SLURM_STEP_ID']}" + (f"-restart-{restart}" if restart else "")


def _has_agent_store(environ: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in environ and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _share_by_store(text: str | None, environ: Mapping[str, str]) -> str:
    """Pass rank 0's text through the store torchrun's agent serves, which lives as long as this start of the workers."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, but torch has it in no __all__

    timeout = timedelta(seconds=STORE_TIMEOUT_SECONDS)
    store = TCPStore(environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    prefix = f"medsam_tune/run_folder/{environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    # The n-th call of a rank belongs to the n-th call of every other rank: one process may start several runs.
    call = store.add(f"{prefix}/calls/{environ['RANK']}", 1)
    key = f"{prefix}/{call}"
    if text is not None and is_rank_zero():
        store.set(key, text)
    return str(store.get(key).decode())
