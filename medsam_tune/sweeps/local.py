"""Run a W&B sweep file here, without an account: Optuna chooses, each run is a process, a table and a plot end it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import DataError, MedsamTuneError, RecipeError
from medsam_tune.evaluation.curves import read_metrics
from medsam_tune.sweeps.cut_off import FAULT, give_place, has_checkpoint, mend_journal, n_drawn, take_up
from medsam_tune.sweeps.parameters import Parameter
from medsam_tune.sweeps.sweep_file import Sweep, expand_command
from medsam_tune.sweeps.table import result_of, write_results
from medsam_tune.sweeps.trainings import Trainings, locked
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.run_place import RUNS

if TYPE_CHECKING:
    import optuna

POLL_SECONDS = 1.0
PROGRAM = (sys.executable, "-m", "medsam_tune")
INTERRUPTED = (130, -2)


@dataclass(frozen=True)
class LocalSweep:
    """Say how a sweep runs here.

    Attributes:
        sweep: The checked file.
        folder: Where the study, the runs, the table and the plot go; a second call with the same folder continues.
        trials: Most runs in all, or None for the file's ``run_cap`` or the whole grid.
        jobs: Runs at the same time.
        overrides: ``--key=value`` words that every run gets.
        online: Log to W&B's server; otherwise W&B keeps its files in the folder.
        report: Called with one line a finished run.
    """

    sweep: Sweep
    folder: Path
    trials: int | None = None
    jobs: int = 1
    overrides: Sequence[str] = ()
    online: bool = False
    report: Callable[[str], None] = lambda line: None


class RunFailed(MedsamTuneError):
    """Report a run of a sweep that did not reach its end; the sweep goes on."""


@dataclass(frozen=True)
class SweepEnd:
    """Say how a sweep ended.

    Attributes:
        table: One aligned row a run.
        finished: Number of runs that have reached their end, in this call or an earlier one.
    """

    table: str
    finished: int


def run_sweep(local: LocalSweep) -> SweepEnd:
    """Run what is left of a sweep and write ``sweep.csv``, ``sweep.txt`` and ``sweep.png``.

    SIGTERM and Ctrl-C end its trainings, write the table of what is finished, and end this process.

    Raises:
        RecipeError: If Optuna is missing, random or bayes have no number of runs, the folder holds another sweep, or another
            process runs a sweep there.
    """
    with locked(local.folder) as lock:
        trainings = Trainings(lock)
        study = _study(local)
        n_left = _prepare(study, local)

        def objective(trial: optuna.Trial) -> float:
            return _objective(trial, local, trainings)

        with trainings.ended_by_signals():
            if n_left:
                drawn_anew = [lambda study, trial: _seed_sampler(study, local.sweep)]
                study.optimize(objective, n_trials=n_left, n_jobs=local.jobs, catch=(RunFailed,), callbacks=drawn_anew)
        trials = study.get_trials(deepcopy=False)
        table = write_results(trials, local.sweep, local.folder)
        trainings.raise_if_ended()
    return SweepEnd(table, sum(trial.state.name == "COMPLETE" for trial in trials))


def _study(local: LocalSweep) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise RecipeError(f"--local: needs Optuna ({error}). Run: pip install 'medsam-tune[sweep]'") from error
    # A run that fails is reported in one line of our own.
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    sweep, journal = local.sweep, local.folder / "study.journal"
    mend_journal(journal)
    try:
        study = optuna.create_study(
            study_name=sweep.name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            pruner=_pruner(sweep),
            direction="maximize" if sweep.maximise else "minimize",
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RecipeError(
            f"{journal}: cannot be read as the journal of a sweep ({' '.join(str(error).split())}). "
            "Delete it, which forgets the finished runs, or give another --folder."
        ) from error
    _check_same(study, local)
    return study


def _seed_sampler(study: optuna.Study, sweep: Sweep) -> None:
    """Seed what draws the next run by how many were drawn, so that a sweep that goes on draws none a second time."""
    import optuna

    sampler = optuna.samplers.TPESampler if sweep.method == "bayes" else optuna.samplers.RandomSampler
    study.sampler = sampler(seed=n_drawn(study))


def _check_same(study: optuna.Study, local: LocalSweep) -> None:
    """Refuse to go on with another sweep's runs: their table would mix two questions."""
    asked = json.loads(json.dumps({"method": local.sweep.method, **_facts(local.sweep)}))
    begun = study.user_attrs.get("sweep")
    if begun is None:
        study.set_user_attr("sweep", asked)
        return
    other = sorted(key for key in asked.keys() | begun.keys() if asked.get(key) != begun.get(key))
    if other:
        raise RecipeError(
            f"{local.folder}: was begun with another {', '.join(other)} than {local.sweep.name} has now. "
            "Give another --folder, or the file as it was."
        )


def _facts(sweep: Sweep) -> dict[str, object]:
    return {
        "metric": [sweep.metric, sweep.maximise],
        "parameters": {name: asdict(parameter) for name, parameter in sweep.parameters.items()},
        "command": list(sweep.command),
    }


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    import optuna

    block = sweep.early_terminate
    if block is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(
        min_resource=block.get("min_iter", 1), max_resource=block.get("max_iter", "auto"), reduction_factor=block.get("eta", 3)
    )


def _prepare(study: optuna.Study, local: LocalSweep) -> int:
    """Take up what a killed sweep left open, enqueue the rest of a grid, and return the number of runs to do."""
    from optuna.trial import TrialState

    take_up(study, local.sweep.parameters)
    _seed_sampler(study, local.sweep)
    cap = local.trials or local.sweep.run_cap
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    if local.sweep.method != "grid":
        if cap is None:
            raise RecipeError(f"--trials: method {local.sweep.method} has no end. Give --trials=N, or run_cap in the file.")
        return max(0, cap - len(done))
    waiting = study.get_trials(states=(TrialState.WAITING,))
    known = [trial.params for trial in done] + [trial.system_attrs["fixed_params"] for trial in waiting]
    missing = [point for point in _grid(local.sweep.parameters) if point not in known]
    for point in missing:
        study.enqueue_trial(point)
    left = len(waiting) + len(missing)
    return left if cap is None else max(0, min(left, cap - len(done)))


def _grid(parameters: Mapping[str, Parameter]) -> list[dict[str, str]]:
    """Return every combination, values as JSON texts, because Optuna stores no lists."""
    names = list(parameters)
    choices = [[json.dumps(value) for value in parameters[name].values] for name in names]
    return [dict(zip(names, combination, strict=True)) for combination in itertools.product(*choices)]


def _objective(trial: optuna.Trial, local: LocalSweep, trainings: Trainings) -> float:
    import optuna

    if trainings.ended_by is not None:
        raise RunFailed("the sweep was ended")

    values = {name: _suggest(trial, name, parameter) for name, parameter in local.sweep.parameters.items()}
    named = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
    place = local.folder / "runs" / give_place(trial)
    try:
        metric = _run_process(trial, local, trainings, values, place)
    except RunFailed as error:
        if trainings.ended_by is None:
            trial.set_user_attr(FAULT, str(error))
        local.report(f"run {int(place.name)} ({named}) failed: {error}")
        raise
    except optuna.TrialPruned:
        local.report(f"run {int(place.name)} ({named}) stopped early")
        raise
    trial.set_user_attr("result", result_of(_run_of(place)))
    local.report(f"run {int(place.name)} ({named}) {local.sweep.metric} {metric:.4f}")
    return metric


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> object:
    if parameter.values:
        chosen = trial.suggest_categorical(name, [json.dumps(value) for value in parameter.values])
        value: object = json.loads(chosen)
        return value
    if parameter.distribution == "int_uniform":
        return trial.suggest_int(name, int(parameter.low), int(parameter.high))
    log = parameter.distribution == "log_uniform_values"
    return trial.suggest_float(name, parameter.low, parameter.high, step=parameter.step, log=log)


def _run_process(
    trial: optuna.Trial, local: LocalSweep, trainings: Trainings, values: Mapping[str, object], place: Path
) -> float:
    """Run one process to its end or until the pruner stops it; return the best value of the metric.

    It goes on from the checkpoint that an earlier one left in its folder.
    """
    goes_on = has_checkpoint(place)
    if not goes_on:
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    words = [*_command(local, values, place), *(["--ckpt_path=auto"] if goes_on else [])]
    with (
        (place / "log.txt").open("a", encoding="utf-8") as log,
        trainings.start(words, log, _environment(local)) as process,
    ):
        _watch(process, trial, local, trainings, place)
    if trainings.ended_by is not None or process.returncode in INTERRUPTED:
        trial.study.stop()
    if trainings.ended_by is not None:
        raise RunFailed(f"ended with the sweep; the same command runs it again ({place / 'log.txt'})")
    if process.returncode != 0:
        raise RunFailed(f"exit status {process.returncode}: {_last_line(place / 'log.txt')} ({place / 'log.txt'})")
    return _best(_values(place, local.sweep.metric), local.sweep)


def _command(local: LocalSweep, values: Mapping[str, object], place: Path) -> list[str]:
    words = expand_command(local.sweep.command, values)[1:]
    command = [*PROGRAM, *words, *local.overrides, f"--run.folder={place}"]
    if any(word.startswith("--trainer.logger=") and word.endswith("WandbLogger") for word in words):
        # The logger prefers its own default, the current folder, to WANDB_DIR.
        command.append(f"--trainer.logger.init_args.save_dir={place}")
    return command


def _watch(process: subprocess.Popen[bytes], trial: optuna.Trial, local: LocalSweep, trainings: Trainings, place: Path) -> None:
    """Wait until the process or the sweep ends, and tell the pruner what is logged."""
    import optuna

    reported = 0
    while process.poll() is None and trainings.ended_by is None:
        time.sleep(POLL_SECONDS)
        if local.sweep.early_terminate is None:
            continue
        values = _values(place, local.sweep.metric)
        for value in values[reported:]:
            reported += 1
            trial.report(value, reported)
        if reported and trial.should_prune():
            raise optuna.TrialPruned


def _environment(local: LocalSweep) -> dict[str, str]:
    environ = dict(os.environ)
    environ.setdefault("WANDB_MODE", "online" if local.online else "offline")
    return environ | {"WANDB_RUN_GROUP": local.sweep.name}


def _run_of(place: Path) -> RunFolder:
    """Return the one run folder below a run's place."""
    found = sorted(place.glob(f"{RUNS}/summary.json"))
    if not found:
        raise RunFailed(f"{place}: the run ended without a summary.json")
    return RunFolder(found[-1].parent)


def _values(place: Path, metric: str) -> list[float]:
    """Return what a run has logged of a metric; nothing while its file is not there, or is being written anew."""
    found = sorted(place.glob(f"{RUNS}/metrics.csv"))
    try:
        return [value for _, value in read_metrics(found[-1]).get(metric, [])] if found else []
    except DataError:
        return []


def _best(values: Sequence[float], sweep: Sweep) -> float:
    if not values:
        raise RunFailed(f"the run never logged {sweep.metric}, which metric.name asks for")
    return max(values) if sweep.maximise else min(values)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
