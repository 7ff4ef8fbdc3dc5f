"""The end of a sweep: one table and one plot over its finished runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.evaluation.sweep_figure import SweepPoint, draw_sweep
from medsam_tune.files import write_bytes, write_text
from medsam_tune.sweeps.cut_off import FAULT, is_cut_off, place_of
from medsam_tune.sweeps.sweep_file import Sweep
from medsam_tune.training.run_folder import RunFolder

if TYPE_CHECKING:
    import optuna


def write_results(trials: Sequence[optuna.trial.FrozenTrial], sweep: Sweep, folder: Path) -> str:
    """Write the table as CSV and text and the plot of the finished runs; return the text.

    What was cut off has no row: the next call takes it up.
    """
    shown = [trial for trial in trials if trial.state.name != "WAITING" and not is_cut_off(trial)]
    rows = [_row(trial, sweep) for trial in sorted(shown, key=place_of)]
    header = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", buffer.getvalue())
    text = _aligned(header, rows)
    write_text(folder / "sweep.txt", text + "\n")
    points = [_point(trial) for trial in shown if trial.state.name == "COMPLETE"]
    if points:
        picture = draw_sweep(points, title=f"{sweep.name}: {', '.join(_varied(sweep))}")
        write_bytes(folder / "sweep.png", picture)
    return text


def result_of(run: RunFolder) -> dict[str, Any]:
    """Return what the table and the plot say about a finished run."""
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
        "run": int(place_of(trial)),
        "state": trial.state.name.lower(),
        **{name: trial.params.get(name, "") for name in sweep.parameters},
        sweep.metric: _rounded(trial.value),
        "test dice": _rounded(result.get("test_dice")),
        "ci95 low": _rounded(interval[0]),
        "ci95 high": _rounded(interval[1]),
        "trained": result.get("trained", ""),
        "bytes": result.get("n_bytes", ""),
        "fit seconds": result.get("seconds", ""),
        "folder": result.get("folder", trial.user_attrs.get(FAULT, "")),
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
