"""The last lines of a run at the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def closing(summary: dict[str, Any], folder: Path, report: Path | None) -> str:
    """Return the last lines of a run.

    Args:
        summary: What ``summary.json`` holds.
        folder: The run folder.
        report: The report's page, or None.
    """
    lines = ["", _result(summary)]
    if verdict := summary.get("verdict"):
        # What a reader must not overlook stands before the figure.
        lines.insert(2 if verdict["verdict"] == "better" else 1, verdict["text"])
    for name, values in (summary.get("baselines") or {}).items():
        lines.append(f"  untuned, {name.replace('_', ' ')}: {_figure(values)}")
    for name, values in (summary.get("inference") or {}).get("test", {}).items():
        lines.append(f"  inference {name.replace('_', ' ')}: {_figure(values)}")
    lines.append(f"Run folder  {folder}")
    if report is not None:
        lines.append(f"Report      {report}")
    return "\n".join(lines)


def _result(summary: dict[str, Any]) -> str:
    if "test" in summary:
        return f"Test Dice {_figure(summary['test'])} over {summary['test']['n_cases']} cases"
    return "Best " + ", ".join(f"{name} {value:.4g}" for name, value in summary["validation"].items())


def _figure(values: dict[str, Any]) -> str:
    dice = values["dice"]
    if dice["mean"] is None:
        return "undefined (no case has an object or a prediction)"
    interval = "" if dice["ci95"] is None else f" (95 % interval {dice['ci95'][0]:.3f} to {dice['ci95'][1]:.3f})"
    return f"{dice['mean']:.4f}{interval}"
