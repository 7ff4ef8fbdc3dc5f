"""Several runs of one recipe as one: what they tested, pooled by case, in a folder that is compared as a run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.evaluation.case_tables import CaseTable, read_case_table
from medsam_tune.evaluation.comparison import difference_of, verdict_against
from medsam_tune.evaluation.figures import figures
from medsam_tune.evaluation.pooled_tables import write_pooled_table
from medsam_tune.files import read_json, write_json
from medsam_tune.training.run_folder import RunFolder


def write_pooled(runs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``test_cases.csv`` of several runs as one; return the summary.

    Args:
        runs: Tested runs by label, two or more.
        folder: Where both go. `medsam-tune compare` takes it as a run.
    """
    tables = {label: RunFolder(run).test_cases for label, run in runs.items()}
    summaries = {label: read_json(RunFolder(run).summary, "Test the run again.") for label, run in runs.items()}
    pooled = read_case_table(write_pooled_table(tables.values(), RunFolder(folder).test_cases))
    means = {label: read_case_table(path).mean for label, path in tables.items()}
    people = pooled.patients_of(pooled.dice)
    summary = {
        **_pooled_verdict(pooled, list(summaries.values())),
        "test": {
            "dice": figures(np.array(list(pooled.dice.values()), np.float64), people),
            "n_cases": len(pooled.dice),
            "n_patients": len(set(people)),
        },
        "runs": {
            label: {"folder": str(run), "dice": means[label], "verdict": _verdict(summaries[label])}
            for label, run in runs.items()
        },
        "std_over_runs": statistics.stdev(means.values()),
        **_pooled_facts(list(summaries.values())),
    }
    write_json(RunFolder(folder).summary, summary)
    return summary


def pooled_folder(run: Path, name: str) -> Path:
    """Return where what several runs tested goes, ``runs/<data>/<name>/<timestamp>`` like a run, without making it.

    Args:
        run: One of the runs.
        name: Such as ``lora-folds``.
    """
    return run.parents[1] / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def pooled_runs(folder: Path) -> dict[str, Path]:
    """Return the runs that a folder pools, by label; none where it is a run of its own.

    A place that was written as seen from the folder where the command ran is also looked for from every folder above the pooled
    one, so that it is found from elsewhere and after all runs were moved together.
    """
    files = RunFolder(folder)
    if files.config.is_file() or not files.summary.is_file():
        return {}
    summary = read_json(files.summary, "Pool the runs again.")
    return {label: _found(Path(values["folder"]), folder) for label, values in (summary.get("runs") or {}).items()}


def _found(run: Path, pooled: Path) -> Path:
    places = (above / run for above in pooled.absolute().parents)
    return run if run.is_dir() else next((place for place in places if place.is_dir()), run)


def pooled_text(summary: Mapping[str, Any], folder: Path) -> str:
    """Return the last lines of a repeated run: each run's figure, their spread, and the mean over cases with its interval."""
    runs, dice, spread = summary["runs"], summary["test"]["dice"], summary["std_over_runs"]
    ends = dice["ci95"]
    shown = "one patient has no interval" if ends is None else f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}"
    verdict = (summary.get("verdict") or {}).get("text")
    return "\n".join(
        [
            *([verdict] if verdict else []),
            *(f"{label:<14} Dice {values['dice']:.4f}  {values['verdict']}".rstrip() for label, values in runs.items()),
            *(f"inference {kind:<4} Dice {value:.4f}" for kind, value in summary.get("mean_dice_by_inference", {}).items()),
            f"Standard deviation over {len(runs)} runs {spread:.4f}",
            f"Test Dice {dice['mean']:.4f} ({shown}) over {summary['test']['n_cases']} cases, each over its runs",
            f"Pooled in   {folder}",
        ]
    )


def _pooled_verdict(pooled: CaseTable, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict over all runs, of the mean over its runs of each case; nothing where they were held against others."""
    against = {(summary.get("verdict") or {}).get("against") for summary in summaries}
    found = difference_of(pooled.dice, pooled.figures.get("untuned_dice", {}), pooled.patients)
    if len(against) != 1 or (name := against.pop()) is None or found["verdict"] is None:
        return {}
    return {"verdict": verdict_against(name, found)}


def _verdict(summary: Mapping[str, Any]) -> str:
    return str((summary.get("verdict") or {}).get("verdict", ""))


def _pooled_facts(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the runs have in common, the mean of what they took, and the mean Dice of each kind of inference."""
    seconds, inference = defaultdict(list), defaultdict(list)
    for summary in summaries:
        for name, value in (summary.get("seconds") or {}).items():
            seconds[name].append(float(value))
        for kind, scores in ((summary.get("inference") or {}).get("test") or {}).items():
            inference[kind].append(scores["dice"]["mean"])
    facts: dict[str, Any] = {"parameters": summaries[0].get("parameters")} if summaries[0].get("parameters") else {}
    if seconds:
        facts["seconds"] = {name: statistics.mean(values) for name, values in seconds.items()}
    kinds = {kind: statistics.mean(values) for kind, values in inference.items() if None not in values}
    return {**facts, **({"mean_dice_by_inference": kinds} if kinds else {})}
