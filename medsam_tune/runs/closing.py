"""The last lines of a run at the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_tune.evaluation.instances import instance_line
from medsam_tune.training.console import labelled
from medsam_tune.training.opening import counted


def closing(summary: dict[str, Any], folder: Path, report: Path | None) -> str:
    """Return the last lines of a run.

    Args:
        summary: What ``summary.json`` holds.
        folder: The run folder.
        report: The report's page, or None.
    """
    # What a reader must not overlook stands before the figures.
    lines = ["", *([verdict["text"]] if (verdict := summary.get("verdict")) else []), _result(summary)]
    for name, values in (summary.get("baselines") or {}).items():
        lines.append(f"  untuned, {name.replace('_', ' ')}: {_figure(values)}")
    for name, values in (summary.get("inference") or {}).get("test", {}).items():
        lines.append(f"  inference {name.replace('_', ' ')}: {_figure(values)}")
    for name in ("tuned", "untuned"):
        if found := (summary.get("automatic") or {}).get(name):
            lines.append(f"  {name}, found without a prompt: {instance_line(found)}")
    lines.append(labelled("Run folder", str(folder)))
    if report is not None:
        lines.append(labelled("Report", str(report)))
    return "\n".join(lines)


def _result(summary: dict[str, Any]) -> str:
    if "test" in summary:
        test = summary["test"]
        patients = test.get("n_patients", test["n_cases"])  # runs of earlier versions counted cases alone
        of = "" if test["n_cases"] == patients else f" of {counted(patients, 'patient')}"
        return f"Test Dice {_figure(test)} over {counted(test['n_cases'], 'case')}{of}"
    return "Best " + ", ".join(f"{name} {value:.4g}" for name, value in summary["validation"].items())


def _figure(values: dict[str, Any]) -> str:
    dice = values["dice"]
    if dice["mean"] is None:
        return "undefined (no case has an object or a prediction)"
    ends = dice["ci95"]
    interval = " (one patient has no interval)" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"
    return f"{dice['mean']:.4f}{interval}"
