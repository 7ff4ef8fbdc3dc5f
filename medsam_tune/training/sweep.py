"""Run a W&B sweep file here, without an account: Optuna chooses, each run is a process, a table and a plot end it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.errors import MedsamTuneError, RecipeError
from medsam_tune.evaluation.curves import read_metrics
from medsam_tune.evaluation.sweep_figure import SweepPoint, draw_sweep
from medsam_tune.files import write_bytes, write_text
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.sweep_file import Parameter, Sweep, expand_command

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


def run_sweep(local: LocalSweep) -> str:
    """Run what is left of a sweep, write ``sweep.csv``, ``sweep.txt`` and ``sweep.png``, and return the table.

    Raises:
        RecipeError: If Optuna is missing, or random or bayes have no number of runs.
    """
    study = _study(local)
    n_left = _prepare(study, local)

    def objective(trial: optuna.Trial) -> float:
        return _objective(trial, local)

    if n_left:
        study.optimize(objective, n_trials=n_left, n_jobs=local.jobs, catch=(RunFailed,))
    return write_results(study.get_trials(deepcopy=False), local)


def write_results(trials: Sequence[optuna.trial.FrozenTrial], local: LocalSweep) -> str:
    """Write the table as CSV and text and the plot of the finished runs; return the text."""
    rows = [_row(trial, local.sweep) for trial in trials if trial.state.name != "WAITING"]
    header = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(local.folder / "sweep.csv", buffer.getvalue())
    text = _aligned(header, rows)
    write_text(local.folder / "sweep.txt", text + "\n")
    points = [_point(trial) for trial in trials if trial.state.name == "COMPLETE"]
    if points:
        picture = draw_sweep(points, title=f"{local.sweep.name}: {', '.join(_varied(local.sweep))}")
        write_bytes(local.folder / "sweep.png", picture)
    return text


def _study(local: LocalSweep) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise RecipeError(f"--local: needs Optuna ({error}). Run: pip install 'medsam-tune[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    local.folder.mkdir(parents=True, exist_ok=True)
    sweep = local.sweep
    sampler = optuna.samplers.TPESampler(seed=0) if sweep.method == "bayes" else optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(
        study_name=sweep.name,
        storage=JournalStorage(JournalFileBackend(str(local.folder / "study.journal"))),
        sampler=sampler,
        pruner=_pruner(sweep),
        direction="maximize" if sweep.maximise else "minimize",
        load_if_exists=True,
    )


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    import optuna

    block = sweep.early_terminate
    if block is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(
        min_resource=block.get("min_iter", 1), max_resource=block.get("max_iter", "auto"), reduction_factor=block.get("eta", 3)
    )


def _prepare(study: optuna.Study, local: LocalSweep) -> int:
    """Close what a killed sweep left open, enqueue the rest of a grid, and return the number of runs to do."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
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


def _objective(trial: optuna.Trial, local: LocalSweep) -> float:
    import optuna

    values = {name: _suggest(trial, name, parameter) for name, parameter in local.sweep.parameters.items()}
    named = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
    place = local.folder / "runs" / f"{trial.number:04d}"
    try:
        metric = _run_process(trial, local, values, place)
    except RunFailed as error:
        trial.set_user_attr("error", str(error))
        local.report(f"run {trial.number} ({named}) failed: {error}")
        raise
    except optuna.TrialPruned:
        local.report(f"run {trial.number} ({named}) stopped early")
        raise
    trial.set_user_attr("result", _result(_run_of(place)))
    local.report(f"run {trial.number} ({named}) {local.sweep.metric} {metric:.4f}")
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


def _run_process(trial: optuna.Trial, local: LocalSweep, values: Mapping[str, object], place: Path) -> float:
    """Run one process to its end or until the pruner stops it; return the best value of the metric."""
    place.mkdir(parents=True, exist_ok=True)
    words = expand_command(local.sweep.command, values)[1:]
    command = [*PROGRAM, *words, *local.overrides, f"--run.folder={place}"]
    if any(word.startswith("--trainer.logger=") and word.endswith("WandbLogger") for word in words):
        # The logger prefers its own default, the current folder, to WANDB_DIR.
        command.append(f"--trainer.logger.init_args.save_dir={place}")
    with (place / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment(local))
        try:
            _watch(process, trial, local, place)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode in INTERRUPTED:
        trial.study.stop()
    if process.returncode != 0:
        raise RunFailed(f"exit status {process.returncode}: {_last_line(place / 'log.txt')} ({place / 'log.txt'})")
    return _best(_values(place, local.sweep.metric), local.sweep)


def _watch(process: subprocess.Popen[bytes], trial: optuna.Trial, local: LocalSweep, place: Path) -> None:
    import optuna

    reported = 0
    while process.poll() is None:
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
    found = sorted(place.glob("*/*/summary.json"))
    if not found:
        raise RunFailed(f"{place}: the run ended without a summary.json")
    return RunFolder(found[-1].parent)


def _values(place: Path, metric: str) -> list[float]:
    found = sorted(place.glob("*/*/metrics.csv"))
    return [value for _, value in read_metrics(found[-1]).get(metric, [])] if found and found[-1].stat().st_size else []


def _best(values: Sequence[float], sweep: Sweep) -> float:
    if not values:
        raise RunFailed(f"the run never logged {sweep.metric}, which metric.name asks for")
    return max(values) if sweep.maximise else min(values)


def _result(run: RunFolder) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(run.summary.read_text(encoding="utf-8"))
    dice = summary["test"]["dice"]
    return {
        "test_dice": dice["mean"],
        "ci95": dice["ci95"],
        "trained": summary["parameters"]["trained"],
        "n_bytes": sum(path.stat().st_size for path in run.export.glob("*.safetensors")),
        "seconds": summary["seconds"].get("fit"),
        "folder": str(run.path),
    }


def _row(trial: optuna.trial.FrozenTrial, sweep: Sweep) -> dict[str, object]:
    result = trial.user_attrs.get("result", {})
    interval = result.get("ci95") or (None, None)
    return {
        "run": trial.number,
        "state": trial.state.name.lower(),
        **{name: trial.params.get(name, "") for name in sweep.parameters},
        sweep.metric: _rounded(trial.value),
        "test dice": _rounded(result.get("test_dice")),
        "ci95 low": _rounded(interval[0]),
        "ci95 high": _rounded(interval[1]),
        "trained": result.get("trained", ""),
        "bytes": result.get("n_bytes", ""),
        "fit seconds": result.get("seconds", ""),
        "folder": result.get("folder", trial.user_attrs.get("error", "")),
    }


def _point(trial: optuna.trial.FrozenTrial) -> SweepPoint:
    result = trial.user_attrs["result"]
    interval = result["ci95"] and (result["ci95"][0], result["ci95"][1])
    label = " ".join(str(value) for value in trial.params.values())
    return SweepPoint(label, result["trained"], result["n_bytes"], result["test_dice"], interval)


def _varied(sweep: Sweep) -> list[str]:
    return [name for name, parameter in sweep.parameters.items() if len(parameter.values) != 1]


def _rounded(value: float | None) -> object:
    return "" if value is None else round(value, 4)


def _aligned(header: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    cells = [list(header), *([str(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
